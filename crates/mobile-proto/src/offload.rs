//! Segmentation and checksum offload: the work that the kernel left undone on a packet from the
//! TUN.
//!
//! A TUN opened with `IFF_VNET_HDR` puts a `virtio_net_hdr` (virtio 1.2, 5.1.6) before each packet.
//! Its offsets say where a checksum is still to be written and how a packet of up to 64 KiB has to
//! be segmented. The tunnel carries such a packet whole, because a byte stream has no path MTU.
//! Only two facts cross the tunnel: whether the checksum is partial, and the segment size.
//! Everything else is read from the packet's own headers at the far end. Therefore the only value
//! that a peer could forge is the segment size, which is checked.

use crate::packet::{InnerPacket, Offload, PacketError, PacketHeaders, TCP, UDP};

/// Length of the legacy `virtio_net_hdr`, which the TUN driver uses by default, in bytes.
pub const VNET_HEADER_LEN: usize = 10;

/// Smallest accepted segment size in bytes: the kernel's own bound, `TCP_MIN_GSO_SIZE` (the
/// smallest MSS, 48, less 40 bytes of TCP options).
const MIN_SEGMENT: u16 = 8;

/// Maximum number of segments of one TCP packet. The smallest MSS that Linux uses is 48
/// (`tcp_min_snd_mss`), less 12 bytes of timestamps. So the largest packet of an ordinary sender
/// has 1,820 segments.
const MAX_TCP_SEGMENTS: usize = 2048;

/// Maximum number of datagrams into which one large UDP packet is segmented: as many as the kernel
/// lets a program send at once (`UDP_MAX_SEGMENTS` since Linux 6.9).
const MAX_UDP_SEGMENTS: usize = 128;

const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The reason why a packet's offload is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// The packet has no valid IP header.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The header before the packet is shorter than `virtio_net_hdr`.
    #[error("the virtio_net_hdr has {0} bytes, expected {VNET_HEADER_LEN}")]
    ShortHeader(usize),
    /// The packet is neither TCP nor UDP, or is a fragment, or its transport header is cut off.
    #[error("offload requested for a packet without a complete TCP or UDP header")]
    NoTransport,
    /// The kernel requested a kind of segmentation that this program has not enabled for the TUN.
    #[error("unknown segmentation type {0:#04x}, expected TCPv4, TCPv6 or UDP_L4")]
    UnknownKind(u8),
    /// The checksum offsets are not those of the packet's transport header.
    #[error("checksum offsets {start}+{offset} do not match the packet's transport header")]
    BadOffsets {
        /// The offset of the checksummed part in the packet, in bytes.
        start: u16,
        /// The offset of the checksum in the checksummed part, in bytes.
        offset: u16,
    },
    /// The segment size is out of range.
    #[error(
        "segment size {0} is below {MIN_SEGMENT}, too large for the packet's headers, or the packet has no payload"
    )]
    BadSegment(u16),
    /// The packet would be cut into too many segments.
    #[error("the packet would be cut into {0} segments, more than allowed")]
    TooManySegments(usize),
}

impl PacketHeaders {
    /// Locates the headers of `packet`, and reads its offload from the `virtio_net_hdr` that the
    /// kernel put before it.
    ///
    /// # Errors
    /// If the header does not match the packet.
    pub fn from_vnet(header: &[u8], packet: &[u8]) -> Result<Self, OffloadError> {
        let headers = Self::locate(packet);
        let offload = Offload::from_vnet(header, InnerPacket::in_buffer(packet, headers))?;
        Ok(headers.resized(packet.len(), offload))
    }
}

impl Offload {
    /// Reads the `virtio_net_hdr` that the kernel put before `packet`, and checks it against the
    /// packet's own headers.
    ///
    /// # Errors
    /// If the header does not match the packet.
    pub(crate) fn from_vnet<'a>(
        header: &[u8],
        packet: impl Into<InnerPacket<'a>>,
    ) -> Result<Self, OffloadError> {
        let header: &[u8; VNET_HEADER_LEN] =
            header.first_chunk().ok_or(OffloadError::ShortHeader(header.len()))?;
        let packet = packet.into();
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let (flags, kind, gso_size, start, offset) = (header[0], header[1], word(4), word(6), word(8));
        if flags & F_NEEDS_CSUM == 0 {
            return if kind == GSO_NONE { Ok(Self::None) } else { Err(OffloadError::UnknownKind(kind)) };
        }
        let transport = Transport::of(&packet)?;
        if usize::from(start) != transport.start || offset != transport.checksum_offset() {
            return Err(OffloadError::BadOffsets { start, offset });
        }
        let offload = match kind & !GSO_ECN {
            GSO_NONE => Self::Checksum,
            GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4 => Self::Segment(gso_size),
            _ => return Err(OffloadError::UnknownKind(kind)),
        };
        offload.check(&packet)?;
        Ok(offload)
    }

    /// Writes the `virtio_net_hdr` for `packet`. All values but the segment size are read from the
    /// packet's own headers, so a peer cannot forge them.
    ///
    /// # Errors
    /// If the offload does not match the packet.
    pub fn to_vnet<'a>(
        self,
        packet: impl Into<InnerPacket<'a>>,
    ) -> Result<[u8; VNET_HEADER_LEN], OffloadError> {
        let mut header = [0; VNET_HEADER_LEN];
        if self == Self::None {
            return Ok(header);
        }
        let transport = self.check(&packet.into())?;
        let mut put = |at: usize, value: usize| {
            // Both values fit: a packet has at most 65,535 bytes, which the parser has checked.
            let value = u16::try_from(value).unwrap_or(u16::MAX);
            header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        };
        put(6, transport.start);
        put(8, usize::from(transport.checksum_offset()));
        if let Self::Segment(size) = self {
            put(2, transport.payload);
            put(4, usize::from(size));
            header[1] = transport.gso_type();
        }
        header[0] = F_NEEDS_CSUM;
        Ok(header)
    }

    /// Checks that the packet's own headers allow this offload.
    fn check(self, packet: &InnerPacket<'_>) -> Result<Transport, OffloadError> {
        let transport = Transport::of(packet)?;
        if let Self::Segment(size) = self {
            let payload = packet.len() - transport.payload;
            if size < MIN_SEGMENT
                || payload == 0
                || usize::from(size) > usize::from(u16::MAX) - transport.payload
            {
                return Err(OffloadError::BadSegment(size));
            }
            let most = if transport.protocol == TCP { MAX_TCP_SEGMENTS } else { MAX_UDP_SEGMENTS };
            let segments = payload.div_ceil(usize::from(size));
            if segments > most {
                return Err(OffloadError::TooManySegments(segments));
            }
        }
        Ok(transport)
    }
}

/// The packet's transport header (TCP or UDP), as far as an offload depends on it.
struct Transport {
    version: u8,
    protocol: u8,
    start: usize,
    /// Offset of the end of the transport header.
    payload: usize,
    /// TCP's congestion-window-reduced flag, which only the first segment may carry.
    cwr: bool,
}

impl Transport {
    fn of(packet: &InnerPacket<'_>) -> Result<Self, OffloadError> {
        let version = packet.version().ok_or_else(|| packet.error())?;
        let protocol = packet.transport().ok_or(OffloadError::NoTransport)?;
        let cwr = packet.tcp_header().is_some_and(|header| header[13] & 0x80 != 0);
        Ok(Self { version, protocol, start: packet.transport_at(), payload: packet.payload_at(), cwr })
    }

    fn checksum_offset(&self) -> u16 {
        if self.protocol == TCP { 16 } else { 6 }
    }

    fn gso_type(&self) -> u8 {
        let kind = match (self.protocol, self.version) {
            (UDP, _) => GSO_UDP_L4,
            (_, 4) => GSO_TCPV4,
            _ => GSO_TCPV6,
        };
        if self.cwr { kind | GSO_ECN } else { kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp4(payload: usize) -> Vec<u8> {
        let mut packet = vec![0; 40 + payload];
        let total = u16::try_from(packet.len()).unwrap();
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[9] = TCP;
        packet[32] = 5 << 4;
        packet
    }

    fn udp6(payload: usize) -> Vec<u8> {
        let mut packet = vec![0; 56 + payload];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&u16::try_from(payload + 16).unwrap().to_be_bytes());
        packet[6] = 60;
        packet[40] = UDP;
        packet
    }

    #[test]
    fn the_header_survives_a_round_trip() {
        for (packet, kind, start, offset, headers) in
            [(tcp4(5000), GSO_TCPV4, 20, 16, 40), (udp6(5000), GSO_UDP_L4, 48, 6, 56)]
        {
            let mut header = [0; VNET_HEADER_LEN];
            header[0] = F_NEEDS_CSUM;
            header[1] = kind;
            for (at, value) in [(2, headers), (4, 1400), (6, start), (8, offset)] {
                header[at..at + 2].copy_from_slice(&u16::to_ne_bytes(value));
            }
            let offload = Offload::from_vnet(&header, &packet).unwrap();
            assert_eq!(offload, Offload::Segment(1400));
            assert_eq!(offload.to_vnet(&packet).unwrap(), header);
        }
        assert_eq!(Offload::from_vnet(&[0; 10], &[1]), Ok(Offload::None));
        assert_eq!(Offload::None.to_vnet(&[1]), Ok([0; 10]));
    }

    /// Tests segments for an MSS of 48 with 40 bytes of TCP options, as a peer may announce.
    #[test]
    fn the_smallest_segments_of_the_kernel_pass() {
        let largest = tcp4(usize::from(u16::MAX) - 40);
        assert!(Offload::Segment(48 - 12).to_vnet(&largest).is_ok(), "with timestamps alone");
        let packet = tcp4(800);
        let header = Offload::Segment(8).to_vnet(&packet).unwrap();
        assert_eq!(Offload::from_vnet(&header, &packet), Ok(Offload::Segment(8)));
    }

    /// Tests the maximum number of segments: without it, one frame of 60 KB becomes 7,500 packets
    /// at the receiving kernel.
    #[test]
    fn one_packet_does_not_become_thousands() {
        assert_eq!(Offload::Segment(8).to_vnet(&tcp4(60_000)), Err(OffloadError::TooManySegments(7500)));
        assert_eq!(Offload::Segment(8).to_vnet(&udp6(1032)), Err(OffloadError::TooManySegments(129)));
        assert!(Offload::Segment(8).to_vnet(&udp6(1024)).is_ok());
    }

    #[test]
    fn a_false_claim_about_the_packet_is_refused() {
        let packet = tcp4(5000);
        assert_eq!(Offload::Segment(7).to_vnet(&packet), Err(OffloadError::BadSegment(7)));
        assert_eq!(Offload::Segment(u16::MAX).to_vnet(&packet), Err(OffloadError::BadSegment(u16::MAX)));
        assert_eq!(Offload::Segment(1400).to_vnet(&tcp4(0)), Err(OffloadError::BadSegment(1400)));
        let mut fragment = packet.clone();
        fragment[7] = 1;
        assert_eq!(Offload::Checksum.to_vnet(&fragment), Err(OffloadError::NoTransport));
        let mut long_header = tcp4(4);
        long_header[32] = 7 << 4;
        assert_eq!(Offload::Checksum.to_vnet(&long_header), Err(OffloadError::NoTransport));
        let mut icmp = packet.clone();
        icmp[9] = 1;
        assert_eq!(Offload::Checksum.to_vnet(&icmp), Err(OffloadError::NoTransport));
        let mut header = Offload::Checksum.to_vnet(&packet).unwrap();
        header[6] ^= 2;
        assert!(matches!(Offload::from_vnet(&header, &packet), Err(OffloadError::BadOffsets { .. })));
        assert_eq!(Offload::from_vnet(&[0; 9], &packet), Err(OffloadError::ShortHeader(9)));
    }

    proptest! {
        #[test]
        fn never_panics_and_never_points_outside(
            mut packet in proptest::collection::vec(any::<u8>(), 20..200),
            six in any::<bool>(),
            protocol in prop_oneof![Just(TCP), Just(UDP), any::<u8>()],
            size in any::<u16>(),
        ) {
            let len = packet.len();
            if six && len >= 40 {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&u16::try_from(len - 40).unwrap().to_be_bytes());
                packet[6] = protocol;
            } else {
                packet[0] = 0x40 | (packet[0] & 0x0f);
                packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
                packet[9] = protocol;
            }
            for offload in [Offload::Checksum, Offload::Segment(size)] {
                if let Ok(header) = offload.to_vnet(&packet) {
                    let word = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
                    prop_assert!(word(6) + word(8) + 2 <= len);
                    prop_assert!(word(2) <= len);
                    prop_assert_eq!(Offload::from_vnet(&header, &packet), Ok(offload));
                }
            }
        }
    }
}
