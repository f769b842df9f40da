//! Inner packets. A [`Packet`] may have any bytes. An [`InnerPacket`] is a packet whose headers
//! were located, once, where the packet entered this end of the tunnel.

mod headers;
mod inner;

use std::ops::Deref;

#[cfg(debug_assertions)]
pub use headers::parse_count;
pub use headers::{PacketError, PacketHeaders};
pub(crate) use headers::{TCP, UDP};
pub(crate) use inner::FlowIdentity;
pub use inner::{InnerPacket, InnerPacketBuf, IpHeader};

/// The work that the kernel has left to be done on a packet before the packet can leave through a
/// network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// An ordinary packet: nothing is left to be done.
    #[default]
    None,
    /// The TCP or UDP checksum is partial: it holds only the sum of the pseudo-header.
    Checksum,
    /// The packet has to be cut into segments of this many payload bytes, each with its own
    /// checksum.
    Segment(u16),
}

/// A borrowed inner packet with the checksum and segmentation work still to be done on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The packet from its IP header on.
    pub bytes: &'a [u8],
    /// The checksum or segmentation work left to be done on the packet.
    pub offload: Offload,
}

/// An owned inner packet with the checksum and segmentation work still to be done on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketBuf {
    /// The packet from its IP header on.
    pub bytes: Box<[u8]>,
    /// The checksum or segmentation work left to be done on the packet.
    pub offload: Offload,
}

impl Deref for Packet<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// Converts the bytes of an ordinary packet, which needs no offload.
impl<'a> From<&'a [u8]> for Packet<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, offload: Offload::None }
    }
}

/// Converts the bytes of an ordinary packet, which needs no offload.
impl<'a> From<&'a Vec<u8>> for Packet<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

/// Converts the bytes of an ordinary packet, which needs no offload.
impl<'a, const N: usize> From<&'a [u8; N]> for Packet<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl<'a> From<&'a PacketBuf> for Packet<'a> {
    fn from(packet: &'a PacketBuf) -> Self {
        Self { bytes: &packet.bytes, offload: packet.offload }
    }
}

impl From<Packet<'_>> for PacketBuf {
    fn from(packet: Packet<'_>) -> Self {
        Self { bytes: packet.bytes.into(), offload: packet.offload }
    }
}
