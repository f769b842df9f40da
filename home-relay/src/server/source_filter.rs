//! Filters the packets that a client sends: only from the client's own addresses (BCP 38), and only
//! to destinations that a router forwards to and that are within the client's reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use mobile_proto::packet::IpHeader;

use ipnet::IpNet;

use crate::metrics::DropReason;
use crate::pool::{Lease, Pools};
use crate::reach::{Ranges, Reach};

/// The policy that the source filters of all clients share; a reload may change it.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Whether clients are kept from reaching each other.
    pub(crate) isolate: bool,
    /// The reach of clients without a reach of their own.
    pub(crate) reach: Reach,
    /// The DNS resolvers that are pushed to clients, which clients may query even outside their
    /// reach.
    pub(crate) resolvers: Vec<IpAddr>,
    /// Whether Internet hosts may send datagrams to clients first, so that a client's datagram may
    /// be an answer.
    pub(crate) inbound_datagrams: bool,
    /// The relay host's own addresses and the networks that it is connected to, which "internet"
    /// excludes.
    pub(crate) local: Vec<IpNet>,
}

/// The policy of all source filters, with a version number by which they notice a change without a
/// lock.
#[derive(Debug)]
pub(crate) struct SharedPolicy {
    version: AtomicU64,
    current: RwLock<CurrentPolicy>,
}

/// A policy and the address ranges of its reach, which the filters of all clients share, because a
/// copy in each session would cost 1.3 KiB.
#[derive(Debug, Clone)]
struct CurrentPolicy {
    policy: Arc<Policy>,
    /// The destination addresses within reach; `None` if every destination is.
    ranges: Arc<Option<Ranges>>,
}

impl From<Policy> for CurrentPolicy {
    fn from(policy: Policy) -> Self {
        let ranges = policy.reach.ranges_without(&policy.local);
        Self { policy: Arc::new(policy), ranges: Arc::new(ranges) }
    }
}

impl SharedPolicy {
    /// Creates a policy that the filters of all clients share and that can be replaced later.
    pub(crate) fn new(policy: Policy) -> Self {
        Self { version: AtomicU64::new(1), current: RwLock::new(policy.into()) }
    }

    /// Changes the policy; every filter adopts it with its next packet.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Policy)) {
        {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            let mut policy = Policy::clone(&current.policy);
            change(&mut policy);
            *current = policy.into();
        }
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Returns whether the policy already has `local` as this host's own addresses and networks.
    pub(crate) fn has_local(&self, local: &[IpNet]) -> bool {
        self.current().policy.local == local
    }

    fn current(&self) -> CurrentPolicy {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One client's own reach, or `None` if it has none and [`Policy::reach`] applies. May change
/// during a session.
pub(crate) type OwnReach = Arc<RwLock<Option<Reach>>>;

/// The filter of the packets that one client sends.
#[derive(Debug)]
pub(crate) struct SourceFilter {
    lease: Lease,
    pools: Pools,
    shared_policy: Arc<SharedPolicy>,
    own: OwnReach,
    /// The version of the shared policy that `current` was made from.
    version: u64,
    /// The policy that applies to all clients. If this client has a reach of its own, the ranges of
    /// that reach replace those of `[clients] reach`.
    current: CurrentPolicy,
}

impl SourceFilter {
    /// Creates the filter of the client that holds `lease`; `own` is the client's own reach, if
    /// any.
    pub(crate) fn new(lease: Lease, pools: Pools, shared_policy: Arc<SharedPolicy>, own: OwnReach) -> Self {
        let current = shared_policy.current();
        // No policy has version 0, so the first packet makes the filter adopt the client's own
        // reach.
        Self { lease, pools, shared_policy, own, version: 0, current }
    }

    fn adopt_policy(&mut self, version: u64) {
        self.version = version;
        self.current = self.shared_policy.current();
        if let Some(own) = &*self.own.read().unwrap_or_else(PoisonError::into_inner) {
            self.current.ranges = Arc::new(own.ranges_without(&self.current.policy.local));
        }
    }

    /// Returns `Ok` if the client's packet may be forwarded, or the reason to drop it.
    pub(crate) fn check(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let version = self.shared_policy.version.load(Ordering::Acquire);
        if version != self.version {
            self.adopt_policy(version);
        }
        let header = IpHeader::parse(packet).map_err(|_| DropReason::Malformed)?;
        let own = match header.src {
            IpAddr::V4(source) => self.lease.ipv4 == Some(source),
            IpAddr::V6(source) => self.lease.ipv6 == Some(source),
        };
        if !own {
            return Err(DropReason::Source);
        }
        if self.pools.contains(header.dst) {
            // The device's own address answers pings. The nftables rules decide what else clients
            // reach there, since they know which connections the relay's host began.
            return if self.current.policy.isolate && !self.pools.is_own(header.dst) {
                Err(DropReason::Isolation)
            } else {
                Ok(())
            };
        }
        if !is_forwardable(header.dst) {
            return Err(DropReason::Destination);
        }
        match &*self.current.ranges {
            Some(ranges) if !ranges.contains(header.dst) && !self.is_excepted(packet, header.dst) => {
                Err(DropReason::Reach)
            }
            _ => Ok(()),
        }
    }

    /// Returns whether a packet to an address out of reach may be an answer, or is a query to a
    /// pushed resolver. This filter only drops packets that begin a connection, because the
    /// nftables rules track connections and check the others.
    fn is_excepted(&self, packet: &[u8], destination: IpAddr) -> bool {
        let Some((protocol, payload)) = upper_layer(packet) else { return false };
        let to_port = |port: u16| payload.get(2..4) == Some(&port.to_be_bytes());
        if matches!(protocol, TCP | UDP)
            && to_port(DNS)
            && self.current.policy.resolvers.contains(&destination)
        {
            return true;
        }
        match protocol {
            // Pass every segment of a connection but the first.
            TCP => payload.get(13).is_some_and(|flags| flags & (SYN | ACK) != SYN),
            UDP => self.current.policy.inbound_datagrams,
            // RFC 792: echo reply, and errors.
            ICMP => payload.first().is_some_and(|kind| matches!(kind, 0 | 3 | 11 | 12)),
            // RFC 4443: errors, and echo reply.
            ICMPV6 => payload.first().is_some_and(|kind| matches!(kind, 1..=4 | 129)),
            _ => false,
        }
    }
}

/// The protocol numbers (IANA), the port of DNS, and two flags of TCP.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const DNS: u16 = 53;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Returns the upper-layer protocol and its header, or `None` if the header is not in this packet
/// (later fragments) or not right after the IP header (IPv6 extension headers).
fn upper_layer(packet: &[u8]) -> Option<(u8, &[u8])> {
    let first = *packet.first()?;
    if first >> 4 == 4 {
        let offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
        let header = usize::from(first & 0x0f) * 4;
        return (offset == 0).then_some((*packet.get(9)?, packet.get(header..)?));
    }
    Some((*packet.get(6)?, packet.get(40..)?))
}

/// Returns whether a router may forward to the address. Multicast, link-local and loopback
/// addresses are not forwarded to; from a tunnel they could only reach services of the relay's host
/// that are meant for its neighbours.
fn is_forwardable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_forwardable_ipv4(address),
        IpAddr::V6(address) => is_forwardable_ipv6(address),
    }
}

fn is_forwardable_ipv4(address: Ipv4Addr) -> bool {
    !(address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        // RFC 1122, 3.2.1.3: "this network" is never a destination.
        || address.octets()[0] == 0)
}

fn is_forwardable_ipv6(address: Ipv6Addr) -> bool {
    !(address.is_loopback()
        || address.is_unicast_link_local()
        || address.is_multicast()
        || address.is_unspecified()
        // RFC 4291, 2.5.5: an IPv4 address in disguise is no destination on the wire.
        || address.to_ipv4_mapped().is_some())
}

#[cfg(test)]
pub(crate) mod tests {
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
        let pools =
            Pools::new(Some("10.9.0.0/24".parse().unwrap()), Some("fd12::/64".parse().unwrap())).unwrap();
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
}
