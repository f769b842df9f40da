//! Tests of DNS redirection on the running kernel: a query sent to one resolver is answered by
//! another, under the first one's address.

use std::{
    net::{SocketAddr, UdpSocket},
    thread::JoinHandle,
};

use mobile_ebpf_common::CountedEvent;

use super::super::{
    addresses::Addresses,
    bpf::Selector,
    sandbox::{Probe, Sandbox, run},
};

/// The relay's resolvers, which are on the loopback device here, so that no route is needed.
const RELAYS: [&str; 2] = ["192.0.2.53", "2001:db8::53"];
/// The resolvers that the applications query: they do not exist, and there is no route to them.
const QUERIED: [(&str, &str); 3] =
    [("udp4", "198.51.100.1:53"), ("udp6", "[2001:db8:1::1]:53"), ("udp6", "[::ffff:198.51.100.1]:53")];

fn resolvers() -> Addresses {
    Addresses { ipv4: RELAYS[0].parse().ok(), ipv6: RELAYS[1].parse().ok() }
}

/// Loads the eBPF programs with the resolvers [`RELAYS`], whose addresses are on this host.
fn load(sandbox: &Sandbox) -> Selector {
    for address in ["192.0.2.53/32", "2001:db8::53/128"] {
        run("ip", &["address", "replace", address, "dev", "lo"]);
    }
    let mut selector = sandbox.load();
    selector.set_resolvers(resolvers()).unwrap();
    selector
}

/// Starts a resolver that sends the next `times` datagrams back to their senders.
fn echo(resolver: &str, times: u64) -> JoinHandle<()> {
    let socket = UdpSocket::bind(SocketAddr::new(resolver.parse().unwrap(), 53)).unwrap();
    std::thread::spawn(move || {
        for _ in 0..times {
            echo_one(&socket);
        }
    })
}

fn echo_one(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    socket.send_to(&buffer[..length], from).unwrap();
}

fn count(selector: &Selector, wanted: CountedEvent) -> u64 {
    selector.events().unwrap().into_iter().find(|(event, _)| *event == wanted).unwrap().1
}

#[test]
fn the_application_sees_the_address_that_it_queried() {
    Sandbox::with(|sandbox| {
        let selector = load(sandbox);
        // Two queries for each line of `QUERIED`.
        let resolvers = [echo(RELAYS[0], 4), echo(RELAYS[1], 2)];
        for (kind, to) in QUERIED {
            let queried: SocketAddr = to.parse().unwrap();
            let mut probe = sandbox.mobile();
            probe.open(kind);
            probe.send(kind, to);
            assert_eq!(probe.receive_from(kind), queried, "{to}");
            probe.open(kind);
            probe.connect(kind, to);
            assert_eq!(probe.peer(kind), queried, "{to}");
            probe.send(kind, to);
            assert_eq!(probe.receive_from(kind), queried, "{to}");
        }
        for resolver in resolvers {
            resolver.join().unwrap();
        }
        assert_eq!(count(&selector, CountedEvent::DnsForgotten), 0);
        assert_eq!(count(&selector, CountedEvent::DnsFailed), 0);
        assert_eq!(count(&selector, CountedEvent::DnsRedirected), 3 * QUERIED.len() as u64);
    });
}

#[test]
fn other_ports_and_other_processes_are_left_alone() {
    Sandbox::with(|sandbox| {
        let selector = load(sandbox);
        let mut mobile = sandbox.mobile();
        mobile.open("udp4");
        mobile.connect("udp4", "192.0.2.53:54");
        assert_eq!(mobile.peer("udp4"), "192.0.2.53:54".parse().unwrap());
        let mut ordinary = Probe::start();
        ordinary.open("udp4");
        ordinary.connect("udp4", "192.0.2.53:53");
        assert_eq!(ordinary.peer("udp4"), "192.0.2.53:53".parse().unwrap());
        assert_eq!(count(&selector, CountedEvent::DnsRedirected), 0);
    });
}

#[test]
fn the_query_of_a_socket_is_forgotten_when_an_ordinary_process_uses_the_socket() {
    Sandbox::with(|sandbox| {
        let _selector = load(sandbox);
        let mut probe = sandbox.mobile();
        probe.open("udp4");
        probe.connect("udp4", QUERIED[0].1);
        assert_eq!(probe.peer("udp4"), QUERIED[0].1.parse().unwrap());
        sandbox.cgroup.detach(probe.pid()).unwrap();
        probe.connect("udp4", "192.0.2.53:53");
        assert_eq!(probe.peer("udp4"), "192.0.2.53:53".parse().unwrap());
    });
}

#[test]
fn an_answer_is_translated_although_one_agent_replaces_another_meanwhile() {
    Sandbox::with(|sandbox| {
        let first = load(sandbox);
        let socket = UdpSocket::bind((RELAYS[0], 53)).unwrap();
        let (kind, to) = QUERIED[0];
        let mut probe = sandbox.mobile();
        probe.open(kind);
        probe.send(kind, to);
        drop(first);
        let next = load(sandbox);
        assert!(next.adopted());
        echo_one(&socket);
        assert_eq!(probe.receive_from(kind), to.parse().unwrap());
        // Until the kernel has detached them, the old programs redirect before the new ones, which
        // must keep the queried address.
        for _ in 0..20 {
            probe.open(kind);
            probe.connect(kind, to);
            assert_eq!(probe.peer(kind), to.parse().unwrap());
        }
        assert_eq!(count(&next, CountedEvent::DnsForgotten), 0);
    });
}

#[test]
fn a_query_is_remembered_however_many_sockets_send_queries() {
    Sandbox::with(|sandbox| {
        let selector = load(sandbox);
        let socket = UdpSocket::bind((RELAYS[0], 53)).unwrap();
        let (kind, to) = QUERIED[0];
        let mut probe = sandbox.mobile();
        probe.open(kind);
        probe.send(kind, to);
        sandbox.mobile().send_of_many(kind, to, 19_000);
        echo_one(&socket);
        assert_eq!(probe.receive_from(kind), to.parse().unwrap());
        assert_eq!(count(&selector, CountedEvent::DnsForgotten), 0);
        assert_eq!(count(&selector, CountedEvent::DnsRedirected), 19_001);
    });
}

#[test]
fn without_a_resolver_of_the_family_a_query_is_not_redirected() {
    Sandbox::with(|sandbox| {
        let mut selector = load(sandbox);
        let mut probe = sandbox.mobile();
        for (resolvers, left) in [(Addresses::default(), 0), (Addresses { ipv4: None, ..resolvers() }, 1)] {
            selector.set_resolvers(resolvers).unwrap();
            probe.open("udp4");
            probe.connect("udp4", "192.0.2.53:53");
            assert_eq!(probe.peer("udp4"), "192.0.2.53:53".parse().unwrap());
            assert_eq!(count(&selector, CountedEvent::DnsLeft), left);
        }
        assert_eq!(count(&selector, CountedEvent::DnsRedirected), 0);
    });
}

#[test]
fn queries_are_not_redirected_to_a_resolver_that_is_bypassed() {
    Sandbox::with(|sandbox| {
        let mut selector = load(sandbox);
        selector.add_bypass(format!("{}/32", RELAYS[0]).parse().unwrap()).unwrap();
        let (kind, to) = QUERIED[0];
        let mut probe = sandbox.mobile();
        probe.open(kind);
        probe.connect(kind, to);
        assert_eq!(
            (count(&selector, CountedEvent::DnsLeft), count(&selector, CountedEvent::DnsRedirected)),
            (1, 0)
        );
    });
}
