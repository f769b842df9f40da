//! Generates docs/use/metrics.md from the programs' declarations.

use std::fs;

use anyhow::{Context as _, Result};
use mobile_host::metrics::Metric;

use crate::shell::{self, step};

#[path = "../../../mobile-agent/src/declared_metrics.rs"]
#[allow(dead_code, reason = "what counts is all of them together")]
mod mobile;

#[path = "../../../home-relay/src/metrics/declared.rs"]
#[allow(dead_code, reason = "what counts is all of them together")]
mod home_relay;

/// The path of the generated page.
const FILE: &str = "docs/use/metrics.md";

const HEAD: &str = "\
# Metrics

Both programs serve Prometheus text over HTTP at `[metrics] listen`, path `/metrics`; the listener
is off by default. The path `/healthz` answers 200 while the program works, otherwise 503 with the
reason. Values have base units. Counters end in `_total` and start at zero with the process unless
the table says otherwise. No metric is labelled by process, command or destination.

The packages bring alert rules and a Grafana dashboard: see [monitoring.md](monitoring.md). The
tables below are generated from the programs' declarations: run `cargo xtask gen` after a change.
";

/// Each program's name in the generated page, and its metrics.
const PROGRAMS: [(&str, &[Metric]); 2] =
    [("mobile agent", mobile::ALL), ("home-relay serve", home_relay::ALL)];

/// Writes docs/use/metrics.md.
pub(super) fn write() -> Result<()> {
    let path = shell::root().join(FILE);
    fs::write(&path, page()).with_context(|| format!("cannot write {}", path.display()))?;
    step(&format!("{FILE}: {} metrics", all().count()));
    Ok(())
}

/// Returns every metric of both programs.
pub(crate) fn all() -> impl Iterator<Item = Metric> {
    PROGRAMS.iter().flat_map(|(_, metrics)| metrics.iter().copied())
}

/// The column at which the page's prose wraps.
const WIDTH: usize = 100;

fn page() -> String {
    let mut text = HEAD.to_owned();
    for (program, metrics) in PROGRAMS {
        text.push_str(&format!(
            "\n## `{program}`\n\n| name | kind | labels | meaning |\n| --- | --- | --- | --- |\n"
        ));
        let mut details = String::new();
        for Metric { name, kind, labels, help } in metrics {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let (summary, detail) = split_help(help);
            let cells =
                [format!("`{name}`"), kind.as_str().to_owned(), labels.join(", "), summary.to_owned()];
            let cells = cells.map(|cell| if cell.is_empty() { " ".to_owned() } else { format!(" {cell} ") });
            text.push_str(&format!("|{}|\n", cells.join("|")));
            if !detail.is_empty() {
                details.push_str(&list_item(&format!("`{name}`: {detail}")));
            }
        }
        text.push_str(&format!("\n### Label values of `{program}`\n\n{details}"));
    }
    text
}

/// Splits a metric's help text into its first sentence and the rest, which explains the values of
/// labels.
fn split_help(help: &str) -> (&str, &str) {
    let (summary, detail) = help.split_once(". ").unwrap_or((help, ""));
    (summary.trim_end_matches('.'), detail)
}

/// Formats `text` as an item of a Markdown list, wrapped at [`WIDTH`] columns.
fn list_item(text: &str) -> String {
    let mut lines = String::new();
    let mut line = "-".to_owned();
    for word in text.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            line = " ".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    lines + &line + "\n"
}

#[cfg(test)]
mod tests {
    use mobile_host::metrics::MetricKind;

    use super::*;

    #[test]
    fn the_page_is_up_to_date_with_the_declarations() {
        let written = fs::read_to_string(shell::root().join(FILE)).unwrap();
        assert!(written == page(), "{FILE} is not what the programs declare: run `cargo xtask gen`");
    }

    #[test]
    fn names_and_help_follow_the_conventions() {
        let mut names: Vec<&str> = all().map(|metric| metric.name).collect();
        for Metric { name, kind, help, .. } in all() {
            assert!(name.starts_with("mobile_") || name.starts_with("homerelay_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == MetricKind::Counter, "{name}");
            // The page puts the first sentence into a cell of a table; a scrape needs one line.
            assert!(help.ends_with('.') && !help.contains(['|', '\n']), "{name}: {help}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count(), "a name is declared twice");
    }
}
