//! A relay that pushes addresses it must not assign: the host's own, its router's, its network's,
//! or public ones.
//!
//! To set up such a relay, an operator needs only `authorize --ipv4` and a pool of any addresses.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::time::Duration;

use mobile_tests::{LabOptions, PATIENCE, TcpService, Testbed, addr, finish_within, port, until};
use serde_json::Value;

use crate::{Outcome, ip_of, server, urls};

/// The port of a service that the mobile host offers to its local network.
const LAN_SERVICE: u16 = 8080;

/// Returns the pushed addresses and networks (claims) that the agent's status lists as refused,
/// without the reasons.
fn refused(status: &Value) -> Vec<String> {
    let list = status["refused"].as_array().cloned().unwrap_or_default();
    list.iter().map(|refusal| refusal["claim"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Returns whether `address` is neither set on the tunnel's device nor named in a routing rule.
fn is_nowhere(bed: &Testbed, address: IpAddr) -> anyhow::Result<bool> {
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let device = bed.lab.host.run(&["ip", family, "-o", "address", "show", "dev", "mobile0"])?;
    let rules = bed.lab.host.run(&["ip", family, "rule", "show"])?;
    Ok(!device.contains(&format!(" {address}/")) && !rules.contains(&format!("from {address} ")))
}

/// Asserts that TCP and UDP of ordinary processes take the same route as without an agent.
fn assert_ordinary_is_direct(bed: &Testbed) -> Outcome {
    let direct = [IpAddr::V4(bed.lab.eth().name.nat_address()), IpAddr::V6(bed.lab.eth().address6())];
    for (url, expected) in urls("/ip").iter().zip(direct) {
        let seen = finish_within(bed.lab.host.command("curl").args(["-s", "-m", "10", url]), None, PATIENCE)?;
        assert_eq!(ip_of(&seen.ok()?), expected, "{url}");
    }
    for echo in server(port::ECHO) {
        assert_eq!(bed.ordinary_labtool(&["udp", &echo])?.request("direct")?, "direct");
    }
    Ok(())
}

/// Asserts that a mobile process cannot connect, neither through the tunnel nor directly over the
/// uplink.
fn assert_mobile_is_stopped(bed: &Testbed) -> Outcome {
    for url in urls("/ip") {
        let done = finish_within(&mut bed.agent.run(&["curl", "-s", "-m", "3", &url]), None, PATIENCE)?;
        assert!([7, 28].contains(&done.code()), "{url}: {done:?}");
    }
    Ok(())
}

fn lan_service(bed: &Testbed) -> anyhow::Result<TcpService> {
    TcpService::start(&bed.lab.host, LAN_SERVICE, |mut stream, _| {
        // Closing with unread data would reset the connection.
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfor the LAN\n");
    })
}

#[test]
fn a_pushed_address_of_this_hosts_own_networks_is_refused() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.relay.configure("pool", "ipv4", "10.16.0.0/12")?;
    bed.relay.configure("pool", "ipv6", "2001:db8:22::/64")?;
    let key = bed.agent.public_key.clone();
    let eth = bed.lab.eth();
    let claims: [(&str, IpAddr, IpAddr); 3] = [
        ("the uplink's own", eth.address4().into(), eth.address6().into()),
        ("a neighbour's", "10.22.0.77".parse()?, "2001:db8:22::77".parse()?),
        ("the router's", eth.gateway4().into(), "2001:db8:22::78".parse()?),
    ];
    let _service = lan_service(&bed)?;
    let own = format!("http://{}:{LAN_SERVICE}/", eth.address4());
    bed.relay.start()?;
    for (number, (which, four, six)) in claims.into_iter().enumerate() {
        let (four_text, six_text) = (four.to_string(), six.to_string());
        let authorize = ["authorize", "laptop", &key, "--ipv4", &four_text, "--ipv6", &six_text];
        bed.relay.cli(&authorize)?.ok()?;
        if number == 0 {
            bed.agent.start()?;
        }
        bed.agent.wait_status(&format!("the refusal of {which} address"), |status| {
            let refused = refused(status);
            status["session"] == "connected" && refused.contains(&four_text) && refused.contains(&six_text)
        })?;
        let status = bed.agent.status()?;
        assert_eq!(status["addresses"], serde_json::json!([]), "{which}");
        let problem = status["problem"].to_string();
        assert!(problem.contains(&four_text) && problem.contains("pool"), "{problem}");
        for address in [four, six] {
            assert!(is_nowhere(&bed, address)?, "{which}: {address} is in force");
        }

        let tunnel = bed.lab.capture(&bed.lab.host, "mobile0", "")?;
        let uplink = bed.lab.capture(&bed.lab.host, "eth0", &format!("tcp port {}", port::HTTP))?;
        assert_mobile_is_stopped(&bed)?;
        assert_eq!(uplink.stop()?, [] as [String; 0], "beside the tunnel");
        assert_ordinary_is_direct(&bed)?;
        // The host does not answer packets from the relay to the host's own address, but answers a
        // neighbour.
        let mut curl = bed.lab.relay.command("curl");
        let stranger = finish_within(curl.args(["-s", "-m", "2", &own]), None, PATIENCE)?;
        assert_ne!(stranger.code(), 0, "{which}: the relay reached a service of the LAN: {stranger:?}");
        assert_eq!(bed.lab.visited[1].run(&["curl", "-s", "-m", "5", &own])?, "for the LAN\n");
        assert_eq!(tunnel.stop()?, [] as [String; 0], "{which}");
    }
    let check = bed.agent.cli(&["check"])?;
    assert!(check.code() == 1 && check.stdout.contains("FAIL  addresses"), "{}", check.stdout);
    assert!(bed.agent.cli(&["status"])?.ok()?.contains("no persistent address"));
    assert!(bed.agent.counter("mobile_claims_refused_total{reason=\"local\"}")? >= 2);
    bed.expect_warning("[pool] changed");
    bed.expect_warning("refused an address that the relay pushed");
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_public_address_takes_a_setting_of_this_host() -> Outcome {
    const CLAIM: &str = "203.0.113.130";
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.relay.configure("pool", "ipv4", "203.0.113.128/25")?;
    bed.relay.start()?;
    bed.agent.start()?;
    bed.agent.wait_status("the refusal", |status| {
        status["session"] == "connected" && refused(status) == [CLAIM]
    })?;
    assert!(is_nowhere(&bed, CLAIM.parse()?)?);
    let status = bed.agent.status()?;
    assert!(status["problem"].to_string().contains("[tunnel] addresses"), "{status}");
    // The other family is in force.
    assert_eq!(status["addresses"].as_array().map(Vec::len), Some(1), "{status}");
    assert_ordinary_is_direct(&bed)?;

    bed.agent.stop()?;
    bed.agent.configure("tunnel", "addresses", vec!["203.0.113.128/25".to_owned()])?;
    bed.agent.start()?;
    bed.agent.wait_status("the address", |status| {
        status["session"] == "connected" && status["addresses"].to_string().contains(CLAIM)
    })?;
    let [four, _] = urls("/ip");
    let seen = finish_within(&mut bed.agent.run(&["curl", "-s", &four]), None, PATIENCE)?.ok()?;
    assert_eq!(ip_of(&seen), IpAddr::V4(addr::RELAY4));
    assert_ordinary_is_direct(&bed)?;

    // Stored while it was allowed, and judged again at the start, without the relay.
    bed.agent.stop()?;
    bed.relay.stop()?;
    bed.agent.configure("tunnel", "addresses", Vec::<String>::new())?;
    bed.agent.start()?;
    assert!(is_nowhere(&bed, CLAIM.parse()?)?, "what was saved is in force");
    bed.expect_warning("[pool] changed");
    bed.expect_warning("refused an address that the relay pushed");
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn an_address_is_withdrawn_while_a_network_has_it_and_comes_back() -> Outcome {
    let mut bed = Testbed::new()?;
    let address = bed.agent.address4;
    let [a, b, c, d] = address.octets();
    let neighbour = format!("{a}.{b}.{c}.{}", if d < 128 { d + 100 } else { d - 100 });
    let mut talks = Vec::new();
    for echo in server(port::ECHO) {
        let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
        talk.next_line()?;
        assert_eq!(talk.request("before")?, "before");
        talks.push(talk);
    }
    let in_force = |bed: &Testbed, yes: bool| {
        bed.agent.wait_status(if yes { "the address" } else { "its withdrawal" }, |status| {
            status["session"] == "connected"
                && (status["addresses"].to_string().contains(&format!("\"{address}\"")) == yes)
        })
    };
    let join = |bed: &Testbed, what: &str| {
        bed.lab.host.run(&["ip", "address", what, &format!("{neighbour}/24"), "dev", "wlan0"]).map(drop)
    };
    // One network contains the address, and the other assigns it to this host.
    for given in [&neighbour, &address.to_string()] {
        let uses = |bed: &Testbed, what: &str| {
            bed.lab.host.run(&["ip", "address", what, &format!("{given}/24"), "dev", "wlan0"]).map(drop)
        };
        uses(&bed, "add")?;
        in_force(&bed, false)?;
        let rules = bed.lab.host.run(&["ip", "rule"])?;
        assert!(!rules.contains(&format!("from {address} ")), "{rules}");
        let problem = bed.agent.status()?["problem"].to_string();
        assert!(problem.contains(&address.to_string()) && problem.contains("wlan0"), "{problem}");
        assert_ordinary_is_direct(&bed)?;
        talks[0].send_line("waiting")?;
        assert!(talks[0].next_line_within(Duration::from_secs(1)).is_err(), "it does not wait");
        assert_eq!(talks[1].request("the other family goes on")?, "the other family goes on");
        uses(&bed, "del")?;
        in_force(&bed, true)?;
        assert_eq!(talks[0].next_line()?, "waiting");
        assert_eq!(talks[0].request("back")?, "back");
    }
    // The network is present at the agent's start, and the address returns although the relay is
    // away.
    bed.agent.stop()?;
    bed.relay.stop()?;
    join(&bed, "add")?;
    bed.agent.start()?;
    assert!(is_nowhere(&bed, address.into())?);
    join(&bed, "del")?;
    until("the address to be back", || is_nowhere(&bed, address.into()).is_ok_and(|nowhere| !nowhere))?;
    bed.expect_warning("refused an address that the relay pushed");
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_pushed_resolver_of_this_hosts_own_networks_is_refused() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let router = bed.lab.eth().gateway4().to_string();
    let servers = [&router, &addr::RELAY4.to_string(), &addr::SERVER4.to_string()].map(ToString::to_string);
    bed.relay.configure("dns", "servers", servers.to_vec())?;
    bed.start()?;
    let status = bed.agent.status()?;
    assert_eq!(status["dns"], serde_json::json!([servers[2]]), "{status}");
    assert_eq!(refused(&status), servers[..2], "{status}");
    assert_eq!(status["addresses"].as_array().map(Vec::len), Some(2), "{status}");

    let six = addr::SERVER6.to_string();
    bed.relay.configure("dns", "servers", vec![router, six.clone()])?;
    bed.relay.cli(&["reload"])?.ok()?;
    bed.agent.wait_status("no IPv4 resolver", |status| status["dns"] == serde_json::json!([six]))?;
    let left = || bed.agent.counter("mobile_selection_events_total{event=\"dns_left\"}");
    let before = left()?;
    let tool = mobile_tests::program("labtool")?.display().to_string();
    let asked = format!("{}:{}", addr::SERVER4, port::DNS);
    // No resolver answers there, but the query must be sent there.
    finish_within(&mut bed.agent.run(&["timeout", "1", &tool, "dns", "udp", &asked]), None, PATIENCE)?;
    assert!(left()? > before);
    assert!(bed.agent.counter("mobile_claims_refused_total{reason=\"next_hop\"}")? >= 1);
    bed.expect_warning("refused a resolver that the relay pushed");
    bed.finish()
}
