//! Packets that a hostile visited network sends to a persistent address are neither delivered nor
//! answered.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mobile_tests::{
    Capture, Forger, LineProcess, Sniffer, TcpNumbers, Testbed, UplinkName, addr, port, until,
};

use crate::{Outcome, server};

/// A wait that is long enough for an answer over the lab's links, even on a busy machine.
const A_WHILE: Duration = Duration::from_millis(500);

/// A server port that occurs in forged packets only, so that captures can tell them apart.
const FORGED_PORT: u16 = 4242;

/// The metric of dropped packets that arrived for a persistent address on another device than the
/// tunnel's.
const DROPPED: &str = "mobile_ingress_dropped_packets_total";

/// The name of the counter of kernel objects (rules, routes, filters) that the agent restored.
const RESTORED: &str = "mobile_routing_restored_total";

/// The states of the agent in which the attacks are made, in this order.
const STATES: [&str; 3] = ["up", "killed", "restarted"];

fn start_again(bed: &mut Testbed) -> Outcome {
    bed.agent.start()?;
    bed.agent.wait_connected()
}

fn forgers(bed: &Testbed) -> anyhow::Result<[Forger; 2]> {
    let [wlan, eth] = UplinkName::ALL.map(|name| Forger::new(&bed.lab, name));
    Ok([wlan?, eth?])
}

/// Returns the host's persistent IPv4 and IPv6 addresses, each with the server's address of the
/// same family.
fn pairs(bed: &Testbed) -> [(IpAddr, IpAddr); 2] {
    let (four, six) = (bed.agent.address4, bed.agent.address6);
    [(four.into(), addr::SERVER4.into()), (six.into(), addr::SERVER6.into())]
}

/// Opens a mobile connection to the echo server, and returns it with the sequence numbers of its
/// next segments.
fn connection(bed: &Testbed, server: &str) -> anyhow::Result<(LineProcess, TcpNumbers)> {
    let sniffer = Sniffer::new(&bed.lab.host, "mobile0")?;
    let mut talk = bed.mobile_labtool(&["tcp", server])?;
    let client = talk.next_line()?.split(' ').nth(1).unwrap_or_default().parse()?;
    assert_eq!(talk.request("hello")?, "hello");
    let numbers = sniffer.numbers(client, server.parse()?)?;
    Ok((talk, numbers))
}

/// Sends a forged data segment with valid sequence numbers over each uplink, then forged resets,
/// and checks that none reaches the mobile process.
fn attack(bed: &Testbed, talk: &mut LineProcess, numbers: TcpNumbers, when: &str) -> Outcome {
    let TcpNumbers { client, server, sent, expected } = numbers;
    let said = |talk: &mut LineProcess| {
        std::thread::sleep(A_WHILE);
        talk.take_lines()
    };
    for forger in forgers(bed)? {
        forger.segment(server, client, "PA", [expected, sent], b"forged\n")?;
    }
    assert_eq!(said(talk), [""; 0], "{when}: a forged segment reached {client}");
    for forger in forgers(bed)? {
        forger.segment(server, client, "R", [expected, 0], b"")?;
        forger.segment(server, client, "RA", [expected, sent], b"")?;
    }
    assert_eq!(said(talk), [""; 0], "{when}: a forged reset reached {client}");
    Ok(())
}

#[test]
fn a_segment_or_reset_that_the_visited_network_forges_does_not_reach_a_mobile_connection() -> Outcome {
    let mut bed = Testbed::new()?;
    for when in STATES {
        let [four, six] = server(port::ECHO).map(|server| connection(&bed, &server));
        if when == "killed" {
            bed.agent.kill()?;
        }
        let mut talks = Vec::new();
        for connection in [four, six] {
            let (mut talk, numbers) = connection?;
            attack(&bed, &mut talk, numbers, when)?;
            talks.push(talk);
        }
        if when == "killed" {
            start_again(&mut bed)?;
        } else {
            // Two segments and four resets of each family; those sent while the agent was dead
            // count too.
            assert!(bed.agent.counter(DROPPED)? >= 12, "{when}");
        }
        for mut talk in talks {
            assert_eq!(talk.request("still here")?, "still here", "{when}");
        }
    }
    bed.finish()
}

/// Sends each kind of packet to `persistent` that a host would answer if the address were one of
/// its own.
fn probe(forger: &Forger, persistent: IpAddr, server: IpAddr) -> Outcome {
    let from = SocketAddr::new(server, FORGED_PORT);
    // A port without a listener, and the metrics port, whose answer would differ.
    for port in [40_000, 9478] {
        let to = SocketAddr::new(persistent, port);
        for flags in ["SA", "S", "A"] {
            forger.segment(from, to, flags, [1, 1], b"")?;
        }
        forger.datagram(from, to, b"anybody there?")?;
    }
    forger.ping(server, persistent)
}

fn listen(bed: &Testbed) -> anyhow::Result<[Capture; 3]> {
    let own = format!("src host {} or src host {}", bed.agent.address4, bed.agent.address6);
    let on = |device, filter: &str| bed.lab.capture(&bed.lab.host, device, filter);
    let answers = format!("port {FORGED_PORT} or icmp or icmp6");
    Ok([on("mobile0", &answers)?, on("eth0", &own)?, on("wlan0", &own)?])
}

#[test]
fn a_visited_network_cannot_find_out_who_has_a_persistent_address() -> Outcome {
    let mut bed = Testbed::new()?;
    let forgers = forgers(&bed)?;
    let arrivals = bed.lab.capture(&bed.lab.host, "eth0", &format!("port {FORGED_PORT}"))?;
    for when in STATES {
        match when {
            "killed" => bed.agent.kill()?,
            "restarted" => start_again(&mut bed)?,
            _ => {}
        }
        let captures = listen(&bed)?;
        for forger in &forgers {
            for (persistent, server) in pairs(&bed) {
                probe(forger, persistent, server)?;
            }
        }
        std::thread::sleep(A_WHILE);
        for capture in captures {
            let packets = capture.stop()?;
            assert!(packets.is_empty(), "{when}: the host answered:\n{}", packets.join("\n"));
        }
    }
    // Eight packets of each family in each state.
    until("the capture to have seen what was forged", || arrivals.packets().len() >= 48)?;
    arrivals.stop()?;
    bed.finish()
}

#[test]
fn an_uplink_does_not_say_that_it_has_a_persistent_address() -> Outcome {
    let mut bed = Testbed::new()?;
    for when in STATES {
        match when {
            "killed" => bed.agent.kill()?,
            "restarted" => start_again(&mut bed)?,
            _ => {}
        }
        for uplink in [bed.lab.eth(), bed.lab.wlan()] {
            let gateways: [IpAddr; 2] = [uplink.gateway4().into(), uplink.gateway6().into()];
            let own: [IpAddr; 2] = [uplink.address4().into(), uplink.address6().into()];
            for (i, (persistent, _)) in pairs(&bed).into_iter().enumerate() {
                let forger = Forger::new(&bed.lab, uplink.name)?;
                forger.ask_who_has(gateways[i], persistent)?;
                let name = uplink.device();
                assert!(!forger.hears_answer(persistent, A_WHILE)?, "{when}: {name} has {persistent}");
                // The host must answer for the address that the uplink has.
                forger.ask_who_has(gateways[i], own[i])?;
                assert!(forger.hears_answer(own[i], A_WHILE * 20)?, "{when}: {name} is deaf");
            }
        }
    }
    bed.finish()
}

#[test]
fn an_icmp_error_that_the_visited_network_forges_does_not_reach_a_mobile_socket() -> Outcome {
    let bed = Testbed::new()?;
    let eth = bed.lab.eth();
    let forger = Forger::new(&bed.lab, eth.name)?;
    let own: [(IpAddr, IpAddr); 2] =
        [(eth.gateway4().into(), eth.address4().into()), (eth.gateway6().into(), eth.address6().into())];
    for ((server, (persistent, _)), (gateway, own)) in server(port::ECHO).iter().zip(pairs(&bed)).zip(own) {
        let mut talk = bed.mobile_labtool(&["udp-connected", server])?;
        assert_eq!(talk.request("hello")?, "hello");
        let shown = bed.lab.host.run(&["ss", "-Hun", "dst", server])?;
        let port = shown
            .split_whitespace()
            .filter_map(|word| word.parse::<SocketAddr>().ok())
            .find(|address| address.ip() == persistent)
            .map(|address| address.port());
        let sender = SocketAddr::new(persistent, port.unwrap_or_default());
        // To the persistent address and to the uplink's own: the quoted packet determines the
        // socket.
        for to in [persistent, own] {
            forger.port_unreachable(gateway, to, [sender, server.parse()?])?;
        }
        std::thread::sleep(A_WHILE);
        assert_eq!(talk.take_lines(), [""; 0], "a forged error reached {sender}");
        assert_eq!(talk.request("still here")?, "still here");
    }
    bed.finish()
}

/// Returns the agent's nftables rules as text, without counter values.
fn tables(bed: &Testbed) -> anyhow::Result<String> {
    let script = "nft -s list table inet mobile_agent && nft -s list table arp mobile_agent";
    bed.lab.host.run(&["sh", "-c", script])
}

#[test]
fn an_ingress_filter_that_somebody_removes_or_changes_is_put_back() -> Outcome {
    let mut bed = Testbed::new()?;
    let before = tables(&bed)?;
    for address in [bed.agent.address4.to_string(), bed.agent.address6.to_string()] {
        assert!(before.contains(&format!("daddr {address} ")), "{before}");
    }
    bed.lab.host.feed(&["nft", "-f", "-"], "table inet theirs { }\n")?;
    let changes = [
        "flush ruleset",
        "delete table inet mobile_agent",
        "delete table arp mobile_agent",
        "flush chain inet mobile_agent foreign",
        "insert rule inet mobile_agent prerouting accept",
        "add table inet mobile_agent { flags dormant; }",
    ];
    for (done, change) in (1_u64..).zip(changes) {
        bed.lab.host.run(&["nft", change])?;
        until(&format!("the filter to be back after `{change}`"), || {
            tables(&bed).is_ok_and(|now| now == before)
                && bed.agent.counter(RESTORED).is_ok_and(|restored| restored >= done)
        })?;
    }
    // Tables of other programs must be left alone.
    bed.lab.host.run(&["nft", "add table inet theirs"])?;
    bed.lab.host.run(&["nft", "delete table inet theirs"])?;
    std::thread::sleep(A_WHILE);
    assert_eq!(bed.agent.counter(RESTORED)?, 6);
    // The next agent restores what was changed while no agent ran.
    bed.agent.kill()?;
    assert_eq!(tables(&bed)?, before);
    bed.lab.host.run(&["nft", "flush ruleset"])?;
    start_again(&mut bed)?;
    assert_eq!(tables(&bed)?, before);
    bed.expect_warning("put back");
    bed.finish()
}

#[test]
fn the_count_of_what_was_forged_goes_on_over_a_change_and_a_restart() -> Outcome {
    let mut bed = Testbed::new()?;
    let forger = Forger::new(&bed.lab, UplinkName::Eth)?;
    let knock = |bed: &Testbed, wanted: u64| {
        forger.ping(addr::SERVER4.into(), bed.agent.address4.into())?;
        until("the packet to be counted", || bed.agent.counter(DROPPED).is_ok_and(|seen| seen == wanted))
    };
    knock(&bed, 1)?;
    bed.lab.host.run(&["nft", "flush", "ruleset"])?;
    until("the filter to be back", || tables(&bed).is_ok())?;
    knock(&bed, 2)?;
    bed.agent.kill()?;
    forger.ping(addr::SERVER4.into(), bed.agent.address4.into())?;
    start_again(&mut bed)?;
    knock(&bed, 4)?;
    let status = bed.agent.status()?;
    assert_eq!(status["ingress"]["dropped_packets"], 4, "{status}");
    assert_eq!(status["ingress"]["filter"], "nftables", "{status}");
    bed.expect_warning("put back");
    bed.finish()
}

#[test]
fn without_nftables_a_classifier_keeps_the_visited_network_out_and_it_is_said() -> Outcome {
    let mut bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    let tools = bed.lab.dir().join("tools");
    std::fs::create_dir(&tools)?;
    bed.agent.set_variable("PATH", tools.display().to_string());
    bed.start()?;
    for when in STATES {
        let [four, six] = server(port::ECHO).map(|server| connection(&bed, &server));
        let captures = listen(&bed)?;
        if when == "killed" {
            bed.agent.kill()?;
        }
        let mut talks = Vec::new();
        for connection in [four, six] {
            let (mut talk, numbers) = connection?;
            attack(&bed, &mut talk, numbers, when)?;
            talks.push(talk);
        }
        for forger in forgers(&bed)? {
            for (persistent, server) in pairs(&bed) {
                probe(&forger, persistent, server)?;
            }
        }
        let eth = bed.lab.eth();
        let forger = Forger::new(&bed.lab, eth.name)?;
        forger.ask_who_has(eth.gateway4().into(), bed.agent.address4.into())?;
        assert!(!forger.hears_answer(bed.agent.address4.into(), A_WHILE)?, "{when}");
        for capture in captures {
            let packets = capture.stop()?;
            assert!(packets.is_empty(), "{when}: the host answered:\n{}", packets.join("\n"));
        }
        if when == "killed" {
            start_again(&mut bed)?;
        }
        for mut talk in talks {
            assert_eq!(talk.request("still here")?, "still here", "{when}");
        }
        assert_eq!(bed.agent.status()?["ingress"]["filter"], "ebpf", "{when}");
    }
    assert!(bed.agent.counter(DROPPED)? > 0);
    let checked = bed.agent.cli(&["check"])?;
    assert!(checked.stdout.contains("ingress: an eBPF classifier"), "{checked:?}");
    bed.expect_warning("ingress filter cannot use nftables");
    bed.finish()
}
