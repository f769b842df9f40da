//! The findings of `mobile check` and `home-relay check`: one line each, with the next step for
//! every finding that is not `ok`.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::text::printable;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The host or the configuration is as it should be.
    Ok,
    /// The user of the check may not see the state, which may be as it should be.
    Skipped,
    /// The program works, but with a restriction that the finding describes.
    Warn,
    /// The program cannot work until the finding is fixed.
    Fail,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The severity of the finding.
    pub level: Level,
    /// The part that was checked: `kernel`, `config`, `relay over eth0`…
    pub topic: String,
    /// The state of the topic that the check observed.
    pub seen: String,
    /// The step that fixes the problem; `None` if and only if the level is `ok`.
    pub next_step: Option<String>,
}

/// The findings of all checks, in the stable form that `check --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Whether the check succeeded: no finding has the level `fail`, and the exit status is 0.
    pub ok: bool,
    /// All findings, in the order in which the user should fix them.
    pub findings: Vec<Finding>,
}

impl Finding {
    /// Creates a finding of level `ok`.
    pub fn ok(topic: impl Into<String>, seen: impl Into<String>) -> Self {
        Self { level: Level::Ok, topic: topic.into(), seen: seen.into(), next_step: None }
    }

    /// Creates a finding of level `warn`, which restricts the program but does not stop it.
    pub fn warn(topic: impl Into<String>, seen: impl Into<String>, next_step: impl Into<String>) -> Self {
        let (topic, seen) = (topic.into(), seen.into());
        Self { level: Level::Warn, topic, seen, next_step: Some(next_step.into()) }
    }

    /// Creates a finding of level `skipped`, which is no fault.
    pub fn skipped(topic: impl Into<String>, seen: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { level: Level::Skipped, ..Self::warn(topic, seen, next_step) }
    }

    /// Creates a finding of level `fail`, with which the program cannot work.
    pub fn fail(topic: impl Into<String>, seen: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::warn(topic, seen, next_step) }
    }
}

impl fmt::Display for Finding {
    /// Formats the finding in one line, without its level.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Messages of the kernel or a resolver may contain line ends, and scripts count lines.
        let line =
            |text: &str| printable(&text.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned();
        write!(f, "{}: {}", self.topic, line(&self.seen))?;
        self.next_step.iter().try_for_each(|next| write!(f, "; what to do: {}", line(next)))
    }
}

/// The failed findings because of which a daemon cannot work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckError(Vec<Finding>);

impl fmt::Display for CheckError {
    /// Formats the findings as the `check` command does, one a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings: Vec<String> = self.0.iter().map(Finding::to_string).collect();
        f.write_str(&findings.join("\n"))
    }
}

impl std::error::Error for CheckError {}

impl CheckReport {
    /// Creates a report from `findings` and derives [`ok`](Self::ok) from their levels.
    #[must_use]
    pub fn new(findings: Vec<Finding>) -> Self {
        let ok = findings.iter().all(|finding| finding.level != Level::Fail);
        Self { ok, findings }
    }

    /// Returns a text with the number of findings of level `fail`: `2 of 19 findings are FAIL`.
    #[must_use]
    pub fn failures(&self) -> String {
        let failed = self.findings.iter().filter(|finding| finding.level == Level::Fail).count();
        let verb = if failed == 1 { "is" } else { "are" };
        format!("{failed} of {} findings {verb} FAIL", self.findings.len())
    }

    /// Renders the report as text, one line for each finding.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let word = match finding.level {
                Level::Ok => "ok",
                Level::Skipped => "skip",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{word:<5} {finding}");
        }
        text
    }

    /// Returns the report of a daemon about itself: its failed findings as one error, or else those
    /// of level `warn`, for its log.
    ///
    /// # Errors
    /// When a finding has the level `fail`.
    pub fn into_warnings(self) -> Result<Vec<Finding>, CheckError> {
        let ok = self.ok;
        let of_level = |level| self.findings.into_iter().filter(move |finding| finding.level == level);
        if ok {
            Ok(of_level(Level::Warn).collect())
        } else {
            Err(CheckError(of_level(Level::Fail).collect()))
        }
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
        findings.push(Finding::skipped("tun", "not checked: needs root", "use sudo"));
        let report = CheckReport::new(findings.clone());
        assert!(report.ok);
        assert!(report.render().ends_with("\nskip  tun: not checked: needs root; what to do: use sudo\n"));
        findings.push(Finding::fail("key", "none", "make one"));
        let report = CheckReport::new(findings);
        assert!(!report.ok);
        assert!(report.render().ends_with("\nFAIL  key: none; what to do: make one\n"));
        assert_eq!(report.failures(), "1 of 4 findings is FAIL");
    }

    #[test]
    fn a_daemon_refuses_with_the_failed_findings_and_logs_the_others() {
        let warn = Finding::warn("tun", "slow", "load it");
        let findings = vec![Finding::ok("kernel", "6.18"), warn.clone()];
        assert_eq!(CheckReport::new(findings.clone()).into_warnings(), Ok(vec![warn]));
        let failed = [Finding::fail("key", "none", "make one"), Finding::fail("port", "taken", "free it")];
        let error = CheckReport::new([findings, failed.to_vec()].concat()).into_warnings().unwrap_err();
        assert_eq!(error.to_string(), "key: none; what to do: make one\nport: taken; what to do: free it");
    }

    #[test]
    fn the_json_has_the_documented_form() {
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
