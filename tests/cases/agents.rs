//! Several agents on one machine, in one network namespace.

use anyhow::{Context as _, ensure};
use mobile_tests::{Agent, PATIENCE, Testbed, addr, finish_within, until};
use toml::Value;

use crate::{Outcome, ip_of, urls};

/// Installs an agent beside the testbed's, in the same network namespace, that shares nothing with
/// it.
fn second(bed: &Testbed) -> anyhow::Result<Agent> {
    let agent = Agent::install_in(&bed.lab, &bed.lab.host, "second", &bed.relay)?;
    agent.use_default("metrics", "listen")?;
    agent.configure("tunnel", "device", "mobile1")?;
    for (key, number) in [("table", 7710), ("relay_table", 7711), ("rule_priority", 4910)] {
        agent.configure("routing", key, number)?;
    }
    Ok(agent)
}

/// Checks that a new connection of a mobile process of `agent` is carried by the tunnel.
fn works(agent: &Agent) -> Outcome {
    let mut fetch = agent.run(&["curl", "-s", "-m", "10", &urls("/ip")[0]]);
    let seen = ip_of(&finish_within(&mut fetch, None, PATIENCE)?.ok()?);
    ensure!(seen == addr::RELAY4, "seen as {seen}");
    Ok(())
}

#[test]
fn a_second_agent_is_refused_what_a_running_one_uses_by_name_and_harms_nothing() -> Outcome {
    let bed = Testbed::new()?;
    let second = second(&bed)?;
    let own = std::fs::read(second.config())?;
    let pid = bed.agent.pid().context("the agent does not run")?;
    let shared = |path: &std::path::Path| Value::from(path.display().to_string());
    for (section, key, value) in [
        ("bpf", "pin_dir", shared(&bed.agent.pin_dir)),
        ("cgroup", "path", shared(&bed.agent.cgroup)),
        ("cgroup", "slice", shared(&bed.agent.slice)),
        ("control", "socket", shared(&bed.agent.config().with_file_name("agent.sock"))),
        ("tunnel", "device", Value::from("mobile0")),
        ("routing", "table", Value::from(7700)),
        ("routing", "relay_table", Value::from(7701)),
        ("routing", "rule_priority", Value::from(4900)),
    ] {
        second.configure(section, key, value.clone())?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let expected = format!("[{section}] {key} {text} is in use by agent {pid} (");
        let said = finish_within(&mut second.command(&["agent"]), None, PATIENCE)?;
        ensure!(said.code() == 1 && said.stderr.contains(&expected), "no {expected:?}: {said:?}");
        let found = second.cli(&["check"])?;
        ensure!(found.code() == 1 && found.stdout.contains(&expected), "no {expected:?}: {found:?}");
        let cleaned = second.cli(&["cleanup"])?;
        ensure!(cleaned.code() == 0, "{cleaned:?}");
        let is_object = !matches!(key, "slice" | "socket" | "rule_priority");
        ensure!(cleaned.stderr.contains(&expected) == is_object, "{cleaned:?}");
        works(&bed.agent).context(expected)?;
        std::fs::write(second.config(), &own)?;
    }
    bed.finish()
}

#[test]
fn two_agents_in_one_network_namespace_that_share_nothing_both_work_and_clean_up_their_own() -> Outcome {
    let bed = Testbed::new()?;
    let mut second = second(&bed)?;
    second.start()?;
    second.wait_connected()?;
    works(&second)?;
    works(&bed.agent)?;
    // What a killed agent leaves belongs to nobody: the next one adopts it.
    second.kill()?;
    works(&bed.agent)?;
    second.start()?;
    second.wait_connected()?;
    works(&second)?;
    second.cli(&["cleanup"])?.ok()?;
    until("the second agent's device to go", || {
        bed.lab.host.run(&["ip", "link", "show", "mobile1"]).is_err()
    })?;
    works(&bed.agent)?;
    bed.finish()
}

#[test]
fn a_program_that_keeps_removing_the_rules_does_not_flood_the_log() -> Outcome {
    let mut bed = Testbed::new()?;
    let removals = "for i in $(seq 60); do ip -4 rule del table 7700 2>/dev/null; sleep 0.03; done; true";
    bed.lab.host.run(&["sh", "-c", removals])?;
    until("the rules to be back", || works(&bed.agent).is_ok())?;
    let restored = bed.agent.counter("mobile_routing_restored_total")?;
    ensure!(restored >= 20, "too few repairs to mean anything: {restored}");
    let log = bed.agent.log();
    let lines = log.lines().filter(|line| line.contains("put back")).count();
    ensure!((1..=3).contains(&lines), "{lines} lines about {restored} repairs:\n{log}");
    bed.expect_warning("put back");
    bed.finish()
}
