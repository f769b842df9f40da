//! The relay reloads its configuration without affecting clients that the changes do not concern.

use mobile_tests::{METRICS, PATIENCE, Relay, Testbed, port, until};
use nix::sys::signal::Signal;

use crate::{Outcome, server};

/// Returns the value of the relay's first metric whose name begins with `name`, or 0 without one.
fn metric(bed: &Testbed, name: &str) -> anyhow::Result<u64> {
    let text = bed.lab.relay.run(&["curl", "-sS", "--fail", &format!("http://{METRICS}/metrics")])?;
    let line = text.lines().find(|line| line.starts_with(name));
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
}

fn session(relay: &Relay) -> anyhow::Result<String> {
    Ok(relay.sessions()?.iter().map(|session| session["session"].to_string()).collect())
}

#[test]
fn a_reload_changes_what_it_can_names_what_it_cannot_and_ends_no_session() -> Outcome {
    let mut bed = Testbed::new()?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    assert_eq!(talk.request("before")?, "before");
    let before = session(&bed.relay)?;

    bed.relay.configure("dns", "servers", vec!["192.0.2.2".to_owned()])?;
    bed.relay.configure("limits", "half_open", 77)?;
    bed.relay.configure("nat", "interface", "wan0")?;
    bed.relay.configure("tunnel", "mtu", 1400)?;
    let done = bed.relay.cli(&["reload"])?;
    assert_eq!(done.code(), 0, "{done:?}");
    assert_eq!(done.stdout, "[dns] servers\n[limits] half_open\n[nat] interface\n");
    assert_eq!(done.stderr, "[tunnel] mtu keeps its value until the relay is restarted\n");
    until("the resolver to be pushed", || {
        bed.agent.status().is_ok_and(|status| status["dns"][0] == "192.0.2.2")
    })?;
    let rules = bed.lab.relay.run(&["nft", "list", "table", "inet", "home_relay"])?;
    assert!(rules.contains("oifname \"wan0\" masquerade"), "{rules}");
    assert!(bed.lab.relay.run(&["ip", "link", "show", "home0"])?.contains("mtu 1500"));
    assert_eq!(talk.request("after")?, "after");
    assert_eq!(session(&bed.relay)?, before);
    assert_eq!(metric(&bed, "homerelay_reloads_total{outcome=\"done\"}")?, 1);

    // Again by signal, with only a change that needs a restart.
    bed.relay.signal(Signal::SIGHUP)?;
    until("the signal to be heard", || {
        metric(&bed, "homerelay_reloads_total{outcome=\"done\"}").is_ok_and(|count| count == 2)
    })?;
    let done = bed.relay.cli(&["reload", "--json"])?.ok()?;
    let done: serde_json::Value = serde_json::from_str(&done)?;
    assert_eq!(done, serde_json::json!({"changed": [], "kept": ["[tunnel] mtu"]}));
    assert_eq!(talk.request("still")?, "still");
    drop(talk);
    bed.expect_warning("need a restart");
    bed.finish()
}

#[test]
fn a_broken_configuration_is_refused_as_a_whole() -> Outcome {
    let mut bed = Testbed::new()?;
    let good = std::fs::read_to_string(bed.relay.config())?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    // The first value is valid, and must not come into force either.
    bed.relay.configure("dns", "servers", vec!["192.0.2.2".to_owned()])?;
    bed.relay.configure("limits", "half_open", 0)?;
    bed.relay.signal(Signal::SIGHUP)?;
    until("the refusal to be counted", || {
        metric(&bed, "homerelay_reloads_total{outcome=\"refused\"}").is_ok_and(|count| count == 1)
    })?;
    let refused = bed.relay.cli(&["reload"])?;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("[limits] half_open is 0"), "{refused:?}");
    assert!(bed.relay.log().contains("the old one stays in force"), "{}", bed.relay.log());
    assert_eq!(talk.request("after")?, "after");
    std::fs::write(bed.relay.config(), good)?;
    assert_eq!(bed.relay.cli(&["reload"])?.ok()?, "", "nothing had changed");
    assert_eq!(bed.agent.status()?["dns"], serde_json::json!([]));
    drop(talk);
    bed.relay.stop()?;
    let alone = bed.relay.cli(&["reload"])?;
    assert!(alone.code() == 1 && alone.stderr.contains("no relay is running"), "{alone:?}");
    bed.expect_warning("the old one stays in force");
    // The agent warns about the relay that was stopped.
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_relay_that_was_restarted_has_its_clients_back_at_once() -> Outcome {
    let mut bed = Testbed::new()?;
    bed.relay.stop()?;
    bed.relay.start()?;
    let start = std::time::Instant::now();
    bed.agent.wait_connected()?;
    eprintln!("connected again {:?} after the relay listened", start.elapsed());
    assert!(start.elapsed() < PATIENCE / 4, "{:?}", start.elapsed());
    bed.expect_warning("relay");
    bed.finish()
}
