//! The device whose other side is the relay host's network stack.

use std::io;

use mobile_proto::{InnerPacket, PacketHeaders};
use mobile_transport::tun::Tun;

/// The device to which a session writes its client's packets and from which it reads packets for
/// clients: the home virtual device, or a substitute in tests.
pub(crate) trait PacketDevice: Send + Sync {
    /// Writes one packet to the device.
    fn send(&self, packet: InnerPacket<'_>) -> io::Result<()>;

    /// Returns whether the device accepts datagrams coalesced into one packet.
    fn coalesces_datagrams(&self) -> bool {
        false
    }

    /// Reads a packet that is already waiting into `buffer`, without blocking, and returns where
    /// its headers are.
    fn try_recv(&self, buffer: &mut [u8]) -> io::Result<PacketHeaders>;
}

impl PacketDevice for Tun {
    fn send(&self, packet: InnerPacket<'_>) -> io::Result<()> {
        self.try_send(packet)
    }

    fn coalesces_datagrams(&self) -> bool {
        self.coalesces_datagrams()
    }

    fn try_recv(&self, buffer: &mut [u8]) -> io::Result<PacketHeaders> {
        self.try_recv(buffer)
    }
}
