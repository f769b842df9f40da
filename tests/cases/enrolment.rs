//! Enrolment by an invitation, and persistent addresses that the operator chooses.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use mobile_tests::{Agent, LabOptions, PATIENCE, Testbed, UplinkName, finish_within, program, until};

use crate::Outcome;

/// Runs `mobile enroll -`, which must fail with exit code 1, print nothing on stdout and write no
/// file. Returns its stderr.
fn refused(bed: &Testbed, name: &str, invitation: &str) -> anyhow::Result<String> {
    let config = bed.lab.dir().join(name).join("agent.toml");
    let mut enroll = bed.lab.host.command(program("mobile")?);
    enroll.args(["enroll", "-", "--config"]).arg(&config);
    let done = finish_within(&mut enroll, Some(invitation.as_bytes()), PATIENCE)?;
    assert_eq!((done.code(), done.stdout.as_str()), (1, ""), "{}", done.stderr);
    assert_eq!(files(config.parent().context("a directory")?), [""; 0], "{name} left something");
    Ok(done.stderr)
}

fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_laptop_joins_by_an_invitation_alone_and_nobody_joins_by_it_again() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let unknown = bed.relay.cli(&["invite", "tablet"])?;
    assert!(unknown.code() == 1 && unknown.stderr.contains("--endpoint"), "{}", unknown.stderr);
    bed.start()?;
    let invitation = bed.relay.invite("tablet", &[])?;
    assert_eq!(invitation.lines().count(), 1, "{invitation}");
    let pending = bed.relay.client("tablet")?;
    assert!(pending["public_key"].is_null() && pending["expires"].as_u64() > pending["created"].as_u64());
    assert!(bed.relay.cli(&["clients"])?.ok()?.contains("(invited, expires in "));

    let elsewhere = bed.lab.visited[1].clone();
    let mut tablet = Agent::enroll_in(&bed.lab, &elsewhere, "tablet", &bed.relay, &invitation)?;
    let client = bed.relay.client("tablet")?;
    assert_eq!([&client["ipv4"], &client["ipv6"]], [&pending["ipv4"], &pending["ipv6"]], "as was set aside");
    assert_eq!(
        [&client["ipv4"], &client["ipv6"]],
        [&*tablet.address4.to_string(), &*tablet.address6.to_string()]
    );
    assert!(client["expires"].is_null() && !tablet.public_key.is_empty());
    let dir = bed.lab.dir().join("tablet");
    assert_eq!(files(&dir), ["agent.key", "agent.toml", "state"]);
    for name in ["agent.key", "agent.toml"] {
        let mode = std::fs::metadata(dir.join(name))?.permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    tablet.start()?;
    tablet.wait_connected()?;

    let told = refused(&bed, "thief", &invitation)?;
    assert!(told.contains("already used") && told.contains("invite"), "{told}");
    let again = tablet.cli(&["enroll", invitation.trim()])?;
    assert!(again.code() == 1 && again.stderr.contains("exists already"), "{}", again.stderr);
    assert_eq!(bed.relay.counter("homerelay_enrolments_total{result=\"enrolled\"}")?, 1);
    assert_eq!(bed.relay.counter("homerelay_enrolments_total{result=\"used\"}")?, 1);

    // The token was read from stdin only and must appear nowhere else.
    let secret = invitation.trim().trim_start_matches("mobile-invite-1-");
    for text in [bed.relay.log(), tablet.log(), std::fs::read_to_string(tablet.config())?] {
        assert!(!text.contains(secret) && !text.contains(&secret[44..60]), "{text}");
    }
    // A revoked client is cut off, and its used invitation does not admit it again.
    bed.relay.cli(&["revoke", "tablet"])?.ok()?;
    tablet.wait_status("the refusal", |status| status["session"] == "refused")?;
    assert_eq!(bed.relay.sessions()?.len(), 1);
    tablet.stop()?;
    tablet.cli(&["cleanup"])?.ok()?;
    bed.finish()
}

#[test]
fn an_invalid_invitation_is_refused_with_the_reason_and_leaves_nothing() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let offline = bed.relay.invite("offline", &[])?;
    let told = refused(&bed, "down", &offline)?;
    assert!(told.contains("cannot reach") && told.contains("can still be used"), "{told}");
    bed.start()?;

    let expired = bed.relay.invite("late", &["--expires", "1s"])?;
    std::thread::sleep(Duration::from_millis(1100));
    let told = refused(&bed, "late", &expired)?;
    assert!(told.contains("has expired"), "{told}");

    let withdrawn = bed.relay.invite("withdrawn", &[])?;
    let revoked = bed.relay.cli(&["revoke", "withdrawn"])?;
    assert!(revoked.code() == 0 && revoked.stderr.contains("withdrew"), "{}", revoked.stderr);
    let told = refused(&bed, "withdrawn", &withdrawn)?;
    assert!(told.contains("knows no such invitation"), "{told}");

    let told = refused(&bed, "cut", &offline.trim()[..60])?;
    assert!(told.contains("incomplete or altered"), "{told}");
    let told = refused(&bed, "nonsense", "hello")?;
    assert!(told.contains("home-relay invite"), "{told}");
    for (result, count) in [("expired", 1), ("unknown", 1), ("enrolled", 0)] {
        assert_eq!(bed.relay.counter(&format!("homerelay_enrolments_total{{result=\"{result}\"}}"))?, count);
    }

    // A relay with another key takes its place and must not learn the token.
    bed.relay.stop()?;
    std::fs::remove_file(bed.relay.config().with_extension("key"))?;
    let other = bed.lab.dir().join("other.key").display().to_string();
    bed.agent.cli(&["keygen", "--out", &other])?.ok()?;
    std::fs::rename(&other, bed.relay.config().with_extension("key"))?;
    bed.agent.stop()?;
    bed.relay.start()?;
    let told = refused(&bed, "imposter", &offline)?;
    assert!(told.contains("not the relay of the invitation"), "{told}");
    assert_eq!(bed.relay.counter("homerelay_handshakes_total{result=\"enrolment\"}")?, 0);
    // The agent was connected when the relay stopped.
    bed.expect_warning("the peer is stopping");
    bed.expect_warning("Connection refused");
    bed.finish()
}

#[test]
fn a_qr_code_goes_to_the_terminal_and_the_line_to_the_pipe() -> Outcome {
    let bed = Testbed::installed(&LabOptions::default())?;
    let endpoint = ["--endpoint", "relay.example.org:443"];
    let shown = bed.relay.cli(&[&["invite", "phone", "--qr"][..], &endpoint].concat())?;
    assert!(shown.stderr.lines().filter(|line| line.contains('█')).count() > 10, "{}", shown.stderr);
    let line = shown.ok()?;
    assert!(line.lines().count() == 1 && line.starts_with("mobile-invite-1-"), "{line}");
    bed.finish()
}

#[test]
fn addresses_the_operator_chooses_reach_a_running_client() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.relay.configure("pool", "ipv4", "100.77.0.0/29")?;
    bed.start()?;
    let key = bed.agent.public_key.clone();
    let said = bed.relay.cli(&["authorize", "laptop", &key, "--ipv4", "100.77.0.5"])?.ok()?;
    assert_eq!(said.lines().next(), Some("100.77.0.5"), "{said}");
    bed.agent.wait_status("the new address", |status| {
        status["session"] == "connected" && status["addresses"].to_string().contains("100.77.0.5")
    })?;
    bed.agent.wait_active(UplinkName::Eth)?;
    let ping = ["ping", "-n", "-c", "1", "-W", "5", "100.77.0.5"];
    until("the new address to answer", || bed.lab.relay.run(&ping).is_ok())?;

    for (address, word) in
        [("100.77.0.5", "laptop"), ("100.77.0.1", "the relay's own"), ("10.1.1.1", "no pool")]
    {
        let refused = bed.relay.cli(&["invite", "b", "--endpoint", "x:1", "--ipv4", address])?;
        assert!(refused.code() == 1 && refused.stderr.contains(word), "{address}: {}", refused.stderr);
    }
    // Four addresses are left: three to assign, and one chosen by hand.
    let chosen = bed.relay.invite("chosen", &["--ipv4", "100.77.0.6"])?;
    for name in ["a", "b", "c"] {
        bed.relay.invite(name, &[])?;
    }
    let full = bed.relay.cli(&["invite", "d", "--endpoint", "x:1"])?;
    assert!(full.code() == 1 && full.stderr.contains("100.77.0.0/29 is exhausted"), "{}", full.stderr);
    assert_eq!(bed.relay.counter("homerelay_pool_exhausted_total")?, 1);
    assert!(bed.relay.log().contains("is exhausted"));
    let elsewhere = bed.lab.visited[1].clone();
    let other = Agent::enroll_in(&bed.lab, &elsewhere, "chosen", &bed.relay, &chosen)?;
    assert_eq!(IpAddr::V4(other.address4), "100.77.0.6".parse::<IpAddr>()?);

    // With another pool, each client that does not fit is named.
    bed.relay.stop()?;
    bed.relay.configure("pool", "ipv4", "100.78.0.0/24")?;
    bed.relay.start()?;
    let log = bed.relay.log();
    assert!(
        log.contains("[pool] changed") && log.contains("100.77.0.5") && log.contains("100.78.0.2"),
        "{log}"
    );
    bed.agent.wait_status("an address of the new pool", |status| {
        status["session"] == "connected" && status["addresses"].to_string().contains("100.78.0.")
    })?;
    bed.expect_warning("exhausted");
    // The address that the laptop left is assigned last.
    bed.expect_warning("[pool] has no unused address left");
    bed.expect_warning("[pool] changed");
    bed.expect_warning("relay");
    bed.finish()
}
