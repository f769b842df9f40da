use super::*;
use crate::pool::TakenAddresses;

/// Builds a packet that consists of an IP header only.
pub(crate) fn packet(source: &str, destination: &str) -> Vec<u8> {
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet
        }
        _ => panic!("two families in one packet"),
    }
}

/// Returns a shared policy in which clients are isolated and have the reach `reach`.
pub(crate) fn shared_policy(reach: &str) -> Arc<SharedPolicy> {
    let resolvers = vec!["10.1.1.53".parse().unwrap()];
    let reach = reach.parse().unwrap();
    Arc::new(SharedPolicy::new(Policy {
        isolate: true,
        reach,
        resolvers,
        inbound_datagrams: false,
        local: Vec::new(),
    }))
}

fn filter_with(shared_policy: &Arc<SharedPolicy>) -> SourceFilter {
    let pools = Pools::new(Some("10.9.0.0/24".parse().unwrap()), Some("fd12::/64".parse().unwrap())).unwrap();
    let lease = pools.lease(Lease::default(), &mut TakenAddresses::default()).unwrap();
    SourceFilter::new(lease, pools, Arc::clone(shared_policy), OwnReach::default())
}

fn filter() -> SourceFilter {
    filter_with(&shared_policy("all"))
}

/// Builds a packet with the first bytes of an upper-layer header.
fn packet_of(protocol: u8, source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = packet(source, destination);
    packet.extend(payload);
    let (at, length_at) = if packet[0] >> 4 == 4 { (9, 2) } else { (6, 4) };
    packet[at] = protocol;
    let length = packet.len() - if length_at == 2 { 0 } else { 40 };
    packet[length_at..length_at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    packet
}

fn tcp(destination: &str, port: u16, flags: u8) -> Vec<u8> {
    let mut payload = [0; 20];
    payload[2..4].copy_from_slice(&port.to_be_bytes());
    payload[13] = flags;
    packet_of(TCP, "10.9.0.2", destination, &payload)
}

#[test]
fn out_of_reach_packets_are_refused_except_answers_and_pushed_resolvers() {
    let shared_policy = shared_policy("internet");
    let mut filter = filter_with(&shared_policy);
    for refused in ["192.168.1.1", "10.1.1.1", "168.63.129.16", "100.100.100.200"] {
        assert_eq!(filter.check(&tcp(refused, 80, SYN)), Err(DropReason::Reach), "{refused}");
        assert_eq!(filter.check(&packet("10.9.0.2", refused)), Err(DropReason::Reach), "{refused}");
        // A reply to a machine of the LAN that connected through a forwarded port.
        assert_eq!(filter.check(&tcp(refused, 80, SYN | ACK)), Ok(()), "{refused}");
    }
    assert_eq!(filter.check(&packet("fd12::2", "fd00:ec2::254")), Err(DropReason::Reach));
    assert_eq!(filter.check(&tcp("192.0.2.1", 80, SYN)), Ok(()));
    assert_eq!(filter.check(&tcp("10.1.1.53", 53, SYN)), Ok(()));
    assert_eq!(filter.check(&tcp("10.1.1.53", 54, SYN)), Err(DropReason::Reach));
    let query = packet_of(UDP, "10.9.0.2", "10.1.1.53", &[0, 9, 0, 53, 0, 8, 0, 0]);
    assert_eq!(filter.check(&query), Ok(()));
    let mut fragment = query.clone();
    fragment[7] = 1;
    assert_eq!(filter.check(&fragment), Err(DropReason::Reach), "a later fragment has no port");
    let echo = |kind| packet_of(ICMP, "10.9.0.2", "10.1.1.1", &[kind, 0, 0, 0]);
    assert_eq!((filter.check(&echo(8)), filter.check(&echo(0))), (Err(DropReason::Reach), Ok(())));
    let echo = |kind| packet_of(ICMPV6, "fd12::2", "fd77::1", &[kind, 0, 0, 0]);
    assert_eq!((filter.check(&echo(128)), filter.check(&echo(129))), (Err(DropReason::Reach), Ok(())));
    assert_eq!(filter.check(&packet("10.9.0.2", "10.9.0.1")), Ok(()), "the relay's own");
}

#[test]
fn policy_and_reach_changes_apply_to_the_next_packet() {
    let shared_policy = shared_policy("internet");
    let mut filter = filter_with(&shared_policy);
    let syn = tcp("192.168.1.1", 80, SYN);
    assert_eq!(filter.check(&syn), Err(DropReason::Reach));
    shared_policy.change(|policy| policy.reach = Reach::All);
    assert_eq!(filter.check(&syn), Ok(()));
    *filter.own.write().unwrap() = Some("192.168.2.0/24".parse().unwrap());
    shared_policy.change(|_| {});
    assert_eq!(filter.check(&syn), Err(DropReason::Reach));
    assert_eq!(filter.check(&tcp("192.168.2.1", 80, SYN)), Ok(()));
    *filter.own.write().unwrap() = Some("internet,198.51.100.0/24".parse().unwrap());
    shared_policy.change(|policy| {
        policy.local =
            ["192.0.2.1/32", "203.0.113.0/24", "198.51.100.0/28"].map(|net| net.parse().unwrap()).into();
    });
    assert_eq!(filter.check(&tcp("192.0.2.1", 80, SYN)), Err(DropReason::Reach), "this host's own");
    assert_eq!(filter.check(&tcp("192.0.2.2", 80, SYN)), Ok(()));
    assert_eq!(
        filter.check(&tcp("203.0.113.9", 80, SYN)),
        Err(DropReason::Reach),
        "a neighbour of this host"
    );
    assert_eq!(
        filter.check(&tcp("198.51.100.1", 80, SYN)),
        Ok(()),
        "this host's own address in a listed network"
    );
    let datagram = packet_of(UDP, "10.9.0.2", "10.1.1.1", &[0; 8]);
    assert_eq!(filter.check(&datagram), Err(DropReason::Reach));
    shared_policy.change(|policy| policy.inbound_datagrams = true);
    assert_eq!(filter.check(&datagram), Ok(()));
}

#[test]
fn a_client_reaches_the_internet_and_the_relay_from_its_own_addresses() {
    for (source, destination) in [
        ("10.9.0.2", "192.0.2.1"),
        ("10.9.0.2", "10.9.0.1"),
        ("fd12::2", "2001:db8::1"),
        ("fd12::2", "fd12::1"),
    ] {
        assert_eq!(filter().check(&packet(source, destination)), Ok(()), "{source} {destination}");
    }
}

#[test]
fn packets_with_a_foreign_source_address_are_refused() {
    for (source, destination) in [
        ("10.9.0.3", "192.0.2.1"),
        ("192.0.2.9", "192.0.2.1"),
        ("0.0.0.0", "192.0.2.1"),
        ("fd12::3", "2001:db8::1"),
    ] {
        assert_eq!(filter().check(&packet(source, destination)), Err(DropReason::Source), "{source}");
    }
    let mut ipv4_only = SourceFilter { lease: Lease { ipv6: None, ..filter().lease }, ..filter() };
    assert_eq!(ipv4_only.check(&packet("fd12::2", "2001:db8::1")), Err(DropReason::Source));
}

#[test]
fn isolated_clients_do_not_reach_each_other() {
    assert_eq!(filter().check(&packet("10.9.0.2", "10.9.0.77")), Err(DropReason::Isolation));
    assert_eq!(filter().check(&packet("fd12::2", "fd12::77")), Err(DropReason::Isolation));
}

#[test]
fn clients_reach_each_other_without_isolation() {
    let shared_policy = shared_policy("all");
    let mut filter = filter_with(&shared_policy);
    shared_policy.change(|policy| policy.isolate = false);
    assert_eq!(filter.check(&packet("10.9.0.2", "10.9.0.77")), Ok(()));
    assert_eq!(filter.check(&packet("10.9.0.3", "10.9.0.77")), Err(DropReason::Source));
}

#[test]
fn destinations_that_no_router_forwards_to_are_refused() {
    for destination in ["127.0.0.1", "169.254.169.254", "224.0.0.251", "255.255.255.255", "0.0.0.0"] {
        assert_eq!(
            filter().check(&packet("10.9.0.2", destination)),
            Err(DropReason::Destination),
            "{destination}"
        );
    }
    for destination in ["::1", "::", "fe80::1", "ff02::fb", "::ffff:127.0.0.1"] {
        assert_eq!(
            filter().check(&packet("fd12::2", destination)),
            Err(DropReason::Destination),
            "{destination}"
        );
    }
}

#[test]
fn invalid_packets_are_malformed() {
    let good = packet("10.9.0.2", "192.0.2.1");
    for bad in [&[][..], &[0x45], &good[..19], &[&good[..], &[0]].concat(), &[0xff; 40]] {
        assert_eq!(filter().check(bad), Err(DropReason::Malformed), "{bad:?}");
    }
}
