//! The one place where the headers of inner packets are parsed.
//!
//! Packets come from the TUN or from the peer, so no byte of them is trusted: every offset is
//! checked here against the length of the packet, and is stored only if the field at this offset is
//! inside the packet.

use super::{Offload, Packet};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Length of an IPv4 header without options, in bytes.
const IPV4_HEADER: usize = 20;
/// Length of an IPv6 header without extension headers, in bytes.
pub(super) const IPV6_HEADER: usize = 40;
/// Length of a TCP header without options, in bytes.
pub(super) const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// IP protocols whose header starts with two ports: TCP, UDP, DCCP and SCTP.
const WITH_PORTS: [u8; 4] = [TCP, UDP, 33, 132];

/// The reason why bytes are not an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The buffer is too short for the header of its version.
    #[error("an IP packet of {0} bytes is too short for its header")]
    TooShort(usize),
    /// The version is neither 4 nor 6.
    #[error("IP version {0} is neither 4 nor 6")]
    Version(u8),
    /// An IPv4 header length below 20 bytes or beyond the packet.
    #[error("IPv4 header length {0} is below 20 bytes or beyond the packet")]
    HeaderLength(usize),
    /// The length in the header differs from the length of the buffer.
    #[error("the IP header says {claimed} bytes, the packet has {actual}")]
    Length {
        /// The length in the header.
        claimed: usize,
        /// The length of the buffer.
        actual: usize,
    },
}

/// The offsets of the headers of an inner packet, with its length and its offload, but without its
/// bytes.
///
/// A function that reads a packet into a buffer returns these headers.
/// [`InnerPacket::in_buffer`](super::InnerPacket::in_buffer) joins them with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHeaders {
    length: u32,
    offload: Offload,
    layout: Layout,
}

impl PacketHeaders {
    pub(super) fn new(packet: Packet<'_>, layout: Layout) -> Self {
        // A longer packet cannot be sent, whatever its exact length.
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        Self { length, offload: packet.offload, layout }
    }

    /// Locates the headers of a packet.
    #[must_use]
    pub fn locate<'a>(packet: impl Into<Packet<'a>>) -> Self {
        let packet = packet.into();
        Self::new(packet, Layout::locate(packet.bytes))
    }

    /// Returns the length of the packet in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Returns the headers of a packet of another `length`, which must not be shorter. Its headers
    /// differ from these only in their lengths and checksums.
    pub(crate) fn resized(self, length: usize, offload: Offload) -> Self {
        debug_assert!(length >= self.len(), "the offsets were checked against the former length");
        Self { length: u32::try_from(length).unwrap_or(u32::MAX), offload, ..self }
    }

    /// Returns whether the packet has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns the checksum or segmentation work left to be done on the packet.
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.offload
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }
}

/// The IP version of a packet, or the reason why it is no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IpValidity {
    V4,
    V6,
    /// See [`PacketError::TooShort`].
    TooShort,
    /// See [`PacketError::Version`].
    Version,
    /// See [`PacketError::HeaderLength`].
    HeaderLength,
    /// See [`PacketError::Length`].
    Length,
}

/// Offsets into a packet, in bytes, all of them inside the packet. The offsets are below 2^14: the
/// IP header has at most four extensions of 2 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The offset of the transport header; 0 if there is no complete one.
    pub(super) transport: u16,
    /// The offset of the end of the transport header; 0 if there is no complete one.
    pub(super) payload: u16,
    /// The length of the IP header without IPv6 extensions. In a packet that is no IP packet, the
    /// length that the header claims.
    pub(super) ip_len: u8,
    /// The protocol of the transport header: [`TCP`] or [`UDP`].
    pub(super) protocol: u8,
    pub(super) status: IpValidity,
    /// Whether two ports directly follow the IP header. A packet with an invalid IP header may have
    /// ports, too, because the queue assigns it to a flow like any other packet.
    pub(super) has_ports: bool,
}

impl Layout {
    /// Locates the headers of a packet, whose bytes may be arbitrary.
    pub(super) fn locate(packet: &[u8]) -> Self {
        #[cfg(debug_assertions)]
        parse_count::COUNT.set(parse_count::COUNT.get() + 1);
        match packet {
            [first, ..] if first >> 4 == 4 => Self::locate_v4(packet),
            [first, ..] if first >> 4 == 6 => Self::locate_v6(packet),
            [_, ..] => Self::without_headers(IpValidity::Version),
            [] => Self::without_headers(IpValidity::TooShort),
        }
    }

    fn locate_v4(packet: &[u8]) -> Self {
        let Some(header) = packet.first_chunk::<IPV4_HEADER>() else {
            return Self::without_headers(IpValidity::TooShort);
        };
        let claimed = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let ip_len = (header[0] & 0x0f) * 4;
        let end = usize::from(ip_len);
        let status = if claimed != packet.len() {
            IpValidity::Length
        } else if end < IPV4_HEADER || end > packet.len() {
            IpValidity::HeaderLength
        } else {
            IpValidity::V4
        };
        // With more-fragments or an offset, the transport header or payload is incomplete.
        let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        let protocol = header[9];
        let mut layout = Self { ip_len, ..Self::without_headers(status) };
        if !is_fragment {
            layout.has_ports = WITH_PORTS.contains(&protocol) && packet.len() >= end + 4;
            if status == IpValidity::V4 {
                layout.locate_transport(packet, protocol, end);
            }
        }
        layout
    }

    fn locate_v6(packet: &[u8]) -> Self {
        let Some(header) = packet.first_chunk::<IPV6_HEADER>() else {
            return Self::without_headers(IpValidity::TooShort);
        };
        let claimed = usize::from(u16::from_be_bytes([header[4], header[5]])) + IPV6_HEADER;
        let status = if claimed == packet.len() { IpValidity::V6 } else { IpValidity::Length };
        let mut layout = Self { ip_len: IPV6_HEADER as u8, ..Self::without_headers(status) };
        layout.has_ports = WITH_PORTS.contains(&header[6]) && packet.len() >= IPV6_HEADER + 4;
        if status == IpValidity::V6
            && let Some((protocol, at)) = skip_extensions(packet, header[6])
        {
            layout.locate_transport(packet, protocol, at);
        }
        layout
    }

    /// Stores the offset `start` of the transport header if the header is complete.
    fn locate_transport(&mut self, packet: &[u8], protocol: u8, start: usize) {
        let header = packet.get(start..).unwrap_or_default();
        let (length, least) = match (protocol, header.get(12)) {
            (TCP, Some(offset)) => (usize::from(offset >> 4) * 4, TCP_HEADER),
            (UDP, _) => (UDP_HEADER, UDP_HEADER),
            _ => return,
        };
        if length < least || length > header.len() {
            return;
        }
        if let (Ok(transport), Ok(payload)) = (u16::try_from(start), u16::try_from(start + length)) {
            (self.protocol, self.transport, self.payload) = (protocol, transport, payload);
        }
    }

    fn without_headers(status: IpValidity) -> Self {
        Self { transport: 0, payload: 0, ip_len: 0, protocol: 0, status, has_ports: false }
    }
}

/// Returns the transport protocol of an IPv6 packet whose first next-header field is `next`, and
/// the length of all its IP headers; `None` if an extension is cut off.
fn skip_extensions(packet: &[u8], mut next: u8) -> Option<(u8, usize)> {
    let mut at = IPV6_HEADER;
    // Hop-by-hop, routing and destination options (RFC 8200, 4.1), each at most once or twice.
    for _ in 0..4 {
        if !matches!(next, 0 | 43 | 60) {
            break;
        }
        let extension = packet.get(at..at + 8)?;
        (next, at) = (extension[0], at + usize::from(extension[1]) * 8 + 8);
    }
    Some((next, at))
}

/// Returns the version by which the addresses of a packet can be read, even if its lengths are
/// wrong; 0 if the addresses cannot be read.
pub(super) fn addressed_version(packet: &[u8], status: IpValidity) -> u8 {
    match status {
        IpValidity::V4 | IpValidity::HeaderLength => 4,
        IpValidity::V6 => 6,
        IpValidity::Length => packet.first().map_or(0, |first| first >> 4),
        IpValidity::TooShort | IpValidity::Version => 0,
    }
}

/// Returns the reason why a packet is no IP packet, with the invalid values.
pub(super) fn error(packet: &[u8], status: IpValidity) -> PacketError {
    let first = packet.first().copied().unwrap_or_default();
    let word = |at: usize| match packet.get(at..at + 2) {
        Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
        _ => 0,
    };
    match status {
        IpValidity::Version => PacketError::Version(first >> 4),
        IpValidity::HeaderLength => PacketError::HeaderLength(usize::from(first & 0x0f) * 4),
        IpValidity::Length => {
            let claimed = if first >> 4 == 4 { word(2) } else { word(4) + IPV6_HEADER };
            PacketError::Length { claimed, actual: packet.len() }
        }
        IpValidity::V4 | IpValidity::V6 | IpValidity::TooShort => PacketError::TooShort(packet.len()),
    }
}

/// Counts how often packets were parsed, for tests; not part of a release build.
#[cfg(debug_assertions)]
#[doc(hidden)]
pub mod parse_count {
    use std::cell::Cell;

    thread_local! {
        pub(super) static COUNT: Cell<u64> = const { Cell::new(0) };
    }

    /// Returns how many packets have had their headers located in this thread.
    #[must_use]
    pub fn count() -> u64 {
        COUNT.get()
    }
}
