//! Keeps packets from the relay away from addresses of this host that are not persistent ones.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{PoisonError, RwLock};

use mobile_proto::InnerPacket;

/// Decides which packets from the relay may be delivered to the host virtual device, and counts the
/// others.
#[derive(Debug, Default)]
pub(crate) struct DeliveryFilter {
    addresses: RwLock<Vec<IpAddr>>,
    /// The number of packets that the device refused because its queue was full or it was down.
    pub(crate) refused: AtomicU64,
    /// The number of packets from the relay that were malformed or not addressed to a persistent
    /// address.
    pub(crate) misaddressed: AtomicU64,
}

impl DeliveryFilter {
    /// Sets the persistent addresses; only packets to these addresses are delivered.
    pub(crate) fn set_addresses(&self, addresses: Vec<IpAddr>) {
        *self.addresses.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Returns whether a packet from the relay may be delivered. The kernel would accept a packet
    /// for any address of this host, including an uplink's, but a relay may reach only persistent
    /// addresses.
    pub(crate) fn admits(&self, packet: InnerPacket<'_>) -> bool {
        packet.destination().is_some_and(|destination| {
            self.addresses.read().unwrap_or_else(PoisonError::into_inner).contains(&destination)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4_to(last: u8) -> Vec<u8> {
        let mut packet = vec![0u8; 20];
        packet[0] = 0x45;
        packet[3] = 20;
        packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
        packet[16..20].copy_from_slice(&[10, 77, 0, last]);
        packet
    }

    fn is_admitted(filter: &DeliveryFilter, packet: &[u8]) -> bool {
        filter.admits(packet.into())
    }

    #[test]
    fn only_packets_for_the_persistent_address_are_admitted() {
        let filter = DeliveryFilter::default();
        assert!(!is_admitted(&filter, &ipv4_to(2)));
        filter.set_addresses(vec!["10.77.0.2".parse().unwrap()]);
        assert!(is_admitted(&filter, &ipv4_to(2)));
        assert!(!is_admitted(&filter, &ipv4_to(3)));
        assert!(!is_admitted(&filter, &ipv4_to(2)[..10]));
        assert!(!is_admitted(&filter, &[]));
    }
}
