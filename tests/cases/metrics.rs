//! Prometheus reads both programs' metrics, and the shipped alerts and dashboards work with them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mobile_tests::{LabOptions, METRICS, Ns, Process, Testbed, UplinkName, addr, port, wait_for};
use serde_json::Value;

use crate::{Outcome, server};

/// The directories of the shipped alerts and dashboards.
const DISTS: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/../mobile-agent/dist"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/../home-relay/dist"),
];

/// The dashboard panels without data in the lab, where no packet is compressed, so that there is no
/// ratio.
const EMPTY_PANELS: [&str; 1] = ["Compression"];

/// The address on which Prometheus listens.
const PROMETHEUS: &str = "127.0.0.1:9090";

/// The interval at which Prometheus scrapes, and the range over which the dashboards compute rates.
const SCRAPE: &str = "200ms";
const RATE_INTERVAL: &str = "5s";

/// Returns the body and the HTTP status of `path` at the metrics address `listen`.
fn page(ns: &Ns, listen: &str, path: &str) -> Result<(String, String)> {
    let text = ns.run(&["curl", "-sS", "-w", "\n%{http_code}", &format!("http://{listen}{path}")])?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((body.to_owned(), status.to_owned()))
}

/// Returns the names of the metrics with this prefix that docs/use/metrics.md lists.
fn documented(prefix: &str) -> BTreeSet<&'static str> {
    let names = include_str!("../../docs/use/metrics.md").lines().filter_map(|line| line.strip_prefix("| `"));
    names.filter_map(|line| line.split('`').next()).filter(|name| name.starts_with(prefix)).collect()
}

/// Labels whose values are self-explanatory or are the machine's own names.
const PLAIN_LABELS: [&str; 4] = ["version", "uplink", "direction", "le"];

/// Returns each label value, as `metric: value`, that the metric's help text does not explain,
/// except those of [`PLAIN_LABELS`].
fn unexplained(text: &str) -> Vec<String> {
    let (mut help, mut found) = ("", Vec::new());
    for line in text.lines() {
        if let Some(new) = line.strip_prefix("# HELP ") {
            help = new;
        }
        let Some((name, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) else { continue };
        let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
        for (label, value) in labels.split(',').filter_map(|pair| pair.split_once('=')) {
            let value = value.trim_matches('"');
            if !PLAIN_LABELS.contains(&label) && !help.contains(&format!("`{value}`")) {
                found.push(format!("{name}: {value}"));
            }
        }
    }
    found
}

/// A Prometheus server on the host that scrapes both programs.
struct Prometheus<'a> {
    ns: &'a Ns,
    process: Process,
}

impl<'a> Prometheus<'a> {
    fn start(ns: &'a Ns, dir: &Path, relay_metrics: &str) -> Result<Self> {
        let rules: Vec<String> = DISTS.iter().map(|dist| format!("'{dist}/alerts.yml'")).collect();
        let config = dir.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: {SCRAPE}, scrape_timeout: {SCRAPE}, evaluation_interval: 1s}}\n\
             rule_files: [{}]\nscrape_configs:\n\
             - {{job_name: mobile, static_configs: [{{targets: ['{METRICS}']}}]}}\n\
             - {{job_name: home-relay, static_configs: [{{targets: ['{relay_metrics}']}}]}}\n",
            rules.join(", ")
        );
        std::fs::write(&config, text)?;
        let mut command = ns.command("prometheus");
        command.arg("--config.file").arg(&config).arg("--storage.tsdb.path").arg(dir.join("tsdb"));
        command.arg(format!("--web.listen-address={PROMETHEUS}"));
        let process = Process::start("prometheus", &mut command, &dir.join("prometheus.txt"))?;
        let prometheus = Self { ns, process };
        wait_for("Prometheus to have scraped both", Duration::from_secs(40), || {
            // The server may not listen yet.
            let up = prometheus.query("up == 1").unwrap_or_default();
            Ok((up.len() == 2).then_some(()))
        })
        .with_context(|| prometheus.process.output())?;
        Ok(prometheus)
    }

    fn api(&self, path: &str, data: &[&str]) -> Result<Value> {
        let url = format!("http://{PROMETHEUS}/api/v1/{path}");
        let mut argv = vec!["curl", "-sS", "--get", &url];
        data.iter().for_each(|data| argv.extend(["--data-urlencode", data]));
        let answer: Value = serde_json::from_str(&self.ns.run(&argv)?)?;
        ensure!(answer["status"] == "success", "{path} {data:?}: {answer}");
        Ok(answer["data"].clone())
    }

    /// Returns the current values of a PromQL expression, without `NaN`.
    fn query(&self, expression: &str) -> Result<Vec<String>> {
        let data = self.api("query", &[&format!("query={expression}")])?;
        let series = data["result"].as_array().context("no result")?;
        let values = series.iter().filter_map(|one| one["value"][1].as_str().map(str::to_owned));
        Ok(values.filter(|value| value != "NaN").collect())
    }
}

/// Checks that every panel of a dashboard has data, except that [`EMPTY_PANELS`] have none.
fn look_at_dashboard(prometheus: &Prometheus, dist: &str) -> Outcome {
    let text = std::fs::read_to_string(Path::new(dist).join("dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("a dashboard has panels")?;
    ensure!(panels.len() > 10, "{dist}: only {} panels", panels.len());
    for panel in panels {
        let title = panel["title"].as_str().context("a panel has a title")?;
        for target in panel["targets"].as_array().context("a panel has targets")? {
            let expression = target["expr"].as_str().context("a target has an expression")?;
            let expression = expression.replace("$instance", ".*").replace("$__rate_interval", RATE_INTERVAL);
            ensure!(
                !expression.contains('$'),
                "{title}: a variable that the case does not know: {expression}"
            );
            if EMPTY_PANELS.contains(&title) {
                let values = prometheus.query(&expression)?;
                ensure!(values.is_empty(), "{title} is not empty: {expression} is {values:?}");
                continue;
            }
            wait_for(&format!("{title} ({expression}) to show something"), mobile_tests::PATIENCE, || {
                Ok((!prometheus.query(&expression)?.is_empty()).then_some(()))
            })?;
        }
    }
    Ok(())
}

#[test]
fn prometheus_scrapes_both_every_panel_shows_something_and_no_alert_fires() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let relay_metrics = format!("{}:9478", addr::RELAY4);
    bed.relay.configure("metrics", "listen", relay_metrics.as_str())?;
    bed.start()?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    assert_eq!(talk.request("before")?, "before");
    bed.agent.cli(&["use", "wlan0"])?.ok()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    assert_eq!(talk.request("after")?, "after");
    for (ns, listen, prefix) in
        [(&bed.lab.host, METRICS, "mobile_"), (&bed.lab.relay, &relay_metrics, "homerelay_")]
    {
        let (text, _) = page(ns, listen, "/metrics")?;
        ns.feed(&["promtool", "check", "metrics"], &text)?;
        let helped = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next());
        assert_eq!(helped.collect::<BTreeSet<_>>(), documented(prefix));
        assert_eq!(unexplained(&text), Vec::<String>::new());
        assert_eq!(unexplained("# HELP m `a`.\nm{reason=\"a\"} 1\nm{reason=\"b\"} 1\n"), ["m: b"]);
        assert_eq!(page(ns, listen, "/healthz")?, ("ok\n".to_owned(), "200".to_owned()), "{prefix}");
    }

    let prometheus = Prometheus::start(&bed.lab.host, bed.lab.dir(), &relay_metrics)?;
    for dist in DISTS {
        look_at_dashboard(&prometheus, dist)?;
    }
    let rules = wait_for("the rules to be evaluated", mobile_tests::PATIENCE, || {
        let groups = prometheus.api("rules", &[])?["groups"].clone();
        let groups = groups.as_array().cloned().unwrap_or_default();
        let rules: Vec<Value> =
            groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect();
        Ok(rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules))
    })?;
    assert!(rules.len() > 10, "{rules:?}");
    for rule in &rules {
        assert!(rule["health"] == "ok" && rule["state"] == "inactive", "{rule}");
    }
    drop(prometheus);
    drop(talk);
    bed.finish()
}

#[test]
fn healthz_says_why_not() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.expect_warning("relay");
    bed.agent.start()?;
    let (reason, status) = page(&bed.lab.host, METRICS, "/healthz")?;
    assert_eq!((reason.as_str(), status.as_str()), ("no path to the relay is active\n", "503"));
    bed.relay.start()?;
    bed.agent.wait_connected()?;
    assert_eq!(page(&bed.lab.host, METRICS, "/healthz")?.1, "200");
    bed.relay.stop()?;
    wait_for("the agent to be unwell", mobile_tests::PATIENCE, || {
        Ok((page(&bed.lab.host, METRICS, "/healthz")?.1 == "503").then_some(()))
    })?;
    bed.finish()
}
