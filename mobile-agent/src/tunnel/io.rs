//! Lets the session driver send and receive packets on the host virtual device.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use mobile_proto::{CoalescedSegment, InnerPacket, PacketHeaders};
use mobile_transport::coalescing::CoalescingWriter;
use mobile_transport::driver::PacketIo;
use mobile_transport::tun::Tun;

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
    fn admits<'a>(&self, packet: impl Into<InnerPacket<'a>>) -> bool {
        packet.into().destination().is_some_and(|destination| {
            self.addresses.read().unwrap_or_else(PoisonError::into_inner).contains(&destination)
        })
    }
}

/// The host virtual device with its delivery filter.
pub(crate) struct TunIo {
    tun: Tun,
    filter: Arc<DeliveryFilter>,
    coalescing: CoalescingWriter,
}

impl TunIo {
    /// Creates the packet I/O on an open TUN device.
    pub(crate) fn new(tun: Tun, filter: Arc<DeliveryFilter>) -> Self {
        let coalescing = CoalescingWriter::new(tun.coalesces_datagrams());
        Self { tun, filter, coalescing }
    }
}

impl PacketIo for TunIo {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<PacketHeaders>> {
        self.tun.poll_recv(cx, buf)
    }

    fn send(&mut self, packet: InnerPacket<'_>) {
        if self.filter.admits(packet) {
            let Self { tun, filter, coalescing } = self;
            coalescing.send(packet, &mut |packet, segment| write(tun, filter, packet, segment));
        } else {
            self.filter.misaddressed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&mut self) {
        let Self { tun, filter, coalescing } = self;
        coalescing.flush(&mut |packet, segment| write(tun, filter, packet, segment));
    }
}

fn write(tun: &Tun, filter: &DeliveryFilter, packet: InnerPacket<'_>, segment: CoalescedSegment) {
    if tun.try_send(packet).is_err() {
        filter.refused.fetch_add(segment.packets, Ordering::Relaxed);
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

    #[test]
    fn only_packets_for_the_persistent_address_are_admitted() {
        let filter = DeliveryFilter::default();
        assert!(!filter.admits(&ipv4_to(2)));
        filter.set_addresses(vec!["10.77.0.2".parse().unwrap()]);
        assert!(filter.admits(&ipv4_to(2)));
        assert!(!filter.admits(&ipv4_to(3)));
        assert!(!filter.admits(&ipv4_to(2)[..10]));
        assert!(!filter.admits(&[]));
    }
}
