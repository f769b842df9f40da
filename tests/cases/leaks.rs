//! No packet of a mobile process leaves by an uplink outside the tunnel.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mobile_tests::{
    Capture, CommandOutput, Lab, LineProcess, PATIENCE, RELAY_PORT, TcpService, Testbed, addr, finish_within,
    port, program, until,
};
use socket2::Protocol;

use crate::{Outcome, server};

/// The metric of system calls (`connect()`, `sendto()`) that the eBPF programs refused.
const REFUSED: &str = "mobile_selection_verdicts_total{verdict=\"refused\"}";

/// The metric of outgoing packets that the eBPF programs dropped.
const EGRESS_REFUSED: &str = "mobile_selection_events_total{event=\"egress_refused\"}";

/// The server's echo port over MPTCP; its other ports accept only TCP.
const MPTCP_ECHO: u16 = 2007;

/// Returns a capture filter that matches everything on an uplink except the tunnel and protocols of
/// the link itself.
///
/// The excepted protocols are ARP, neighbour discovery (ICMPv6 133 to 137) and multicast listener
/// reports (behind a hop-by-hop header).
fn outside_the_tunnel() -> String {
    format!(
        "not arp and not (ip6[6] == 58 and ip6[40] >= 133 and ip6[40] <= 137) and not ip6[6] == 0 \
         and not (host {} and tcp port {RELAY_PORT})",
        addr::RELAY4
    )
}

pub(crate) fn captures(bed: &Testbed) -> anyhow::Result<[Capture; 2]> {
    captures_in(&bed.lab)
}

/// Starts a capture of the packets outside the tunnel on each uplink of the host.
pub(crate) fn captures_in(lab: &Lab) -> anyhow::Result<[Capture; 2]> {
    let capture = |device| lab.capture(&lab.host, device, &outside_the_tunnel());
    Ok([capture("eth0")?, capture("wlan0")?])
}

/// Checks that the captures from [`captures`] saw one ordinary ping, which proves that they worked,
/// and nothing else.
pub(crate) fn assert_no_leak(bed: &Testbed, captures: [Capture; 2]) -> Outcome {
    assert_no_leak_in(&bed.lab, captures)
}

/// Checks that the captures from [`captures_in`] saw one ordinary ping, which proves that they
/// worked, and nothing else.
pub(crate) fn assert_no_leak_in(lab: &Lab, captures: [Capture; 2]) -> Outcome {
    for (capture, uplink) in captures.into_iter().zip([lab.eth(), lab.wlan()]) {
        lab.host.run(&["ping", "-n", "-c1", "-W5", "-I", uplink.device(), &addr::SERVER4.to_string()])?;
        until("the capture to see the ordinary ping and its answer", || capture.packets().len() >= 2)?;
        let packets = capture.stop()?;
        assert_eq!(packets.len(), 2, "{} leaked:\n{}", uplink.device(), packets.join("\n"));
        assert!(packets.iter().all(|packet| packet.contains("ICMP echo")), "{packets:?}");
    }
    Ok(())
}

/// Mobile processes that send all the time, over both long-lived and new TCP, UDP and ICMP sockets.
struct Senders {
    chatter: [LineProcess; 2],
    pings: [LineProcess; 2],
    shell: LineProcess,
}

impl Senders {
    fn start(bed: &Testbed) -> anyhow::Result<Self> {
        let [four, six] = server(port::ECHO);
        let chatter = |server: &str| bed.mobile_labtool(&["chatter", server, "50"]);
        let ping = |argv: &[&str]| LineProcess::start(&mut bed.agent.run(argv));
        let (target4, target6) = (addr::SERVER4.to_string(), addr::SERVER6.to_string());
        let mut senders = Self {
            chatter: [chatter(&four)?, chatter(&six)?],
            pings: [
                ping(&["ping", "-n", "-i", "0.1", &target4])?,
                ping(&["ping", "-n", "-i", "0.1", &target6])?,
            ],
            shell: LineProcess::start(&mut bed.agent.run(&["sh"]))?,
        };
        senders.wait_all_works()?;
        Ok(senders)
    }

    fn wait_all_works(&mut self) -> Outcome {
        for chatter in &mut self.chatter {
            chatter.take_lines();
            while !chatter.next_line()?.ends_with(": ok ok ok") {}
        }
        for ping in &mut self.pings {
            ping.take_lines();
            while !ping.next_line()?.contains("bytes from") {}
        }
        Ok(())
    }

    /// Starts new mobile processes that send over new sockets, and ignores whether sending
    /// succeeds: only the captures on the uplinks decide the case.
    fn try_new_sockets(&mut self) -> Outcome {
        let tool = program("labtool")?.display().to_string();
        let [four, six] = server(port::ECHO);
        for kind in ["udp", "udp-connected"] {
            for server in [&four, &six] {
                self.shell.send_line(&format!("echo lost | {tool} {kind} {server} >/dev/null"))?;
            }
        }
        for target in [addr::SERVER4.to_string(), addr::SERVER6.to_string()] {
            self.shell.send_line(&format!("ping -n -c 2 -i 0.1 -W 1 {target} >/dev/null 2>&1"))?;
        }
        self.shell.take_lines();
        assert_eq!(self.shell.request("echo done")?, "done");
        Ok(())
    }

    /// Waits until each `labtool chatter` process has opened and used ten more rounds of sockets,
    /// and checks that no send over UDP failed.
    fn wait_some_rounds(&mut self) -> Outcome {
        for chatter in &mut self.chatter {
            chatter.take_lines();
            for _ in 0..10 {
                let round = chatter.next_line()?;
                // Sending does not fail while the host is cut off (section 3.1 of the paper). Only
                // the connect() of a new TCP connection fails, by chatter's own timeout.
                assert!(round.contains(": ok ok "), "a send failed: {round}");
            }
        }
        Ok(())
    }
}

#[test]
fn nothing_leaks_while_the_agent_is_up() -> Outcome {
    let bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let mut senders = Senders::start(&bed)?;
    senders.try_new_sockets()?;
    senders.wait_some_rounds()?;
    assert_no_leak(&bed, captures)?;
    drop(senders);
    bed.finish()
}

#[test]
fn nothing_leaks_while_the_agent_reconnects() -> Outcome {
    let mut bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let mut senders = Senders::start(&bed)?;
    bed.relay.kill()?;
    bed.agent.wait_status("the loss of the relay to be seen", |status| status["session"] != "connected")?;
    senders.wait_some_rounds()?;
    senders.try_new_sockets()?;
    bed.relay.start()?;
    bed.agent.wait_connected()?;
    senders.wait_all_works()?;
    assert_no_leak(&bed, captures)?;
    drop(senders);
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn nothing_leaks_over_a_handover() -> Outcome {
    let bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let mut senders = Senders::start(&bed)?;
    for _ in 0..2 {
        bed.lab.eth().remove_route()?;
        bed.agent.wait_active(bed.lab.wlan().name)?;
        senders.wait_some_rounds()?;
        bed.lab.eth().bring_up()?;
        bed.agent.wait_active(bed.lab.eth().name)?;
        senders.wait_some_rounds()?;
    }
    assert_no_leak(&bed, captures)?;
    drop(senders);
    bed.finish()
}

#[test]
fn nothing_leaks_while_the_agent_is_killed() -> Outcome {
    let mut bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let mut senders = Senders::start(&bed)?;
    bed.agent.kill()?;
    senders.wait_some_rounds()?;
    senders.try_new_sockets()?;
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    senders.wait_all_works()?;
    assert_no_leak(&bed, captures)?;
    drop(senders);
    bed.finish()
}

#[test]
fn nothing_leaks_while_there_is_no_relay_from_the_start() -> Outcome {
    let mut bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    let captures = captures(&bed)?;
    // The agent has never connected, so there is not even a persistent address to send from.
    bed.agent.start()?;
    let tool = program("labtool")?.display().to_string();
    for server in server(port::ECHO) {
        for kind in ["udp", "udp-connected"] {
            let mut command = bed.agent.run(&[&tool, kind, &server]);
            let _either_way: CommandOutput = finish_within(&mut command, Some(b"lost\n"), PATIENCE)?;
        }
        let mut command = bed.agent.run(&["curl", "-s", "-m", "1", &format!("http://{server}/ip")]);
        assert!(!finish_within(&mut command, None, PATIENCE)?.status.success());
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_no_leak(&bed, captures)?;
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_mobile_socket_bound_to_an_uplinks_device_does_not_leave_by_it() -> Outcome {
    let bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let eth = bed.lab.eth();
    let ping = |target: &str| {
        let argv = ["ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "-I", eth.device(), target];
        finish_within(&mut bed.agent.run(&argv), None, PATIENCE)
    };
    // On-link neighbours, which need no router, and hosts behind a router.
    let neighbours = [eth.gateway4().to_string(), eth.gateway6().to_string()];
    for target in neighbours.iter().chain(&[addr::SERVER4.to_string(), addr::SERVER6.to_string()]) {
        assert!(!ping(target)?.status.success(), "{target}");
    }
    for url in crate::urls("/ip") {
        let argv = ["curl", "-s", "-m", "1", "--interface", eth.device(), &url];
        assert!(!finish_within(&mut bed.agent.run(&argv), None, PATIENCE)?.status.success(), "{url}");
    }
    assert!(bed.agent.counter(REFUSED)? > 0, "something else stopped them");
    let tool = program("labtool")?.display().to_string();
    for to in
        [format!("{}:7", neighbours[0]), format!("[{}]:7", neighbours[1])].iter().chain(&server(port::ECHO))
    {
        let argv = [&tool, "udp-on", eth.device(), to];
        let told = finish_within(&mut bed.agent.run(&argv), None, PATIENCE)?;
        assert!(!told.status.success(), "{to}: {told:?}");
    }
    assert_no_leak(&bed, captures)?;
    // Ordinary sockets reach them, and so do mobile ones whose destination is link-local.
    for neighbour in &neighbours {
        let to = SocketAddr::new(neighbour.parse()?, port::ECHO).to_string();
        bed.lab.host.run(&[&tool, "udp-on", eth.device(), &to])?;
        bed.lab.host.run(&["ping", "-n", "-c1", "-W5", "-I", eth.device(), neighbour])?;
    }
    let multicast = bed.lab.capture(&bed.lab.host, eth.device(), "dst host 224.0.0.1 or dst host ff02::1")?;
    for group in ["224.0.0.1", "ff02::1"] {
        let _nobody_need_answer = ping(group)?;
        multicast.wait_packet(group)?;
    }
    multicast.stop()?;
    bed.finish()
}

#[test]
fn the_first_datagram_of_a_socket_made_before_attach_takes_the_tunnel() -> Outcome {
    let bed = Testbed::new()?;
    for (server, relay) in
        server(port::WHOAMI).iter().zip([IpAddr::V4(addr::RELAY4), IpAddr::V6(addr::RELAY6)])
    {
        let mut talk = bed.ordinary_labtool(&["udp", server])?;
        assert_ne!(crate::ip_of(&talk.request("before")?), relay);
        let captures = captures(&bed)?;
        bed.agent.cli(&["attach", &talk.pid().to_string()])?.ok()?;
        assert_eq!(crate::ip_of(&talk.request("after")?), relay);
        assert_no_leak(&bed, captures)?;
        bed.agent.cli(&["detach", &talk.pid().to_string()])?.ok()?;
        assert_ne!(crate::ip_of(&talk.request("and again")?), relay);
    }
    bed.finish()
}

#[test]
fn the_first_datagram_of_a_process_that_nobody_told_the_agent_of_takes_the_tunnel() -> Outcome {
    let bed = Testbed::new()?;
    for (server, relay) in
        server(port::WHOAMI).iter().zip([IpAddr::V4(addr::RELAY4), IpAddr::V6(addr::RELAY6)])
    {
        let mut talk = bed.ordinary_labtool(&["udp", server])?;
        assert_ne!(crate::ip_of(&talk.request("before")?), relay);
        let captures = captures(&bed)?;
        // Not by `attach`, which handles existing sockets. A socket passed on by another process is
        // in the same state.
        std::fs::write(bed.agent.cgroup.join("cgroup.procs"), talk.pid().to_string())?;
        for message in ["first", "second"] {
            assert_eq!(crate::ip_of(&talk.request(message)?), relay, "{message}, {server}");
        }
        assert_no_leak(&bed, captures)?;
    }
    bed.finish()
}

#[test]
fn a_bypassed_neighbour_is_reached_by_a_mobile_socket_bound_to_the_device() -> Outcome {
    let mut bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    let neighbour = bed.lab.eth().gateway4().to_string();
    bed.agent.configure("routing", "bypass", vec![format!("{neighbour}/32")])?;
    bed.start()?;
    for bound in [&["-I", bed.lab.eth().device()][..], &[]] {
        let argv = [&["ping", "-n", "-c1", "-W5"], bound, &[neighbour.as_str()]].concat();
        finish_within(&mut bed.agent.run(&argv), None, PATIENCE)?.ok()?;
    }
    // The same with a running agent.
    let argv = ["ping", "-n", "-c1", "-W1", "-I", bed.lab.eth().device(), &neighbour];
    for (change, reached) in [("del", false), ("add", true), ("del", false)] {
        bed.agent.cli(&["bypass", change, &format!("{neighbour}/32")])?.ok()?;
        let ping = finish_within(&mut bed.agent.run(&argv), None, PATIENCE)?;
        assert_eq!(ping.status.success(), reached, "{change}: {ping:?}");
    }
    bed.finish()
}

#[test]
fn further_subflows_of_a_mobile_connection_are_stopped_however_many_sockets_others_hold() -> Outcome {
    let bed = Testbed::new()?;
    let Lab { host, server, .. } = &bed.lab;
    for ns in [host, server] {
        ns.run(&["ip", "mptcp", "limits", "set", "subflows", "2", "add_addr_accepted", "0"])?;
    }
    let _echo = TcpService::start_over(server, Protocol::MPTCP, MPTCP_ECHO, |mut stream, _| {
        let _ = stream.try_clone().and_then(|mut copy| std::io::copy(&mut copy, &mut stream));
    })?;
    let to = SocketAddr::new(addr::SERVER4.into(), MPTCP_ECHO).to_string();
    let mut connection = bed.mobile_labtool(&["pulse", "echo", "mptcp", &to])?;
    assert_eq!(connection.next_line()?, "connected");
    let mut others = bed.mobile_labtool(&["hold-mptcp", "19000"])?;
    assert_eq!(others.next_line()?, "ready");
    let captures = captures(&bed)?;
    // The new subflow is refused when it connects.
    let before = bed.agent.counter(REFUSED)?;
    let eth = bed.lab.eth();
    let address = eth.address4().to_string();
    host.run(&["ip", "mptcp", "endpoint", "add", &address, "dev", eth.device(), "subflow"])?;
    until("the further subflow to be stopped, or to leave", || {
        bed.agent.counter(REFUSED).is_ok_and(|now| now > before) || !captures[0].packets().is_empty()
    })?;
    assert_no_leak(&bed, captures)?;
    bed.finish()
}

#[test]
fn a_mobile_listener_bound_to_an_uplinks_device_answers_nobody_there() -> Outcome {
    const PORT: u16 = 4242;
    let bed = Testbed::new()?;
    let (eth, neighbour) = (bed.lab.eth(), &bed.lab.visited[1]);
    for address in [IpAddr::from(eth.address4()), eth.address6().into()] {
        let at = SocketAddr::new(address, PORT).to_string();
        let listen = ["accept-on", eth.device(), &at];
        let call = || {
            let mut curl = neighbour.command("curl");
            curl.args(["-s", "-m", "2", &format!("telnet://{at}")]);
            finish_within(&mut curl, Some(b""), PATIENCE)
        };
        let answers = format!("src host {address} and tcp src port {PORT}");
        let answers = bed.lab.capture(&bed.lab.host, eth.device(), &answers)?;
        // A listener made before the process was attached has no peer yet, like one made
        // afterwards.
        for is_attached in [false, true] {
            let before = bed.agent.counter(EGRESS_REFUSED)?;
            let mut listener =
                if is_attached { bed.ordinary_labtool(&listen)? } else { bed.mobile_labtool(&listen)? };
            assert_eq!(listener.next_line()?, "ready");
            if is_attached {
                bed.agent.cli(&["attach", &listener.pid().to_string()])?.ok()?;
            }
            let called = call()?;
            assert_eq!(answers.packets(), [] as [String; 0], "{is_attached}: {called:?}");
            assert!(bed.agent.counter(EGRESS_REFUSED)? > before, "something else stopped the answer");
            bed.agent.cli(&["detach", &listener.pid().to_string()])?.ok()?;
            if is_attached {
                // The capture sees an ordinary listener's answer, so it works.
                call()?;
                answers.wait_packet("Flags [S.]")?;
            }
        }
        answers.stop()?;
    }
    bed.finish()
}
