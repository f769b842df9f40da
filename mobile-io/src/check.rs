//! What `mobile check` and `home-relay check` say: findings, one line each, and what to do about those that are not well.

use std::fmt::Write as _;

use serde::Serialize;

use crate::text::printable;

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not everywhere.
    Warn,
    /// It cannot work like this.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How well it is.
    pub level: Level,
    /// What was looked at: `kernel`, `config`, `relay over eth0`…
    pub topic: String,
    /// What was seen.
    pub seen: String,
    /// What to do; only where the level is not `ok`.
    pub next_step: Option<String>,
}

/// Everything that was looked at: what `check --json` prints, stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Nothing fails; the exit status is 0.
    pub ok: bool,
    /// In the order in which they should be mended.
    pub findings: Vec<Finding>,
}

impl Finding {
    /// As it should be.
    pub fn ok(topic: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { level: Level::Ok, topic: topic.into(), seen: seen.into(), next_step: None }
    }

    /// It works, but.
    pub fn warn(topic: impl Into<String>, seen: impl Into<String>, next_step: impl Into<String>) -> Self {
        let (topic, seen) = (topic.into(), seen.into());
        Self { level: Level::Warn, topic, seen, next_step: Some(next_step.into()) }
    }

    /// It cannot work.
    pub fn fail(topic: impl Into<String>, seen: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::warn(topic, seen, next_step) }
    }
}

impl CheckReport {
    /// Of these findings.
    #[must_use]
    pub fn new(findings: Vec<Finding>) -> Self {
        let ok = findings.iter().all(|finding| finding.level != Level::Fail);
        Self { ok, findings }
    }

    /// For a person: a line for each finding.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for Finding { level, topic, seen, next_step } in &self.findings {
            let word = match level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            // What others say (the kernel, a resolver) may hold line ends, and scripts count lines.
            let line =
                |text: &str| printable(&text.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned();
            // Writing to a String cannot fail.
            let _ = write!(text, "{word:<5} {topic}: {}", line(seen));
            if let Some(next) = next_step {
                let _ = write!(text, "; what to do: {}", line(next));
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_is_one_line_and_only_a_failure_fails() {
        let mut findings = vec![Finding::ok("kernel", "6.18"), Finding::warn("tun", "a\n b", "load it")];
        let report = CheckReport::new(findings.clone());
        assert!(report.ok);
        assert_eq!(report.render(), "ok    kernel: 6.18\nwarn  tun: a b; what to do: load it\n");
        findings.push(Finding::fail("key", "none", "make one"));
        let report = CheckReport::new(findings);
        assert!(!report.ok);
        assert!(report.render().ends_with("\nFAIL  key: none; what to do: make one\n"));
    }

    #[test]
    fn the_shape_of_json_is_the_documented_one() {
        let report = CheckReport::new(vec![Finding::ok("a", "b"), Finding::fail("c", "d", "e")]);
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({"ok": false, "findings": [
                {"level": "ok", "topic": "a", "seen": "b", "next_step": null},
                {"level": "fail", "topic": "c", "seen": "d", "next_step": "e"},
            ]})
        );
    }
}
