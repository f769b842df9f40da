//! The host virtual device as the session sees it.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use mobile_io::coalescing::CoalescingWriter;
use mobile_io::driver::PacketIo;
use mobile_io::tun::Tun;
use mobile_proto::packet::IpHeader;
use mobile_proto::{CoalescedSegment, Offload, Packet};

/// Counters of what the device did not take, and what may be delivered to it.
#[derive(Debug, Default)]
pub(crate) struct DeviceSide {
    addresses: RwLock<Vec<IpAddr>>,
    /// Packets the device refused: its queue was full, or it is down.
    pub(crate) refused: AtomicU64,
    /// Packets from the relay for an address that is not ours, or no packets at all.
    pub(crate) misaddressed: AtomicU64,
}

impl DeviceSide {
    /// Only packets for these addresses are delivered.
    pub(crate) fn set_addresses(&self, addresses: Vec<IpAddr>) {
        *self.addresses.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// The kernel would take a packet for any address of this host, also one of an uplink: a relay gets the persistent ones only.
    fn admits(&self, packet: &[u8]) -> bool {
        IpHeader::parse(packet).is_ok_and(|header| {
            self.addresses.read().unwrap_or_else(PoisonError::into_inner).contains(&header.dst)
        })
    }
}

/// The device, read and written by the driver.
pub(crate) struct TunIo {
    tun: Tun,
    side: Arc<DeviceSide>,
    joining: CoalescingWriter,
}

impl TunIo {
    /// Takes the open device.
    pub(crate) fn new(tun: Tun, side: Arc<DeviceSide>) -> Self {
        let joining = CoalescingWriter::new(tun.coalesces_datagrams());
        Self { tun, side, joining }
    }
}

impl PacketIo for TunIo {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, Offload)>> {
        self.tun.poll_recv(cx, buf)
    }

    fn send(&mut self, packet: Packet<'_>) {
        if self.side.admits(packet.bytes) {
            let Self { tun, side, joining } = self;
            joining.send(packet, &mut |packet, made| write(tun, side, packet, made));
        } else {
            self.side.misaddressed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&mut self) {
        let Self { tun, side, joining } = self;
        joining.flush(&mut |packet, made| write(tun, side, packet, made));
    }
}

fn write(tun: &Tun, side: &DeviceSide, packet: Packet<'_>, made: CoalescedSegment) {
    if tun.try_send(packet).is_err() {
        side.refused.fetch_add(made.packets, Ordering::Relaxed);
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
        let side = DeviceSide::default();
        assert!(!side.admits(&ipv4_to(2)));
        side.set_addresses(vec!["10.77.0.2".parse().unwrap()]);
        assert!(side.admits(&ipv4_to(2)));
        assert!(!side.admits(&ipv4_to(3)));
        assert!(!side.admits(&ipv4_to(2)[..10]));
        assert!(!side.admits(&[]));
    }
}
