//! The relay as a router: path MTU, ICMP errors, the host's firewall, and routed pools.

use std::net::IpAddr;

use mobile_tests::{
    Agent, LabOptions, PATIENCE, TcpService, Testbed, addr, finish_within, http, port, until,
};

use crate::{Outcome, ip_of, urls};

/// The size of a transfer in bytes: many congestion windows, so that the transfer meets a smaller
/// path MTU.
const SIZE: u64 = 2_000_000;

/// Uploads and downloads [`SIZE`] bytes as a mobile process, over IPv4 and over IPv6, and checks
/// their SHA-256.
fn transfer(bed: &Testbed) -> Outcome {
    let file = bed.lab.dir().join("upload").display().to_string();
    http::pattern(SIZE, std::io::BufWriter::new(std::fs::File::create(&file)?))?;
    let sum = http::pattern_sum(SIZE);
    for url in urls("") {
        let curl = |args: &[&str]| {
            finish_within(&mut bed.agent.run(&[&["curl", "-sS", "--fail"], args].concat()), None, PATIENCE)?
                .ok()
        };
        assert_eq!(curl(&["-T", &file, &format!("{url}/sum")])?.trim(), sum, "sent to {url}");
        let back = bed.lab.dir().join("download").display().to_string();
        curl(&["-o", &back, &format!("{url}/bytes/{SIZE}")])?;
        assert_eq!(
            bed.lab.host.run(&["sha256sum", &back])?.split(' ').next(),
            Some(sum.as_str()),
            "from {url}"
        );
    }
    Ok(())
}

#[test]
fn segments_fit_a_smaller_mtu_behind_the_relay_though_icmp_is_dropped() -> Outcome {
    // Set before the tunnel connects, because the tunnel's own TCP is not under test.
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.lab.relay.ip(&["link set wan0 mtu 1400"])?;
    bed.lab.internet.ip(&["link set torelay mtu 1400"])?;
    bed.start()?;
    // Neither the relay's host nor the router sends ICMP errors: only the MSS in the SYN helps.
    for ns in [&bed.lab.relay, &bed.lab.internet] {
        ns.feed(
            &["nft", "-f", "-"],
            "table inet deaf {\n chain output {\n  type filter hook output priority filter\n  \
             icmp type destination-unreachable drop\n  icmpv6 type packet-too-big drop\n }\n}\n",
        )?;
    }
    let syns = bed.lab.capture(&bed.lab.server, "wan0", "tcp port 80 and tcp[tcpflags] & tcp-syn != 0")?;
    let six = bed.lab.capture(&bed.lab.server, "wan0", "ip6 and tcp port 80 and ip6[53] & 2 != 0")?;
    transfer(&bed)?;
    for (capture, mss) in [(syns, "mss 1360"), (six, "mss 1340")] {
        let seen = capture.stop()?;
        let ours: Vec<_> = seen.iter().filter(|line| line.contains("Flags [S],")).collect();
        assert!(!ours.is_empty() && ours.iter().all(|line| line.contains(mss)), "{mss}: {seen:?}");
    }
    for ns in [&bed.lab.relay, &bed.lab.internet] {
        ns.run(&["nft", "delete", "table", "inet", "deaf"])?;
    }
    bed.finish()
}

#[test]
fn icmp_errors_from_beyond_the_relay_reach_the_client() -> Outcome {
    let bed = Testbed::new()?;
    // The link between the router and the server is narrow, and the server still announces an
    // Ethernet's MSS.
    bed.lab.internet.ip(&["link set toserver mtu 1300"])?;
    bed.lab.server.ip(&["link set wan0 mtu 1300"])?;
    for (family, router, mss) in [("-4", "192.0.2.1", "1460"), ("-6", "2001:db8:52::1", "1440")] {
        let route = ["ip", family, "route", "change", "default", "via", router, "dev", "wan0", "advmss", mss];
        bed.lab.server.run(&route)?;
    }
    let ping = |args: &[&str]| -> anyhow::Result<String> {
        let command = [&["ping", "-n", "-c", "2", "-i", "0.2", "-W", "5"], args].concat();
        let done = finish_within(&mut bed.agent.run(&command), None, PATIENCE)?;
        Ok(done.stdout + &done.stderr)
    };
    let (four, six) = (addr::SERVER4.to_string(), addr::SERVER6.to_string());
    for (args, expected) in [
        (["-M", "do", "-s", "1400", &four], "mtu = 1300"),
        (["-M", "do", "-s", "1400", &six], "mtu=1300"),
        (["-t", "2", "-s", "56", &four], "Time to live exceeded"),
        (["-t", "2", "-s", "56", &six], "Time exceeded"),
        (["-s", "56", "-t", "64", "192.0.2.99"], "Destination Host Unreachable"),
    ] {
        let said = ping(&args)?;
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    transfer(&bed)?;
    bed.finish()
}

#[test]
fn the_hosts_own_firewall_is_left_as_it_was() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.lab.relay.feed(
        &["nft", "-f", "-"],
        "table inet filter {\n chain forward {\n  type filter hook forward priority filter; policy drop\n  \
         iifname home0 accept\n  oifname home0 ct state established,related accept\n }\n}\n\
         table ip nat {\n chain postrouting {\n  type nat hook postrouting priority srcnat\n  \
         ip saddr 10.0.0.0/8 oifname wan0 masquerade\n }\n}\n",
    )?;
    let theirs = |bed: &Testbed| -> anyhow::Result<String> {
        let mut rules = bed.lab.relay.run(&["nft", "--handle", "list", "table", "inet", "filter"])?;
        rules += &bed.lab.relay.run(&["nft", "--handle", "list", "table", "ip", "nat"])?;
        Ok(rules)
    };
    let (before, all) = (theirs(&bed)?, bed.lab.relay.run(&["nft", "list", "ruleset"])?);
    bed.start()?;
    for url in urls("/ip") {
        assert!(finish_within(&mut bed.agent.run(&["curl", "-sf", &url]), None, PATIENCE)?.status.success());
    }
    bed.relay.configure("clients", "isolate", false)?;
    assert_eq!(bed.relay.cli(&["reload"])?.ok()?, "[clients] isolate\n");
    assert_eq!(theirs(&bed)?, before, "while the relay runs");
    bed.relay.stop()?;
    bed.relay.cli(&["cleanup"])?.ok()?;
    assert_eq!(bed.lab.relay.run(&["nft", "list", "ruleset"])?, all, "after cleanup");
    bed.lab.relay.run(&["nft", "flush", "ruleset"])?;
    bed.expect_warning("relay");
    bed.expect_warning("drops forwarded packets");
    bed.finish()
}

#[test]
fn a_routed_ipv6_prefix_is_not_masqueraded() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.relay.configure("nat", "ipv6", "routed")?;
    bed.relay.configure("clients", "inbound", "routed")?;
    bed.lab.internet.ip(&[&format!("route add {}/64 via {}", bed.agent.address6, addr::RELAY6)])?;
    bed.start()?;
    let [four, six] = urls("/ip");
    for (url, expected) in [(four, IpAddr::V4(addr::RELAY4)), (six, IpAddr::V6(bed.agent.address6))] {
        let seen = finish_within(&mut bed.agent.run(&["curl", "-s", &url]), None, PATIENCE)?.ok()?;
        assert_eq!(ip_of(&seen), expected);
    }
    // The internet reaches the client.
    bed.lab.server.run(&["ping", "-n", "-c", "1", "-W", "5", &bed.agent.address6.to_string()])?;
    bed.finish()
}

#[test]
fn clients_reach_each_other_where_they_are_one_network() -> Outcome {
    let bed = Testbed::new()?;
    let elsewhere = bed.lab.visited[1].clone();
    let mut other = Agent::install_in(&bed.lab, &elsewhere, "desktop", &bed.relay)?;
    other.start()?;
    other.wait_connected()?;
    let _echo = TcpService::echo(&bed.lab.host, port::ECHO)?;
    bed.relay.configure("clients", "isolate", false)?;
    assert_eq!(bed.relay.cli(&["reload"])?.ok()?, "[clients] isolate\n");
    let tool = mobile_tests::program("labtool")?.display().to_string();
    for address in [format!("{}:7", bed.agent.address4), format!("[{}]:7", bed.agent.address6)] {
        let mut talk = mobile_tests::LineProcess::start(&mut other.run(&[&tool, "tcp", &address]))?;
        assert!(talk.next_line()?.starts_with("connected "));
        assert_eq!(talk.request("hello")?, "hello");
    }
    bed.relay.configure("clients", "isolate", true)?;
    bed.relay.cli(&["reload"])?.ok()?;
    until("isolation to hold again", || {
        let mut ping = other.run(&["ping", "-n", "-c", "1", "-W", "1", &bed.agent.address4.to_string()]);
        finish_within(&mut ping, None, PATIENCE).is_ok_and(|done| done.code() == 1)
    })?;
    other.stop()?;
    other.cli(&["cleanup"])?.ok()?;
    bed.finish()
}
