//! New connections of mobile processes while there is no session: they wait or use the ordinary
//! route, as the setting `on_failure` says.

use std::net::IpAddr;
use std::time::Duration;

use mobile_tests::{LabOptions, LineProcess, Testbed, addr, port, until};
use toml::Value;

use crate::leaks::{assert_no_leak, captures};
use crate::{Outcome, ip_of, server, urls};

/// A wait longer than the grace period after which mobile processes may use the ordinary route.
const LONG: Duration = Duration::from_secs(11);

/// The metric that counts how many times the agent opened the ordinary route to mobile processes.
const OPENED: &str = "mobile_opened_total";

fn started(on_failure: &str) -> anyhow::Result<Testbed> {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.agent.configure("routing", "on_failure", Value::from(on_failure))?;
    bed.start()?;
    Ok(bed)
}

/// A mobile shell, whose child processes are mobile even if no agent runs.
struct Shell(LineProcess);

impl Shell {
    fn start(bed: &Testbed) -> anyhow::Result<Self> {
        Ok(Self(LineProcess::start(&mut bed.agent.run(&["sh"]))?))
    }

    /// Returns the source address that the server sees on a new connection of a mobile process, or
    /// `None` if the connection fails.
    fn seen(&mut self, url: &str) -> anyhow::Result<Option<IpAddr>> {
        let answer = self.0.request(&format!("curl -s -m 1 {url} || echo none"))?;
        Ok((answer != "none").then(|| ip_of(&answer)))
    }

    /// Waits until the server sees these source addresses on new IPv4 and IPv6 connections.
    fn expect_seen(&mut self, expected: [IpAddr; 2]) -> Outcome {
        for (url, expected) in urls("/ip").iter().zip(expected) {
            until(&format!("a new connection to come from {expected}"), || {
                self.seen(url).is_ok_and(|seen| seen == Some(expected))
            })?;
        }
        Ok(())
    }
}

fn direct(bed: &Testbed) -> [IpAddr; 2] {
    [bed.lab.eth().name.nat_address().into(), bed.lab.eth().address6().into()]
}

const RELAY: [IpAddr; 2] = [IpAddr::V4(addr::RELAY4), IpAddr::V6(addr::RELAY6)];

fn wait_open(bed: &Testbed) -> Outcome {
    bed.agent.wait_status("the failure to be open", |status| status["open"] == true)
}

/// Checks that an existing connection to the echo service still works.
fn assert_goes_on(talk: &mut LineProcess) -> Outcome {
    assert_eq!(talk.request("going on")?, "going on");
    Ok(())
}

#[test]
fn open_lets_new_connections_go_directly_while_there_is_no_session_and_old_ones_wait() -> Outcome {
    let mut bed = started("open")?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    let mut shell = Shell::start(&bed)?;
    assert_goes_on(&mut talk)?;
    let persistent = format!("host {} or host {}", bed.agent.address4, bed.agent.address6);
    let waiting = bed.lab.capture(&bed.lab.host, bed.lab.eth().device(), &persistent)?;
    shell.expect_seen(RELAY)?;
    assert_eq!(bed.agent.counter(OPENED)?, 0);

    // The relay is gone. A connection that begins within the grace period waits.
    bed.relay.kill()?;
    bed.agent.wait_status("the loss to be seen", |status| status["session"] != "connected")?;
    assert_eq!(shell.seen(&urls("/ip")[0])?, None);
    wait_open(&bed)?;
    talk.send_line("while it is open")?;
    shell.expect_seen(direct(&bed))?;
    assert_eq!((bed.agent.counter(OPENED)?, bed.agent.counter("mobile_open")?), (1, 1));
    let said = bed.agent.cli(&["status"])?.ok()?;
    assert!(said.contains("on failure open: new connections of mobile processes go direct until"), "{said}");
    let said = bed.agent.cli(&["explain", &addr::SERVER4.to_string()])?.ok()?;
    assert!(said.contains("on_failure is \"open\"") && said.contains("as every new connection"), "{said}");
    let said = bed.agent.cli(&["check"])?.stdout;
    assert!(said.contains("warn  on_failure: open: there is no session"), "{said}");

    // The relay returns.
    bed.relay.start()?;
    bed.agent.wait_connected()?;
    shell.expect_seen(RELAY)?;
    assert_eq!(talk.next_line()?, "while it is open");
    bed.agent.wait_status("the failure to be over", |status| status["open"] == false)?;

    // No agent is alive that could open the route.
    bed.agent.kill()?;
    shell.expect_seen(direct(&bed))?;
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    shell.expect_seen(RELAY)?;
    assert_goes_on(&mut talk)?;

    // Without an uplink there is no direct route either; afterwards no connection may be refused.
    for uplink in [bed.lab.eth(), bed.lab.wlan()] {
        uplink.take_down()?;
    }
    wait_open(&bed)?;
    assert_eq!(shell.seen(&urls("/ip")[0])?, None);
    bed.lab.eth().bring_up()?;
    bed.agent.wait_connected()?;
    shell.expect_seen(RELAY)?;
    assert_goes_on(&mut talk)?;
    // Counted since this agent's start.
    assert_eq!((bed.agent.counter(OPENED)?, bed.agent.counter("mobile_open")?), (1, 0));
    assert_eq!(waiting.stop()?, Vec::<String>::new());
    bed.expect_warning("relay");
    bed.expect_warning("go directly");
    bed.expect_quick_replug();
    bed.finish()
}

#[test]
fn closed_keeps_every_connection_in_the_tunnel_however_long_there_is_none() -> Outcome {
    let mut bed = started("closed")?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    let mut shell = Shell::start(&bed)?;
    let captures = captures(&bed)?;
    let nobody_gets_through = |shell: &mut Shell| -> Outcome {
        std::thread::sleep(LONG);
        for url in urls("/ip") {
            assert_eq!(shell.seen(&url)?, None, "{url}");
        }
        Ok(())
    };
    bed.relay.kill()?;
    nobody_gets_through(&mut shell)?;
    assert_eq!(bed.agent.status()?["open"], false);
    bed.relay.start()?;
    bed.agent.wait_connected()?;
    shell.expect_seen(RELAY)?;
    bed.agent.kill()?;
    nobody_gets_through(&mut shell)?;
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    shell.expect_seen(RELAY)?;
    assert_goes_on(&mut talk)?;
    assert_no_leak(&bed, captures)?;
    assert_eq!(bed.agent.counter(OPENED)?, 0);
    let said = bed.agent.cli(&["check"])?.stdout;
    assert!(said.contains("ok    on_failure: closed"), "{said}");
    bed.expect_warning("relay");
    bed.finish()
}
