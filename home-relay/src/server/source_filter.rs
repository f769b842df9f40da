//! Filters the packets that a client sends: only from the client's own addresses (BCP 38), and only
//! to destinations that a router forwards to and that are within the client's reach.

mod policy;
#[cfg(test)]
pub(crate) mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, PoisonError, RwLock};

use mobile_proto::InnerPacket;

use policy::CurrentPolicy;
pub(crate) use policy::{Policy, SharedPolicy};

use crate::metrics::DropReason;
use crate::pool::{Lease, Pools};
use crate::reach::Reach;

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
    pub(crate) fn check<'a>(&mut self, packet: impl Into<InnerPacket<'a>>) -> Result<(), DropReason> {
        let packet = packet.into();
        let version = self.shared_policy.version();
        if version != self.version {
            self.adopt_policy(version);
        }
        let header = packet.ip().map_err(|_| DropReason::Malformed)?;
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
            Some(ranges) if !ranges.contains(header.dst) && !self.is_excepted(&packet, header.dst) => {
                Err(DropReason::Reach)
            }
            _ => Ok(()),
        }
    }

    /// Returns whether a packet to an address out of reach may be an answer, or is a query to a
    /// pushed resolver. This filter only drops packets that begin a connection, because the
    /// nftables rules track connections and check the others.
    fn is_excepted(&self, packet: &InnerPacket<'_>, destination: IpAddr) -> bool {
        let Some((protocol, payload)) = packet.upper_layer() else { return false };
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
