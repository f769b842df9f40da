//! Tests of the alert rules and dashboards that the packages contain.
//!
//! The rules and dashboards may name only existing metrics, and each alert is tested both firing
//! and not firing. An end-to-end case tests that the dashboards show data.

use std::fs;
use std::process::Command;

use super::PACKAGES;
use crate::r#gen::metrics;
use crate::shell;

fn read(folder: &str, file: &str) -> String {
    fs::read_to_string(shell::root().join(folder).join("dist").join(file)).unwrap()
}

/// Returns what follows `key` on each line that begins with it.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(key))
        .map(str::trim)
        .collect()
}

#[test]
fn every_alert_fires_when_it_should_and_only_then() {
    for package in &PACKAGES {
        let dist = shell::root().join(package.folder).join("dist");
        for args in [
            ["check", "rules", "--lint-fatal", "alerts.yml"].as_slice(),
            &["test", "rules", "alerts.test.yml"],
        ] {
            shell::output(Command::new("promtool").current_dir(&dist).args(args)).unwrap();
        }
        let (rules, tests) = (read(package.folder, "alerts.yml"), read(package.folder, "alerts.test.yml"));
        let alerts = values(&rules, "alert:");
        assert!(alerts.len() > 5, "{alerts:?}");
        let tried: Vec<(&str, &str)> =
            values(&tests, "alertname:").into_iter().zip(values(&tests, "exp_alerts:")).collect();
        for alert in alerts {
            for (outcome, expected) in [("fires", ""), ("does not fire", "[]")] {
                assert!(tried.contains(&(alert, expected)), "no test in which {alert} {outcome}");
            }
        }
    }
}

#[test]
fn alerts_and_dashboards_name_only_existing_metrics() {
    let declared: Vec<&str> = metrics::all().map(|metric| metric.name).collect();
    let mut shown = Vec::new();
    for package in &PACKAGES {
        let (rules, dashboard) = (read(package.folder, "alerts.yml"), read(package.folder, "dashboard.json"));
        for text in [&rules, &dashboard] {
            let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
            for word in words.filter(|word| word.starts_with("mobile_") || word.starts_with("homerelay_")) {
                let name = word.strip_suffix("_bucket").unwrap_or(word);
                assert!(declared.contains(&name), "{}: there is no metric {word}", package.name);
                shown.push(name.to_owned());
            }
        }
    }
    for name in declared {
        assert!(shown.iter().any(|shown| shown == name), "{name} is in no dashboard");
    }
}
