//! Queries on the real kernel: asked of one resolver, answered by another under the first one's address.

use std::{
    net::{SocketAddr, UdpSocket},
    thread::JoinHandle,
};

use mobile_ebpf_common::CountedEvent;

use super::super::{
    addresses::Addresses,
    bpf::Selector,
    probe::{Place, Probe, run},
};

/// The relay's resolvers: here they are on loopback, where nobody needs a route.
const RELAYS: [&str; 2] = ["192.0.2.53", "2001:db8::53"];
/// What applications ask: nobody is there, and there is no route.
const ASKED: [(&str, &str); 3] =
    [("udp4", "198.51.100.1:53"), ("udp6", "[2001:db8:1::1]:53"), ("udp6", "[::ffff:198.51.100.1]:53")];

fn resolvers() -> Addresses {
    Addresses { ipv4: RELAYS[0].parse().ok(), ipv6: RELAYS[1].parse().ok() }
}

/// The programs with these resolvers, which are on this host.
fn load(place: &Place) -> Selector {
    for address in ["192.0.2.53/32", "2001:db8::53/128"] {
        run("ip", &["address", "replace", address, "dev", "lo"]);
    }
    let mut selector = place.load();
    selector.set_resolvers(resolvers()).unwrap();
    selector
}

/// Sends the next datagrams to a resolver back.
fn answer(resolver: &str, times: u64) -> JoinHandle<()> {
    let socket = UdpSocket::bind(SocketAddr::new(resolver.parse().unwrap(), 53)).unwrap();
    std::thread::spawn(move || {
        for _ in 0..times {
            answer_with(&socket);
        }
    })
}

fn answer_with(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    socket.send_to(&buffer[..length], from).unwrap();
}

fn count(selector: &Selector, wanted: CountedEvent) -> u64 {
    selector.events().unwrap().into_iter().find(|(event, _)| *event == wanted).unwrap().1
}

#[test]
fn the_application_sees_the_address_it_asked() {
    Place::with(|place| {
        let selector = load(place);
        // Two queries of each line of `ASKED`.
        let answered = [answer(RELAYS[0], 4), answer(RELAYS[1], 2)];
        for (kind, to) in ASKED {
            let asked: SocketAddr = to.parse().unwrap();
            let mut probe = place.mobile();
            probe.open(kind);
            probe.send(kind, to);
            assert_eq!(probe.hear(kind), asked, "{to}");
            probe.open(kind);
            probe.connect(kind, to);
            assert_eq!(probe.peer(kind), asked, "{to}");
            probe.send(kind, to);
            assert_eq!(probe.hear(kind), asked, "{to}");
        }
        for answered in answered {
            answered.join().unwrap();
        }
        assert_eq!(count(&selector, CountedEvent::DnsForgotten), 0);
        assert_eq!(count(&selector, CountedEvent::DnsFailed), 0);
        assert_eq!(count(&selector, CountedEvent::DnsRedirected), 3 * ASKED.len() as u64);
    });
}

#[test]
fn other_ports_and_other_processes_are_left_alone() {
    Place::with(|place| {
        let selector = load(place);
        let mut mobile = place.mobile();
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
fn what_a_socket_asked_is_forgotten_when_an_ordinary_process_uses_it() {
    Place::with(|place| {
        let _selector = load(place);
        let mut probe = place.mobile();
        probe.open("udp4");
        probe.connect("udp4", ASKED[0].1);
        assert_eq!(probe.peer("udp4"), ASKED[0].1.parse().unwrap());
        place.cgroup.detach(probe.pid()).unwrap();
        probe.connect("udp4", "192.0.2.53:53");
        assert_eq!(probe.peer("udp4"), "192.0.2.53:53".parse().unwrap());
    });
}

#[test]
fn an_answer_that_is_under_way_while_agents_take_over_is_known() {
    Place::with(|place| {
        let first = load(place);
        let socket = UdpSocket::bind((RELAYS[0], 53)).unwrap();
        let (kind, to) = ASKED[0];
        let mut probe = place.mobile();
        probe.open(kind);
        probe.send(kind, to);
        drop(first);
        let next = load(place);
        assert!(next.adopted());
        answer_with(&socket);
        assert_eq!(probe.hear(kind), to.parse().unwrap());
        // Until the kernel has detached them, the old programs redirect before the new ones: what was asked stays known.
        for _ in 0..20 {
            probe.open(kind);
            probe.connect(kind, to);
            assert_eq!(probe.peer(kind), to.parse().unwrap());
        }
        assert_eq!(count(&next, CountedEvent::DnsForgotten), 0);
    });
}

#[test]
fn a_query_is_known_however_many_sockets_others_ask_from() {
    Place::with(|place| {
        let selector = load(place);
        let socket = UdpSocket::bind((RELAYS[0], 53)).unwrap();
        let (kind, to) = ASKED[0];
        let mut probe = place.mobile();
        probe.open(kind);
        probe.send(kind, to);
        place.mobile().send_of_many(kind, to, 19_000);
        answer_with(&socket);
        assert_eq!(probe.hear(kind), to.parse().unwrap());
        assert_eq!(count(&selector, CountedEvent::DnsForgotten), 0);
        assert_eq!(count(&selector, CountedEvent::DnsRedirected), 19_001);
    });
}

#[test]
fn without_a_resolver_of_the_family_a_query_goes_where_it_is_sent() {
    Place::with(|place| {
        let mut selector = load(place);
        let mut probe = place.mobile();
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
fn a_resolver_of_the_relay_that_is_in_the_bypass_is_not_looked_for_in_the_visited_network() {
    Place::with(|place| {
        let mut selector = load(place);
        selector.add_bypass(format!("{}/32", RELAYS[0]).parse().unwrap()).unwrap();
        let (kind, to) = ASKED[0];
        let mut probe = place.mobile();
        probe.open(kind);
        probe.connect(kind, to);
        assert_eq!(
            (count(&selector, CountedEvent::DnsLeft), count(&selector, CountedEvent::DnsRedirected)),
            (1, 0)
        );
    });
}
