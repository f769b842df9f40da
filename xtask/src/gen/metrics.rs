//! Generates docs/metrics.md from the programs' declarations.

use std::fs;

use anyhow::{Context as _, Result};
use mobile_io::metrics::Metric;

use crate::shell::{self, step};

#[path = "../../../mobile-agent/src/metrics/declared.rs"]
#[allow(dead_code, reason = "only the list of all metrics is used")]
mod mobile;

#[path = "../../../home-relay/src/metrics/declared.rs"]
#[allow(dead_code, reason = "only the list of all metrics is used")]
mod home_relay;

/// The generated file.
const FILE: &str = "docs/metrics.md";

const HEAD: &str = "\
# Metrics

Prometheus text over HTTP at `[metrics] listen`, path `/metrics`; off unless set. `/healthz` beside it answers 200 when the program does its work, otherwise 503 with the
reason. Base units; counters end in `_total` and start with the process, unless said otherwise; nothing is labelled by pid, command or destination.

Both packages bring alert rules and a Grafana dashboard: [operating.md](operating.md), \"Watching\". The tables below are what the programs declare: `cargo xtask gen` makes them.
";

/// Each program's name in the file, and its metrics.
const PROGRAMS: [(&str, &[Metric]); 2] =
    [("mobile agent", mobile::ALL), ("home-relay serve", home_relay::ALL)];

/// Writes the file.
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

fn page() -> String {
    let mut text = HEAD.to_owned();
    for (program, metrics) in PROGRAMS {
        text.push_str(&format!(
            "\n## `{program}`\n\n| name | kind | labels | |\n| --- | --- | --- | --- |\n"
        ));
        for Metric { name, kind, labels, help } in metrics {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let cells = [format!("`{name}`"), kind.word().to_owned(), labels.join(", "), (*help).to_owned()];
            let cells = cells.map(|cell| if cell.is_empty() { " ".to_owned() } else { format!(" {cell} ") });
            text.push_str(&format!("|{}|\n", cells.join("|")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use mobile_io::metrics::Kind;

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
            assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
            // The help stands in a table cell, and on one line of a scrape.
            assert!(help.ends_with('.') && !help.contains(['|', '\n']), "{name}: {help}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().count(), "a name is declared twice");
    }
}
