//! The queue of one flow, and the assignment of packets to flow queues.

use std::hash::{DefaultHasher, Hasher};

use super::codel::CoDel;
use super::slab::List;
use crate::packet::FlowIdentity;

/// Number of flow queues. Two flows whose hash is the same share a queue and its turns. A laptop
/// sends on a handful of flows at a time, so an interactive flow shares a queue with a bulk
/// transfer once in a hundred connections. All flow queues take 24 KiB.
pub(super) const BUCKETS: usize = 256;

/// The packets and the scheduling state of one flow queue.
#[derive(Debug, Default)]
pub(super) struct FlowQueue {
    pub(super) list: List,
    pub(super) bytes: usize,
    /// Bytes that the flow may still send in its turn; negative if it has sent more than that.
    pub(super) credits: i64,
    /// Whether the flow is in one of the lists of flows that take turns.
    pub(super) scheduled: bool,
    pub(super) codel: CoDel,
}

/// Returns the index of the flow queue of a packet, a hash of addresses, protocol and ports. The
/// hash is keyed with the secret `seed`, so that nobody can aim packets at another flow's queue.
pub(super) fn bucket_of(seed: &[u8], flow: FlowIdentity<'_>) -> u16 {
    let mut hasher = DefaultHasher::new();
    hasher.write(seed);
    hasher.write(flow.addresses);
    hasher.write_u8(flow.protocol);
    hasher.write(flow.ports);
    // The result is below 256.
    (hasher.finish() % BUCKETS as u64) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::InnerPacket;

    fn flow_identity(packet: &[u8]) -> FlowIdentity<'_> {
        InnerPacket::from(packet).flow()
    }

    fn bucket_of(seed: &[u8], packet: &[u8]) -> u16 {
        super::bucket_of(seed, flow_identity(packet))
    }

    fn v4(port: u8, protocol: u8) -> Vec<u8> {
        let mut packet = vec![0x45; 28];
        packet[6..8].fill(0);
        packet[9] = protocol;
        packet[23] = port;
        packet
    }

    #[test]
    fn a_flow_is_identified_by_addresses_protocol_and_ports() {
        let mut longer = v4(1, 6);
        longer.extend([7; 100]);
        assert_eq!(flow_identity(&v4(1, 6)), flow_identity(&longer));
        assert_ne!(flow_identity(&v4(1, 6)), flow_identity(&v4(2, 6)));
        assert_ne!(flow_identity(&v4(1, 6)), flow_identity(&v4(1, 17)));
        // ICMP has no ports.
        assert_eq!(flow_identity(&v4(1, 1)), flow_identity(&v4(2, 1)));
        // A fragment has no ports either.
        let fragment = |port| {
            let mut packet = v4(port, 17);
            packet[6] = 0x20;
            packet
        };
        assert_eq!(flow_identity(&fragment(1)), flow_identity(&fragment(2)));
        let mut six = vec![0x60; 48];
        six[6] = 17;
        let mut other = six.clone();
        other[41] = 0;
        assert_ne!(flow_identity(&six), flow_identity(&other));
    }

    #[test]
    fn flows_spread_differently_for_each_seed() {
        let buckets =
            |seed: u8| -> Vec<u16> { (0..=255).map(|port| bucket_of(&[seed], &v4(port, 6))).collect() };
        let mut used = buckets(1);
        used.sort_unstable();
        used.dedup();
        assert!(used.len() > 120, "{}", used.len());
        assert_ne!(buckets(1), buckets(2));
    }

    #[test]
    fn any_bytes_have_a_bucket() {
        for length in 0..60 {
            for first in [0x00, 0x45, 0x4f, 0x60, 0xff] {
                let mut packet = vec![first; length];
                if let Some(protocol) = packet.get_mut(9) {
                    *protocol = 6;
                }
                assert!(usize::from(bucket_of(&[], &packet)) < BUCKETS);
            }
        }
    }
}
