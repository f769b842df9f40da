//! Real interactive programs keep their sessions over handovers.

use std::time::Duration;

use mobile_tests::{Services, Terminal, Testbed, UplinkName, addr, port};

use crate::{Outcome, server};

#[test]
fn telnet_answers_after_the_loss_of_its_uplink_and_a_plain_one_does_not() -> Outcome {
    let bed = Testbed::new()?;
    let server = addr::SERVER4.to_string();
    let mobile = Terminal::start(&mut bed.agent.run(&["telnet", &server]))?;
    let plain = Terminal::start(bed.lab.host.command("telnet").arg(&server))?;
    for terminal in [&mobile, &plain] {
        terminal.expect("# ")?;
        terminal.send("echo before $((40 + 2))\n")?;
        terminal.expect("before 42")?;
    }
    bed.lab.eth().cut()?;
    bed.lab.eth().give_up_address()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    for terminal in [&mobile, &plain] {
        terminal.send("echo after $((40 + 3))\n")?;
    }
    mobile.expect("after 43")?;
    assert!(
        plain.expect_within("after 43", Duration::from_secs(1)).is_err(),
        "the plain one lives:\n{}",
        plain.transcript()
    );
    drop(plain);
    drop(mobile);
    bed.finish()
}

#[test]
fn ssh_keeps_its_session_over_handovers() -> Outcome {
    let mut bed = Testbed::new()?;
    let server = addr::SERVER4.to_string();
    let _sshd = Services::sshd(&bed.lab.server, bed.lab.dir(), &[&server])?;
    let file = |name: &str| bed.lab.dir().join(name).display().to_string();
    let known = format!("UserKnownHostsFile={}", file("known_hosts"));
    let target = format!("root@{server}");
    let argv = ["ssh", "-F", "none", "-tt", "-i", &file("id"), "-o", &known, &target, "/bin/sh"];
    let mut ssh = Terminal::start(&mut bed.agent.run(&argv))?;
    ssh.expect("# ")?;
    ssh.send("NUMBER=1\n")?;
    for (number, uplink) in [UplinkName::Wlan, UplinkName::Eth, UplinkName::Wlan].into_iter().enumerate() {
        match uplink {
            UplinkName::Wlan => bed.lab.eth().cut()?,
            UplinkName::Eth => bed.lab.eth().bring_up()?,
        }
        bed.agent.wait_active(uplink)?;
        ssh.send("NUMBER=$((NUMBER * 7)); echo still here $NUMBER\n")?;
        ssh.expect(&format!("still here {}", 7_u32.pow(u32::try_from(number)? + 1)))?;
    }
    ssh.send("exit 3\n")?;
    assert_eq!(ssh.wait()?.code(), Some(3));
    bed.expect_quick_replug();
    bed.finish()
}

/// The longest allowed gap between two echoed numbers, in milliseconds.
///
/// A handover takes up to a round trip and a half. A busy test machine takes longer, a lost inner
/// segment at least 0.2 s, and a dead path that the agent does not notice much longer than this.
const LONGEST_GAP_MS: f64 = 1_000.0;

#[test]
fn an_echo_session_pauses_for_less_than_a_second_when_its_uplink_goes() -> Outcome {
    let mut bed = Testbed::new()?;
    let [server, _] = server(port::ECHO);
    for (what, uplink) in
        [("carrier lost", UplinkName::Wlan), ("better uplink", UplinkName::Eth), ("down", UplinkName::Wlan)]
    {
        let mut gaps = bed.mobile_labtool(&["gaps", &server, "5", "2"])?;
        // The first answers come before the handover, the last ones after it.
        std::thread::sleep(Duration::from_millis(500));
        match what {
            "carrier lost" => bed.lab.eth().cut()?,
            "better uplink" => bed.lab.eth().bring_up()?,
            _ => bed.lab.eth().take_down()?,
        }
        bed.agent.wait_active(uplink)?;
        let report: serde_json::Value = serde_json::from_str(&gaps.next_line()?)?;
        eprintln!("{what}: {report}");
        assert!(
            report["longest_gap_ms"].as_f64().is_some_and(|gap| gap < LONGEST_GAP_MS),
            "{what}: {report}"
        );
        assert!(report["answers"].as_u64().is_some_and(|answers| answers > 100), "{what}: {report}");
    }
    bed.expect_quick_replug();
    bed.finish()
}
