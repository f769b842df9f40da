//! Ports of the relay that are forwarded to a client.

use mobile_tests::{
    Agent, LabOptions, LineProcess, Services, TcpService, Terminal, Testbed, UplinkName, addr, port, until,
};

use crate::Outcome;

/// Returns `address:port` of the relay for both families.
fn at_relay(port: u16) -> [String; 2] {
    [format!("{}:{port}", addr::RELAY4), format!("[{}]:{port}", addr::RELAY6)]
}

/// Returns whether a connection from the server's machine is accepted.
fn answers(bed: &Testbed, address: &str) -> bool {
    let tool = mobile_tests::program("labtool").expect("built");
    LineProcess::start(bed.lab.server.command(tool).args(["tcp", address]))
        .and_then(|mut talk| talk.next_line_within(std::time::Duration::from_secs(2)))
        .is_ok_and(|said| said.starts_with("connected "))
}

#[test]
fn ssh_to_the_laptop_through_the_relays_port_keeps_its_session_over_handovers() -> Outcome {
    let mut bed = Testbed::new()?;
    bed.relay.cli(&["forward", "add", "tcp", "2222", "laptop:22"])?.ok()?;
    let relay = addr::RELAY4.to_string();
    let _sshd = Services::sshd(&bed.lab.host, bed.lab.dir(), &[&format!("[{relay}]:2222")])?;
    let file = |name: &str| bed.lab.dir().join(name).display().to_string();
    let known = format!("UserKnownHostsFile={}", file("known_hosts"));
    let mut command = bed.lab.server.command("ssh");
    command.args(["-F", "none", "-tt", "-p", "2222", "-i", &file("id"), "-o", &known]);
    let mut ssh = Terminal::start(command.args([&format!("root@{relay}"), "/bin/sh"]))?;
    ssh.expect("# ")?;
    // The laptop sees the server's own address and not the relay's, so sshd's log is useful.
    ssh.send("echo from ${SSH_CONNECTION%% *}.\n")?;
    ssh.expect(&format!("from {}.", addr::SERVER4))?;
    for (number, uplink) in [UplinkName::Wlan, UplinkName::Eth].into_iter().enumerate() {
        match uplink {
            UplinkName::Wlan => bed.lab.eth().cut()?,
            UplinkName::Eth => bed.lab.eth().bring_up()?,
        }
        bed.agent.wait_active(uplink)?;
        ssh.send(&format!("echo still $(({number} + 40))\n"))?;
        ssh.expect(&format!("still {}", number + 40))?;
    }
    ssh.send("exit 3\n")?;
    assert_eq!(ssh.wait()?.code(), Some(3));
    bed.expect_quick_replug();
    bed.finish()
}

#[test]
fn forwards_are_in_force_at_once_survive_a_restart_and_end_with_their_client() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    // Added before the relay runs: stored, and in force once it does.
    bed.relay.cli(&["forward", "add", "tcp", "2001", "laptop:7"])?.ok()?;
    bed.start()?;
    let _echo = TcpService::echo(&bed.lab.host, port::ECHO)?;
    bed.relay.cli(&["forward", "add", "tcp", "2002", "laptop:7"])?.ok()?;
    for address in [at_relay(2001), at_relay(2002)].concat() {
        assert!(answers(&bed, &address), "{address}");
    }
    let listed: serde_json::Value =
        serde_json::from_str(&bed.relay.cli(&["forward", "list", "--json"])?.ok()?)?;
    assert_eq!(listed[1], serde_json::json!({"protocol": "tcp", "port": 2002, "client": "laptop", "to": 7}));

    let tool = mobile_tests::program("labtool")?;
    let mut talk = LineProcess::start(bed.lab.server.command(&tool).args(["tcp", &at_relay(2002)[0]]))?;
    talk.next_line()?;
    bed.relay.stop()?;
    bed.relay.start()?;
    bed.agent.wait_connected()?;
    assert_eq!(talk.request("after the restart")?, "after the restart");
    bed.relay.cli(&["forward", "del", "tcp", "2001"])?.ok()?;
    assert_eq!(talk.request("still")?, "still");
    for address in at_relay(2001) {
        assert!(!answers(&bed, &address), "{address} answers though it was deleted");
    }
    drop(talk);
    bed.relay.cli(&["revoke", "laptop"])?.ok()?;
    assert_eq!(bed.relay.cli(&["forward", "list", "--json"])?.ok()?.trim(), "[]");
    let rules = bed.lab.relay.run(&["nft", "list", "table", "inet", "home_relay"])?;
    assert!(!rules.contains("dnat ip"), "{rules}");
    bed.expect_warning("relay");
    bed.expect_warning("revoked");
    bed.expect_warning("authori");
    bed.finish()
}

#[test]
fn forwards_that_cannot_work_are_refused_and_change_nothing() -> Outcome {
    let bed = Testbed::new()?;
    let _service = TcpService::start(&bed.lab.relay, 2022, |_, _| {})?;
    let other = Agent::install_in(&bed.lab, &bed.lab.visited[1].clone(), "desktop", &bed.relay)?;
    bed.relay.cli(&["forward", "add", "tcp", "2001", "laptop:7"])?.ok()?;
    let rules = || bed.lab.relay.run(&["nft", "list", "table", "inet", "home_relay"]);
    let before = rules()?;
    for (args, code, said) in [
        (["tcp", "443", "laptop:22"], 1, "[listen] address"),
        (["tcp", "2022", "laptop:22"], 1, "listens on tcp port 2022"),
        (["tcp", "2001", "desktop:7"], 1, "tcp port 2001 leads to laptop:7"),
        (["tcp", "2003", "phone:22"], 1, "no client named \"phone\""),
        (["tcp", "2003", "laptop"], 2, "laptop:22"),
        (["tcp", "0", "laptop:22"], 2, "0"),
    ] {
        let done = bed.relay.cli(&[&["forward", "add"], &args[..]].concat())?;
        assert_eq!(done.code(), code, "{args:?}: {done:?}");
        assert!(done.stderr.contains(said), "{args:?}: {done:?}");
    }
    let done = bed.relay.cli(&["forward", "del", "udp", "2001"])?;
    assert!(done.code() == 1 && done.stderr.contains("udp port 2001 leads to no client"), "{done:?}");
    // Adding the same forward again is not a conflict.
    bed.relay.cli(&["forward", "add", "tcp", "2001", "laptop:7"])?.ok()?;
    assert_eq!(rules()?, before);
    drop(other);
    until("the relay to be as before", || bed.relay.sessions().is_ok_and(|sessions| sessions.len() == 1))?;
    bed.finish()
}
