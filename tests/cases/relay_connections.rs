//! The connections that the relay's machine tracks (conntrack): how many a client holds, and when
//! they end.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use mobile_tests::{
    Agent, LineProcess, PATIENCE, TcpService, Testbed, addr, finish_within, port, program, until,
};
use mobile_transport::keys::PublicKey;

use crate::{Outcome, server};

/// Returns the number of the relay machine's tracked connections (conntrack entries) that contain
/// `address`.
fn tracked(bed: &Testbed, address: IpAddr) -> anyhow::Result<u64> {
    tracked_where(bed, move |ends| ends.contains(&address))
}

fn tracked_where(bed: &Testbed, is_one: impl Fn([IpAddr; 4]) -> bool + Send + Sync) -> anyhow::Result<u64> {
    bed.lab.relay.enter(|| {
        let found = std::cell::Cell::new(0);
        mobile_netlink::netfilter::delete_connections(|entry| {
            let (original, reply) = (entry.original, entry.reply);
            if is_one([original.0, original.1, reply.0, reply.1]) {
                found.set(found.get() + 1);
            }
            false
        })?;
        Ok(found.get())
    })
}

#[test]
fn one_client_does_not_fill_the_relays_table_of_connections() -> Outcome {
    let bed = Testbed::new()?;
    let before = tracked(&bed, bed.agent.address4.into())?;
    // Each port makes another connection.
    bed.lab.host.enter(|| -> Outcome {
        let socket = UdpSocket::bind((bed.agent.address4, 0))?;
        for port in 2_000..22_000_u16 {
            // The queue is full: try again.
            while socket.send_to(b"x", (addr::SERVER4, port)).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if port % 50 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    })?;
    let held = tracked(&bed, bed.agent.address4.into())? - before;
    // Ten seconds' worth at once, and what the rate allows during the flood.
    assert!((1..=4096).contains(&held), "{held} tracked connections of one client");
    until("the refused ones to be counted", || {
        let counted =
            |reason: &str| bed.relay.counter(&format!("homerelay_drops_total{{reason=\"{reason}\"}}"));
        counted("connection_rate").unwrap_or(0) + counted("connections").unwrap_or(0) >= 2_000
    })?;
    // Other clients get through, and so does this client once it is slower.
    let elsewhere = bed.lab.visited[1].clone();
    let mut other = Agent::install_in(&bed.lab, &elsewhere, "desktop", &bed.relay)?;
    other.start()?;
    other.wait_connected()?;
    let url = format!("http://{}/ip", addr::SERVER4);
    finish_within(&mut other.run(&["curl", "-sf", "-m", "5", &url]), None, PATIENCE)?.ok()?;
    until("the client to begin connections again", || {
        let mut curl = bed.agent.run(&["curl", "-sf", "-m", "2", &url]);
        finish_within(&mut curl, None, PATIENCE).is_ok_and(|done| done.status.success())
    })?;
    other.stop()?;
    other.cli(&["cleanup"])?.ok()?;
    bed.finish()
}

#[test]
fn the_relays_own_port_is_not_tracked_and_a_firewall_that_asks_for_state_still_lets_clients_in() -> Outcome {
    let mut bed = Testbed::new()?;
    let relay = IpAddr::from(addr::RELAY4);
    let paths = tracked_where(&bed, move |[_, to, from, _]| to == relay && from == relay)?;
    assert_eq!(paths, 0, "the paths of clients are tracked");
    bed.agent.stop()?;
    bed.relay.stop()?;
    bed.lab.relay.feed(
        &["nft", "-f", "-"],
        "table inet theirs {\n chain input {\n  type filter hook input priority filter; policy drop\n  iif lo accept\n  \
         ct state established,related accept\n  meta l4proto ipv6-icmp accept\n  tcp dport 443 ct state new accept\n }\n chain output {\n  type filter hook output priority filter; policy drop\n  \
         oif lo accept\n  meta l4proto ipv6-icmp accept\n  ct state established accept\n }\n}\n",
    )?;
    bed.start()?;
    finish_within(
        &mut bed.agent.run(&["curl", "-sf", &format!("http://{}/ip", addr::SERVER4)]),
        None,
        PATIENCE,
    )?
    .ok()?;
    bed.lab.relay.run(&["nft", "delete", "table", "inet", "theirs"])?;
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_revoked_clients_connections_end_and_its_address_goes_to_nobody_for_long() -> Outcome {
    let mut bed = Testbed::new()?;
    let _echo = TcpService::echo(&bed.lab.host, port::ECHO)?;
    bed.relay.cli(&["forward", "add", "tcp", "2001", "laptop:7"])?.ok()?;
    let tool = program("labtool")?;
    let at_relay = format!("{}:2001", addr::RELAY4);
    let mut inbound = LineProcess::start(bed.lab.server.command(&tool).args(["tcp", &at_relay]))?;
    inbound.next_line()?;
    let [four, six] = server(port::ECHO);
    let mut talks = vec![bed.mobile_labtool(&["tcp", &four])?, bed.mobile_labtool(&["udp", &four])?];
    talks.push(bed.mobile_labtool(&["tcp", &six])?);
    for (number, talk) in talks.iter_mut().enumerate() {
        if number != 1 {
            talk.next_line()?;
        }
        assert_eq!(talk.request("x")?, "x");
    }
    let (former4, former6) = (bed.agent.address4, bed.agent.address6);
    assert!(tracked(&bed, former4.into())? >= 3 && tracked(&bed, former6.into())? >= 1);
    bed.relay.cli(&["revoke", "laptop"])?.ok()?;
    assert_eq!((tracked(&bed, former4.into())?, tracked(&bed, former6.into())?), (0, 0));
    drop((talks, inbound));

    // The same name with another key is another client, also after a restart.
    let key = |byte| PublicKey::from_bytes([byte; 32]).to_string();
    let next = bed.relay.authorize("desktop", &key(1))?;
    assert!(!next.contains(&former4.into()) && !next.contains(&former6.into()), "{next:?}");
    bed.relay.stop()?;
    bed.relay.start()?;
    let next = bed.relay.authorize("phone", &key(2))?;
    assert!(!next.contains(&former4.into()) && !next.contains(&former6.into()), "{next:?}");
    // The same key gets its own address back.
    let again = bed.relay.authorize("laptop", &bed.agent.public_key)?;
    assert!(again.contains(&former4.into()) && again.contains(&former6.into()), "{again:?}");
    bed.expect_warning("relay");
    bed.expect_warning("revoked");
    bed.expect_warning("authori");
    bed.finish()
}

#[test]
fn a_client_moved_to_another_address_leaves_no_connection_at_the_former() -> Outcome {
    let mut bed = Testbed::new()?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    let former = bed.agent.address4;
    assert!(tracked(&bed, former.into())? >= 1);
    let other = Ipv4Addr::from(u32::from(former) + 7).to_string();
    bed.relay.cli(&["authorize", "laptop", &bed.agent.public_key, "--ipv4", &other])?.ok()?;
    assert_eq!(tracked(&bed, former.into())?, 0);
    drop(talk);
    bed.expect_warnings_of_all_kinds();
    bed.finish()
}
