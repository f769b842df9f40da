//! Prometheus understands both programs.

use std::time::Duration;

use mobile_tests::{METRICS, Process, Testbed, addr, wait_for};

use crate::Outcome;

#[test]
fn promtool_accepts_both_outputs_and_prometheus_scrapes_them() -> Outcome {
    let mut bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    let relay_metrics = format!("{}:9478", addr::RELAY4);
    bed.relay.configure("metrics", "listen", relay_metrics.as_str())?;
    bed.start()?;
    for (ns, listen, prefix) in
        [(&bed.lab.host, METRICS, "mobile_"), (&bed.lab.relay, &relay_metrics, "homerelay_")]
    {
        let text = ns.run(&["curl", "-sS", "--fail", &format!("http://{listen}/metrics")])?;
        assert!(text.lines().any(|line| line.starts_with(prefix)), "{text}");
        ns.feed(&["promtool", "check", "metrics"], &text)?;
        let healthy = ns.run(&[
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("http://{listen}/healthz"),
        ])?;
        assert_eq!(healthy, "200", "{prefix}");
    }

    let config = bed.lab.dir().join("prometheus.yml");
    std::fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n\
             - {{job_name: mobile, static_configs: [{{targets: ['{METRICS}']}}]}}\n\
             - {{job_name: home-relay, static_configs: [{{targets: ['{relay_metrics}']}}]}}\n"
        ),
    )?;
    let mut command = bed.lab.host.command("prometheus");
    command.arg("--config.file").arg(&config).arg("--storage.tsdb.path").arg(bed.lab.dir().join("tsdb"));
    command.arg("--web.listen-address=127.0.0.1:9090");
    let prometheus = Process::start("prometheus", &mut command, &bed.lab.dir().join("prometheus.txt"))?;
    let query = |query: &str| -> anyhow::Result<Vec<serde_json::Value>> {
        let url = format!("http://127.0.0.1:9090/api/v1/query?query={query}");
        let answer: serde_json::Value = serde_json::from_str(&bed.lab.host.run(&["curl", "-sS", &url])?)?;
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    };
    wait_for("Prometheus to have scraped both", Duration::from_secs(40), || {
        let up = query("up")?;
        Ok((up.len() == 2 && up.iter().all(|target| target["value"][1] == "1")).then_some(()))
    })?;
    for job in ["mobile", "home-relay"] {
        let found = query(&format!("count(%7Bjob=%22{job}%22%7D)"))?;
        assert!(!found.is_empty(), "nothing stored of {job}");
    }
    drop(prometheus);
    bed.finish()
}
