use proptest::prelude::*;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pushed(address: &str) -> Assignment {
    let none = Assignment { ipv4: None, ipv6: None, mtu: 1500, dns: Vec::new() };
    match ip(address) {
        IpAddr::V4(ipv4) => Assignment { ipv4: Some(ipv4), ..none },
        IpAddr::V6(ipv6) => Assignment { ipv6: Some(ipv6), ..none },
    }
}

/// Returns the networks of a laptop that got its address by DHCPv6: the address is a /128, and a
/// separate route covers the network.
fn laptop() -> HostNetworks {
    let on = |device: &str, text: &str| (device.to_owned(), net(text));
    HostNetworks {
        addresses: vec![
            on("lo", "127.0.0.1/8"),
            on("eth0", "192.168.1.7/24"),
            on("eth0", "2001:db8:1::7/128"),
            on("wg0", "10.9.0.2/32"),
        ],
        on_link: vec![on("eth0", "192.168.1.0/24"), on("eth0", "fd11:1::/64")],
        next_hops: vec![ip("192.168.1.1"), ip("10.200.0.1"), ip("fe80::1")],
        resolvers: vec![ip("10.53.0.53"), ip("9.9.9.9"), ip("fd53::53")],
        relay: vec![ip("198.51.100.2"), ip("10.60.0.1")],
    }
}

fn objection(address: &str, allowed: &[IpNet]) -> Option<Objection> {
    let verdict = judge(&pushed(address), allowed, &laptop());
    assert_eq!(verdict.in_force.addresses().is_empty(), !verdict.refusals.is_empty(), "{address}");
    verdict.refusals.into_iter().next().map(|refusal| refusal.objection)
}

#[test]
fn each_kind_of_claim_has_its_objection() {
    let eth0 = || "eth0".to_owned();
    for (address, expected) in [
        ("192.168.1.7", Objection::Local(eth0())),
        ("10.9.0.2", Objection::Local("wg0".to_owned())),
        ("2001:db8:1::7", Objection::Local(eth0())),
        ("192.168.1.9", Objection::Connected(eth0(), net("192.168.1.0/24"))),
        ("fd11:1::99", Objection::Connected(eth0(), net("fd11:1::/64"))),
        ("192.168.1.1", Objection::NextHop),
        ("10.200.0.1", Objection::NextHop),
        ("10.53.0.53", Objection::Resolver),
        ("fd53::53", Objection::Resolver),
        ("10.60.0.1", Objection::Relay),
        ("198.51.100.2", Objection::Relay),
        ("8.8.8.8", Objection::NotAllowed),
        ("172.32.0.1", Objection::NotAllowed),
        ("100.128.0.1", Objection::NotAllowed),
        ("2001:db8:2::1", Objection::NotAllowed),
        ("127.0.0.1", Objection::Unusable),
        ("0.0.0.0", Objection::Unusable),
        ("0.1.2.3", Objection::Unusable),
        ("224.0.0.1", Objection::Unusable),
        ("240.0.0.1", Objection::Unusable),
        ("255.255.255.255", Objection::Unusable),
        ("169.254.1.1", Objection::Unusable),
        ("::", Objection::Unusable),
        ("::1", Objection::Unusable),
        ("::ffff:10.0.0.1", Objection::Unusable),
        ("fe80::1", Objection::Unusable),
        ("ff02::1", Objection::Unusable),
    ] {
        assert!(Objection::WORDS.contains(&expected.word()));
        assert_eq!(objection(address, &[]), Some(expected), "{address}");
    }
    for address in ["10.77.0.2", "172.31.255.254", "192.168.2.1", "100.64.0.2", "100.127.255.254", "fd77::2"]
    {
        assert_eq!(objection(address, &[]), None, "{address}");
    }
}

#[test]
fn a_setting_allows_a_public_network_and_nothing_that_the_host_has() {
    let allowed = [net("203.0.113.0/24"), net("2001:db8::/32"), net("0.0.0.0/0")];
    assert_eq!(objection("203.0.113.7", &allowed[..1]), None);
    assert_eq!(objection("203.0.114.7", &allowed[..1]), Some(Objection::NotAllowed));
    assert_eq!(objection("2001:db8:2::1", &allowed[1..2]), None);
    // The setting allows nothing beyond these networks.
    assert_eq!(objection("192.168.1.1", &allowed), Some(Objection::NextHop));
    assert_eq!(objection("9.9.9.9", &allowed), Some(Objection::Resolver));
    assert_eq!(objection("127.0.0.2", &allowed), Some(Objection::Unusable));
}

#[test]
fn one_family_is_refused_without_the_other() {
    let both = Assignment { ipv6: Some("fd77::2".parse().unwrap()), ..pushed("192.168.1.7") };
    let verdict = judge(&both, &[], &laptop());
    assert_eq!(verdict.in_force.addresses(), [ip("fd77::2")]);
    assert_eq!(verdict.refusals.len(), 1);
}

#[test]
fn resolvers_may_be_public_and_the_relays_but_not_of_this_hosts_networks() {
    let dns = |text: &str| {
        let claim = Assignment { dns: vec![ip(text)], ..pushed("10.77.0.2") };
        let verdict = judge(&claim, &[], &laptop());
        assert_eq!(verdict.in_force.dns.is_empty(), !verdict.refusals.is_empty(), "{text}");
        verdict.refusals.first().map(|refusal| refusal.objection.word())
    };
    for (server, expected) in [
        ("9.9.9.9", None),
        ("10.77.0.1", None),
        ("2620:fe::fe", None),
        ("192.168.1.1", Some("next_hop")),
        ("192.168.1.7", Some("local")),
        ("192.168.1.99", Some("connected")),
        ("198.51.100.2", Some("relay")),
        ("10.77.0.2", Some("persistent")),
        ("127.0.0.53", Some("unusable")),
        ("224.0.0.251", Some("unusable")),
        ("fe80::53", Some("unusable")),
    ] {
        assert_eq!(dns(server), expected, "{server}");
    }
}

#[test]
fn a_refusal_names_the_claim_the_cause_and_the_next_step() {
    let refusal = judge(&pushed("192.168.1.9"), &[], &laptop()).refusals.remove(0).to_status();
    assert_eq!((refusal.kind.as_str(), refusal.reason.as_str()), ("address", "connected"));
    assert_eq!(refusal.cause, "the pushed address 192.168.1.9 is in the network 192.168.1.0/24 on eth0");
    assert!(refusal.next_step.contains("pool"), "{}", refusal.next_step);
}

/// Generates addresses that are near each other, so that random assignments and random networks of
/// the host collide.
fn near() -> impl Strategy<Value = IpAddr> {
    let four = (0..4_usize, any::<u8>(), 0..4_u8).prop_map(|(first, third, last)| {
        IpAddr::from([[10, 100, 192, 8][first], [1, 64, 168, 8][first], third & 1, last])
    });
    let six = (0..3_usize, 0..2_u16, 0..4_u16).prop_map(|(first, second, last)| {
        IpAddr::from([[0xfd00, 0x2001, 0xfe80][first], second, 0, 0, 0, 0, 0, last])
    });
    prop_oneof![four, six]
}

fn networks() -> impl Strategy<Value = Vec<(String, IpNet)>> {
    let one = (near(), 20..=32_u8).prop_map(|(address, length)| {
        let length = if address.is_ipv4() { length } else { length * 4 };
        ("eth0".to_owned(), IpNet::new(address, length).unwrap())
    });
    prop::collection::vec(one, 0..4)
}

fn hosts() -> impl Strategy<Value = HostNetworks> {
    let some = || prop::collection::vec(near(), 0..3);
    (networks(), networks(), some(), some(), some()).prop_map(
        |(addresses, on_link, next_hops, resolvers, relay)| HostNetworks {
            addresses,
            on_link,
            next_hops,
            resolvers,
            relay,
        },
    )
}

fn assignments() -> impl Strategy<Value = Assignment> {
    (near(), near(), prop::collection::vec(near(), 0..4)).prop_map(|(one, other, dns)| {
        let mut claim = Assignment { ipv4: None, ipv6: None, mtu: 1500, dns };
        for address in [one, other] {
            match address {
                IpAddr::V4(ipv4) => claim.ipv4 = Some(ipv4),
                IpAddr::V6(ipv6) => claim.ipv6 = Some(ipv6),
            }
        }
        claim
    })
}

proptest! {
    #[test]
    fn nothing_in_force_contradicts_the_host_and_no_claim_is_lost(
        claim in assignments(), host in hosts(), wide in any::<bool>()
    ) {
        let allowed: &[IpNet] = &if wide { vec![net("0.0.0.0/0"), net("::/0")] } else { Vec::new() };
        let verdict = judge(&claim, allowed, &host);
        let networks = || host.addresses.iter().chain(&host.on_link);
        let addresses = verdict.in_force.addresses();
        for address in addresses.iter().chain(&verdict.in_force.dns) {
            prop_assert!(!is_unusable(*address));
            prop_assert!(!networks().any(|(_, net)| net.contains(address)));
            prop_assert!(!host.next_hops.contains(address) && !host.relay.contains(address));
        }
        for address in &addresses {
            prop_assert!(!host.resolvers.contains(address));
            prop_assert!(wide || PRIVATE.iter().any(|net| net.contains(address)));
        }
        let claims = claim.addresses().len() + claim.dns.len();
        prop_assert_eq!(addresses.len() + verdict.in_force.dns.len() + verdict.refusals.len(), claims);
        // Judging the accepted part again changes nothing, and fewer facts lead to no more
        // refusals.
        prop_assert_eq!(&judge(&verdict.in_force, allowed, &host).in_force, &verdict.in_force);
        let less = judge(&claim, allowed, &HostNetworks::default());
        prop_assert!(less.refusals.len() <= verdict.refusals.len());
    }
}
