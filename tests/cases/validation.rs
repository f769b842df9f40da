//! `check` and the daemon judge a configuration alike: what one fails for, the other refuses, in
//! the same words.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use mobile_tests::{PATIENCE, TcpService, Testbed, finish_within};
use serde_json::Value;

use crate::{Outcome, installed_without_delay};

/// A setting of a configuration file: section, key and value.
type Setting = (&'static str, &'static str, toml::Value);

/// The port that another program uses in both machines.
const TAKEN: u16 = 9555;

fn setting(section: &'static str, key: &'static str, value: impl Into<toml::Value>) -> Setting {
    (section, key, value.into())
}

/// Writes the configuration `good` to `path`, changed by one setting.
fn write_with(path: &Path, good: &str, (section, key, value): &Setting) -> anyhow::Result<()> {
    let mut config: toml::Table = good.parse()?;
    let section = config.entry(*section).or_insert_with(|| toml::Table::new().into());
    section.as_table_mut().context("a section")?.insert((*key).to_owned(), value.clone());
    Ok(std::fs::write(path, toml::to_string(&config)?)?)
}

/// Runs `check --json`, which must fail, and returns the state of every topic that failed, except
/// for trials in which `check` creates what the daemon only reaches later.
fn failures(mut check: Command, what: &Setting) -> anyhow::Result<Vec<String>> {
    let done = finish_within(check.arg("--json"), None, PATIENCE)?;
    assert_eq!(done.code(), 1, "check accepts {what:?}: {done:?}");
    let report: Value = serde_json::from_str(&done.stdout)?;
    let failed = report["findings"].as_array().into_iter().flatten();
    let failed = failed.filter(|finding| finding["level"] == "fail" && finding["topic"] != "eBPF");
    let seen = failed.map(|finding| finding["seen"].as_str().unwrap_or_default().to_owned());
    Ok(seen.collect())
}

/// Checks that the daemon (or `reload`) fails with every one of `failures`.
fn assert_refuses(mut daemon: Command, failures: &[String], what: &Setting) -> Outcome {
    let done = finish_within(&mut daemon, None, PATIENCE)?;
    assert_eq!(done.code(), 1, "the daemon accepts {what:?}: {done:?}");
    assert!(!failures.is_empty(), "{what:?}");
    for failure in failures {
        assert!(done.stderr.contains(failure), "{what:?}: no {failure:?} in {}", done.stderr);
    }
    Ok(())
}

/// Makes a key file that other users can read, and returns its path.
fn exposed_key(bed: &Testbed) -> anyhow::Result<String> {
    let key = bed.lab.dir().join("exposed.key").display().to_string();
    bed.agent.cli(&["keygen", "--out", &key])?.ok()?;
    bed.lab.host.run(&["chmod", "644", &key])?;
    Ok(key)
}

#[test]
fn the_relay_refuses_to_start_or_reload_with_what_its_check_fails_for() -> Outcome {
    let mut bed = installed_without_delay()?;
    let good = std::fs::read_to_string(bed.relay.config())?;
    let taken = TcpService::start(&bed.lab.relay, TAKEN, |_, _| {})?;
    bed.lab.relay.run(&["ip", "route", "add", "10.123.7.0/24", "dev", "wan0"])?;
    let reloadable = [
        setting("pool", "ipv4", "198.51.100.0/24"),
        setting("pool", "ipv4", "198.51.0.0/16"),
        setting("pool", "ipv4", "10.123.0.0/16"),
        setting("nat", "interface", "ppp7"),
        setting("dns", "servers", vec!["9.9.9.9", "127.0.0.53"]),
        setting("clients", "reach", "intranet"),
        setting("limits", "half_open", 0),
    ];
    let others = [
        setting("listen", "address", format!("[::]:{TAKEN}")),
        setting("listen", "address", "192.0.2.77:443"),
        setting("metrics", "listen", format!("127.0.0.1:{TAKEN}")),
        setting("metrics", "listen", "192.0.2.77:9478"),
        setting("metrics", "listen", "127.0.0.1:443"),
        setting("identity", "private_key_file", "no-such.key"),
        setting("identity", "private_key_file", exposed_key(&bed)?),
        setting("admin", "group", "no-such-group"),
        setting("admin", "socket", "/etc/passwd/relay.sock"),
        setting("admin", "socket", format!("/run/{}", "x".repeat(110))),
        setting("state", "dir", "/etc/passwd/state"),
        setting("tunnel", "device", "wan0"),
    ];
    for what in reloadable.iter().chain(&others) {
        write_with(bed.relay.config(), &good, what)?;
        let failures = failures(bed.relay.command(&["check"]), what)?;
        assert_refuses(bed.relay.command(&["serve"]), &failures, what)?;
    }
    std::fs::write(bed.relay.config(), &good)?;
    bed.assert_clean()?;

    bed.relay.cli(&["check"])?.ok()?;
    bed.relay.start()?;
    let rules = || bed.lab.relay.run(&["nft", "-s", "list", "table", "inet", "home_relay"]);
    let before = rules()?;
    for what in &reloadable {
        write_with(bed.relay.config(), &good, what)?;
        let failures = failures(bed.relay.command(&["check"]), what)?;
        assert_refuses(bed.relay.command(&["reload"]), &failures, what)?;
        assert_eq!(rules()?, before, "{what:?}");
    }
    std::fs::write(bed.relay.config(), &good)?;
    assert_eq!(bed.relay.cli(&["reload"])?.ok()?, "");
    drop(taken);
    bed.expect_warning("the old one stays in force");
    bed.finish()
}

#[test]
fn the_agent_refuses_to_start_with_what_its_check_fails_for() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.relay.start()?;
    let good = std::fs::read_to_string(bed.agent.config())?;
    let taken = TcpService::start(&bed.lab.host, TAKEN, |_, _| {})?;
    bed.lab.host.run(&["ip", "route", "add", "10.123.7.0/24", "dev", "eth0", "table", "7777"])?;
    for what in [
        setting("relay", "endpoint", "relay"),
        setting("relay", "public_key", "short"),
        setting("identity", "private_key_file", "no-such.key"),
        setting("identity", "private_key_file", exposed_key(&bed)?),
        setting("routing", "table", 7777),
        setting("routing", "table", 254),
        setting("routing", "mark_mask", 1),
        setting("tunnel", "device", "a-name-that-is-too-long"),
        setting("metrics", "listen", format!("127.0.0.1:{TAKEN}")),
        setting("metrics", "listen", "192.0.2.77:9478"),
        setting("control", "group", "no-such-group"),
        setting("control", "socket", "/etc/passwd/agent.sock"),
        setting("bpf", "pin_dir", bed.lab.dir().join("pins").display().to_string()),
        setting("cgroup", "path", bed.lab.dir().join("cgroup").display().to_string()),
    ] {
        write_with(bed.agent.config(), &good, &what)?;
        let failures = failures(bed.agent.command(&["check"]), &what)?;
        assert_refuses(bed.agent.command(&["agent"]), &failures, &what)?;
    }
    std::fs::write(bed.agent.config(), &good)?;
    bed.lab.host.run(&["ip", "route", "flush", "table", "7777"])?;
    bed.relay.stop()?;
    bed.relay.cli(&["cleanup"])?.ok()?;
    bed.assert_clean()?;
    bed.relay.start()?;
    drop(taken);
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    bed.finish()
}

#[test]
fn an_invalid_environment_variable_is_blamed_on_the_variable() -> Outcome {
    let bed = installed_without_delay()?;
    for (mut command, variable, value, setting) in [
        (bed.relay.command(&["serve"]), "HOME_RELAY_LIMITS_HALF_OPEN", "0", "[limits] half_open"),
        (bed.relay.command(&["check"]), "HOME_RELAY_DNS_SERVERS", "127.0.0.1", "[dns] servers"),
        (bed.agent.command(&["agent"]), "MOBILE_ROUTING_TABLE", "254", "[routing] table"),
        (bed.agent.command(&["status"]), "MOBILE_RELAY_ENDPOINT", "relay", "[relay] endpoint"),
    ] {
        let done = finish_within(command.env(variable, value), None, PATIENCE)?;
        assert_eq!(done.code(), 1, "{done:?}");
        let said = done.stdout + &done.stderr;
        assert!(said.contains(&format!("environment variable {variable}: {setting}")), "{said}");
    }
    bed.finish()
}
