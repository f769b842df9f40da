//! The agent reloads its configuration and its key while connections continue.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use mobile_tests::{LabOptions, RELAY_PORT, Testbed, UplinkName, addr, port, until};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{Outcome, server};

/// The user id of `nobody`, whose files the agent can read only with CAP_DAC_OVERRIDE.
const NOBODY: u32 = 65_534;

fn hide(path: &Path) -> Outcome {
    chown(path, Some(NOBODY), Some(NOBODY))?;
    Ok(set_permissions(path, Permissions::from_mode(0o600))?)
}

#[test]
fn an_agent_that_reloads_changes_what_it_can_and_names_what_needs_a_restart() -> Outcome {
    let mut bed = Testbed::new()?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    assert_eq!(talk.request("before")?, "before");
    bed.agent.cli(&["bypass", "add", "203.0.113.0/24"])?.ok()?;

    bed.agent.configure("uplink", "prefer", vec!["wl*".to_owned()])?;
    bed.agent.configure("routing", "bypass", vec!["192.168.7.0/24".to_owned()])?;
    bed.agent.configure("tunnel", "mtu", 1400)?;
    bed.agent.configure("tunnel", "queue", "fifo")?;
    bed.agent.configure("control", "socket", bed.lab.dir().join("other.sock").display().to_string())?;
    // The confined agent may read neither file.
    hide(bed.agent.config())?;
    hide(&bed.agent.config().with_file_name("agent.key"))?;
    let done = bed.agent.cli(&["reload"])?;
    assert_eq!(done.code(), 0, "{done:?}");
    assert_eq!(done.stdout, "[routing] bypass\n[tunnel] mtu\n[uplink] prefer\n");
    let keeps = |key: &str| format!("{key} keeps its value until the agent is restarted\n");
    assert_eq!(done.stderr, keeps("[control] socket") + &keeps("[tunnel] queue"));
    bed.agent.wait_active(UplinkName::Wlan)?;
    let bypassed = bed.agent.cli(&["bypass", "list"])?.ok()?;
    assert_eq!(bypassed, "203.0.113.0/24\n192.168.7.0/24\n", "what `bypass add` added stays");
    until("the MTU to change", || {
        bed.lab.host.run(&["ip", "link", "show", "mobile0"]).is_ok_and(|link| link.contains("mtu 1400"))
    })?;
    assert_eq!(talk.request("after")?, "after");

    // Again by signal: the reverse.
    bed.agent.use_default("uplink", "prefer")?;
    bed.agent.configure("uplink", "exclude", vec!["wl*".to_owned()])?;
    bed.agent.use_default("tunnel", "queue")?;
    bed.agent.use_default("routing", "bypass")?;
    bed.agent.signal(Signal::SIGHUP)?;
    bed.agent.wait_active(UplinkName::Eth)?;
    assert_eq!(bed.agent.cli(&["bypass", "list"])?.ok()?, "203.0.113.0/24\n");
    let done: serde_json::Value = serde_json::from_str(&bed.agent.cli(&["reload", "--json"])?.ok()?)?;
    assert_eq!(done, json!({"changed": [], "kept": ["[control] socket"]}));
    assert_eq!(talk.request("still")?, "still");
    drop(talk);
    bed.expect_warning("need a restart");
    bed.finish()
}

#[test]
fn an_agent_refuses_a_broken_configuration_as_a_whole() -> Outcome {
    let mut bed = Testbed::new()?;
    let good = std::fs::read_to_string(bed.agent.config())?;
    // The first value is valid, and must not come into force either.
    let bad = format!("{good}[uplink]\nprefer = [\"wl*\"]\nexlude = []\n");
    std::fs::write(bed.agent.config(), &bad)?;
    bed.agent.signal(Signal::SIGHUP)?;
    let place = format!("agent.toml:{}: unknown key `exlude`", bad.lines().count());
    until("the refusal to be logged", || bed.agent.log().contains(&place))?;
    assert!(bed.agent.log().contains("the old one stays in force"), "{}", bed.agent.log());
    let refused = bed.agent.cli(&["reload"])?;
    assert!(refused.code() == 1 && refused.stderr.contains(&place), "{refused:?}");

    for (section, key, value) in
        [("identity", "private_key_file", "missing.key"), ("control", "group", "nosuchgroup")]
    {
        std::fs::write(bed.agent.config(), &good)?;
        bed.agent.configure(section, key, value)?;
        let refused = bed.agent.cli(&["reload"])?;
        assert!(refused.code() == 1 && refused.stderr.contains(value), "{refused:?}");
    }
    std::fs::write(bed.agent.config(), good)?;
    let unchanged = bed.agent.cli(&["reload"])?;
    assert_eq!((unchanged.code(), unchanged.stdout.as_str()), (0, ""), "{unchanged:?}");
    assert_eq!(bed.agent.status()?["active_uplink"], "eth0");
    bed.expect_warning("the old one stays in force");
    bed.finish()
}

#[test]
fn hang_ups_before_and_after_the_agent_is_ready_only_reload_it() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.relay.start()?;
    // The loop begins as soon as the agent blocks or catches SIGHUP, and signals its children too.
    bed.agent.start_under(&[
        "sh",
        "-c",
        "me=$$; (until [ \"$(cat /proc/$me/comm)\" = mobile ] && \
         grep -Eq '^Sig(Blk|Cgt):.*[13579bdf]$' /proc/$me/status; do :; done; \
         for i in $(seq 40); do kill -HUP $me $(pgrep -P $me -f agent-process-helper); sleep 0.02; done) & \
         exec \"$@\"",
        "sh",
    ]);
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    let reloads = || bed.agent.log().matches("configuration reloaded").count();
    until("the first signals to be heard", || reloads() > 0)?;
    let (pid, before) = (bed.agent.pid(), reloads());
    bed.agent.signal(Signal::SIGHUP)?;
    until("the next signal to be heard", || reloads() > before)?;
    bed.agent.cli(&["reload"])?.ok()?;
    assert_eq!(bed.agent.status()?["agent_pid"], json!(pid));
    bed.finish()
}

#[test]
fn a_new_key_in_place_of_the_old_one_is_used_for_the_next_paths() -> Outcome {
    let mut bed = Testbed::new()?;
    let key = bed.agent.config().with_file_name("agent.key");
    let next = key.with_file_name("next.key");
    let keygen = bed.agent.cli(&["keygen", "--out", &next.display().to_string()])?.ok()?;
    let public_key = keygen.trim();
    let addresses = bed.relay.authorize("successor", public_key)?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    std::fs::rename(&next, &key)?;
    hide(&key)?;
    assert_eq!(bed.agent.cli(&["reload"])?.ok()?, "[identity] private_key_file\n");
    assert_eq!(bed.agent.status()?["public_key"], public_key);
    assert_eq!(talk.request("the path stays")?, "the path stays");
    assert_eq!(bed.agent.status()?["addresses"][0], json!(bed.agent.address4));
    drop(talk);

    bed.relay.cli(&["revoke", "laptop"])?.ok()?;
    bed.agent.wait_status("the new key's addresses", |status| {
        status["session"] == "connected" && status["addresses"][0] == json!(addresses[0])
    })?;
    bed.expect_warnings_of_all_kinds();
    bed.finish()
}

#[test]
fn a_session_moves_to_the_relays_new_endpoint_once_that_answers() -> Outcome {
    let mut bed = Testbed::new()?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    // Nothing answers there: the session stays where it is.
    bed.agent.configure("relay", "endpoint", format!("{}:{}", addr::RELAY4, RELAY_PORT + 1))?;
    assert_eq!(bed.agent.cli(&["reload"])?.ok()?, "[relay] endpoint\n");
    for word in ["one", "two", "three"] {
        assert_eq!(talk.request(word)?, word);
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    bed.agent.configure("relay", "endpoint", format!("[{}]:{RELAY_PORT}", addr::RELAY6))?;
    bed.agent.cli(&["reload"])?.ok()?;
    let six = format!("[{}]:{RELAY_PORT}", addr::RELAY6);
    bed.agent.wait_status("the new endpoint", |status| status["relay"]["address"] == json!(six))?;
    assert_eq!(talk.request("moved")?, "moved");
    let status = bed.agent.status()?;
    assert_eq!(status["last_handover"]["cause"], "reloaded", "{status}");
    drop(talk);
    bed.expect_warning("relay not reachable over this uplink");
    bed.finish()
}
