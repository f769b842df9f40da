//! Keys of the relay and of a client are replaced, and the relay moves, while connections live.

use std::time::Instant;

use mobile_tests::{Agent, PATIENCE, RELAY_PORT, Testbed, UplinkName, addr, until};
use serde_json::Value;

use crate::{Outcome, assert_echo, echo_sessions};

/// Returns what `home-relay key --json` prints.
fn state(bed: &Testbed) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&bed.relay.cli(&["key", "--json"])?.ok()?)?)
}

/// Waits until the relay knows that the client `name` knows what it announces.
fn wait_known(bed: &Testbed, name: &str, what: &str) -> Outcome {
    until(&format!("{name} to confirm the {what}"), || {
        let clients = state(bed).map(|state| state["clients"].clone()).unwrap_or_default();
        clients.as_array().is_some_and(|all| all.iter().any(|it| it["name"] == name && it[what] == true))
    })
}

fn restart(agent: &mut Agent) -> Outcome {
    agent.stop()?;
    agent.start()?;
    agent.wait_connected()
}

#[test]
fn a_relay_replaces_its_key_while_connections_live_and_names_who_does_not_know() -> Outcome {
    let mut bed = Testbed::new()?;
    let elsewhere = bed.lab.visited[1].clone();
    let mut away = Agent::install_in(&bed.lab, &elsewhere, "desktop", &bed.relay)?;
    let old = bed.relay.public_key.clone();
    assert_eq!(bed.relay.cli(&["key"])?.ok()?.trim(), old);
    let mut talks = echo_sessions(&bed)?;

    let begun = bed.relay.cli(&["key", "rotate"])?.ok()?;
    let next = begun.lines().find_map(|line| line.strip_prefix("next: ")).expect("the next key").to_owned();
    wait_known(&bed, "laptop", "knows_key")?;
    bed.agent.wait_status("the next key", |status| status["relay"]["next_public_key"] == *next)?;
    let refused = bed.relay.cli(&["key", "rotate", "--finish"])?;
    assert!(refused.code() == 1 && refused.stderr.contains("locked out: desktop;"), "{}", refused.stderr);
    let listed = bed.relay.cli(&["key"])?.ok()?;
    assert!(listed.contains("desktop  no") && listed.contains("laptop   yes"), "{listed}");
    // What clients have confirmed survives a restart of the relay.
    bed.agent.stop()?;
    bed.relay.stop()?;
    bed.relay.start()?;
    assert!(bed.relay.cli(&["key"])?.ok()?.contains("laptop   yes"));
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    assert_echo(&mut talks, "restarted")?;

    assert_eq!(bed.relay.cli(&["key", "rotate", "--finish", "--force"])?.ok()?.trim(), next);
    assert_echo(&mut talks, "on the old path")?;
    bed.lab.eth().remove_route()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    assert_echo(&mut talks, "on the standby path")?;
    restart(&mut bed.agent)?;
    bed.agent.wait_status("the new key", |status| {
        status["relay"]["public_key"] == *next && status["relay"]["configured_key_replaced"] == true
    })?;
    assert_echo(&mut talks, "with the old key in agent.toml")?;
    bed.agent.cli(&["check"])?.ok()?;

    away.start()?;
    away.wait_status("the refusal", |status| status["session"] == "refused")?;
    let cause = away.status()?["problem"].to_string();
    assert!(cause.contains(&next) && cause.contains(&old) && cause.contains("[relay] public_key"), "{cause}");
    away.stop()?;
    away.configure("relay", "public_key", next)?;
    away.start()?;
    away.wait_connected()?;
    away.stop()?;
    away.cli(&["cleanup"])?.ok()?;
    drop(talks);
    bed.finish()
}

#[test]
fn a_withdrawn_key_is_forgotten_and_invitations_of_a_rotation_outlive_it() -> Outcome {
    let bed = Testbed::new()?;
    bed.relay.cli(&["key", "rotate"])?.ok()?;
    wait_known(&bed, "laptop", "knows_key")?;
    bed.relay.cli(&["key", "rotate", "--cancel"])?.ok()?;
    bed.agent.wait_status("the old key alone", |status| status["relay"]["next_public_key"].is_null())?;

    bed.relay.cli(&["key", "rotate"])?.ok()?;
    let [early, late] = ["early", "late"].map(|name| bed.relay.invite(name, &[]));
    let (early, late) = (early?, late?);
    let elsewhere = bed.lab.visited[1].clone();
    let mut before = Agent::enroll_in(&bed.lab, &elsewhere, "early", &bed.relay, &early)?;
    wait_known(&bed, "early", "knows_key")?;
    wait_known(&bed, "laptop", "knows_key")?;
    // Both clients know the key, one of them by its enrolment alone.
    let key = bed.relay.cli(&["key", "rotate", "--finish"])?.ok()?.trim().to_owned();
    let mut after = Agent::enroll_in(&bed.lab, &elsewhere, "late", &bed.relay, &late)?;
    for (agent, configured) in [(&mut before, &bed.relay.public_key), (&mut after, &key)] {
        let text = std::fs::read_to_string(agent.config())?;
        assert!(text.contains(configured), "{text}");
        agent.start()?;
        agent.wait_connected()?;
        agent.stop()?;
        agent.cli(&["cleanup"])?.ok()?;
    }
    bed.finish()
}

#[test]
fn clients_follow_a_relay_that_moves_and_a_dead_endpoint_costs_a_moment() -> Outcome {
    let mut bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    // Nobody answers at an address of the server's network that is not in use.
    let dead = "192.0.2.77:443";
    bed.relay.cli(&["move", dead])?.ok()?;
    wait_known(&bed, "laptop", "knows_endpoint")?;
    let begun = Instant::now();
    restart(&mut bed.agent)?;
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    assert_echo(&mut talks, "beside a dead endpoint")?;

    let new = format!("[{}]:{RELAY_PORT}", addr::RELAY6);
    let moved = bed.relay.cli(&["move", &new])?.ok()?;
    assert!(moved.starts_with(&new), "{moved}");
    wait_known(&bed, "laptop", "knows_endpoint")?;
    bed.agent.wait_status("the endpoint", |status| status["relay"]["announced_endpoint"] == *new)?;
    // The old endpoint ends; its address stays, since connections are masqueraded behind it.
    bed.lab.relay.feed(
        &["nft", "-f", "-"],
        &format!(
            "table ip old {{ chain input {{ type filter hook input priority -300; ip daddr {} tcp dport {RELAY_PORT} drop\n }}\n}}\n",
            addr::RELAY4
        ),
    )?;
    // An idle path would be found dead only at its next keepalive.
    assert_echo(&mut talks, "moved")?;
    bed.agent.wait_status("a path to the new endpoint", |status| status["relay"]["address"] == *new)?;
    restart(&mut bed.agent)?;
    assert_echo(&mut talks, "moved, and restarted")?;
    let invitation = bed.relay.cli(&["invite", "tablet"])?.ok()?;
    let elsewhere = bed.lab.visited[1].clone();
    Agent::enroll_in(&bed.lab, &elsewhere, "tablet", &bed.relay, &invitation)?;

    bed.lab.relay.run(&["nft", "delete", "table", "ip", "old"])?;
    bed.relay.cli(&["move", "--cancel"])?.ok()?;
    bed.agent
        .wait_status("the old endpoint alone", |status| status["relay"]["announced_endpoint"].is_null())?;
    restart(&mut bed.agent)?;
    assert_echo(&mut talks, "back")?;
    drop(talks);
    bed.expect_warning("active path has gone silent");
    bed.finish()
}

#[test]
fn a_client_replaces_its_key_and_keeps_its_name_addresses_forwards_and_connections() -> Outcome {
    let mut bed = Testbed::new()?;
    bed.relay.cli(&["forward", "add", "tcp", "2001", "laptop:7"])?.ok()?;
    let before = bed.relay.client("laptop")?;
    let forwards = bed.relay.cli(&["forward", "list"])?.ok()?;
    let mut talks = echo_sessions(&bed)?;
    let old = bed.agent.public_key.clone();
    assert_eq!(bed.agent.cli(&["key"])?.ok()?.trim(), old);
    let file = bed.agent.config().with_file_name("agent.key");
    let stolen = bed.lab.dir().join("stolen");
    std::fs::create_dir(&stolen)?;
    std::fs::copy(&file, stolen.join("agent.key"))?;

    let rotated = bed.agent.cli(&["key", "rotate"])?;
    let note = rotated.stderr.clone();
    let new = rotated.ok()?.trim().to_owned();
    assert_ne!(new, old);
    assert_eq!(bed.agent.cli(&["key"])?.ok()?.trim(), new);
    if note.contains("restart the agent") {
        restart(&mut bed.agent)?;
    }
    assert_echo(&mut talks, "the new key is in use")?;
    bed.lab.eth().remove_route()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    assert_echo(&mut talks, "after a handover")?;
    // The next path is opened with the new key, and the relay then drops the old one.
    bed.lab.eth().set_routes()?;
    let after = || bed.relay.client("laptop");
    until("the new key to be the client's", || after().is_ok_and(|client| client["public_key"] == *new))?;
    assert_eq!([&after()?["ipv4"], &after()?["ipv6"]], [&before["ipv4"], &before["ipv6"]]);
    assert_eq!(bed.relay.cli(&["forward", "list"])?.ok()?, forwards);
    assert_eq!(bed.relay.sessions()?.len(), 1);

    // Whoever has the old key is refused.
    let config = stolen.join("agent.toml").display().to_string();
    std::fs::write(
        &config,
        format!(
            "relay.endpoint = \"{}:{RELAY_PORT}\"\nrelay.public_key = \"{}\"\n\
             identity.private_key_file = \"agent.key\"\nstate.dir = \"{}\"\n",
            addr::RELAY4,
            bed.relay.public_key,
            stolen.display()
        ),
    )?;
    let mut thief = bed.lab.host.command(mobile_tests::program("mobile")?);
    thief.args(["key", "rotate", "--config", &config]);
    let refused = mobile_tests::finish_within(&mut thief, None, PATIENCE)?;
    assert!(refused.code() == 1 && refused.stderr.contains("is not a client"), "{}", refused.stderr);
    assert!(!stolen.join("agent.key.next").exists());
    drop(talks);
    bed.finish()
}
