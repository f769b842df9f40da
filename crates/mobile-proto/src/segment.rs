//! Inner TCP segments: a parser for the fields that the freeze needs (answers to TCP senders in an
//! outage), and a builder for bare acknowledgements.

use crate::offload::Transport;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

const TCP: u8 = 6;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// Length in bytes of the timestamps option as Linux pads it: two NOPs, kind 8, length 10 and two
/// numbers (RFC 7323, appendix A).
const TIMESTAMPS: usize = 12;
/// The initial time to live of most systems.
const TTL: u8 = 64;

/// The addresses and ports of a TCP flow, seen from the host on this side of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    version: u8,
    /// The local address; an IPv4 address fills the first four bytes.
    local: [u8; 16],
    remote: [u8; 16],
    local_port: u16,
    remote_port: u16,
}

impl FlowKey {
    /// Returns the key of the same flow, seen from the other side.
    pub(crate) fn reversed(self) -> Self {
        let Self { version, local, remote, local_port, remote_port } = self;
        Self { version, local: remote, remote: local, local_port: remote_port, remote_port: local_port }
    }
}

/// The header of a TCP segment, which may be a large one that the kernel still has to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// The flow, with the sender of the segment as the local host.
    pub(crate) key: FlowKey,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    /// The unscaled window, as on the wire.
    pub(crate) window: u16,
    /// The length of the data in bytes.
    pub(crate) data: u32,
    /// The shift of the window scale option in a SYN, which applies to later windows (RFC 7323,
    /// 2.2); 0 in other segments.
    pub(crate) shift: u8,
}

impl Segment {
    /// Parses the headers of a packet. Returns `None` unless the packet is a complete TCP segment.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let (transport, header) = locate(packet)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let long =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let key = FlowKey {
            version: transport.version,
            local: address(packet, transport.version, 0)?,
            remote: address(packet, transport.version, 1)?,
            local_port: word(0),
            remote_port: word(2),
        };
        Some(Self {
            key,
            seq: long(4),
            ack: long(8),
            flags: header[13],
            window: word(14),
            // A packet has at most 65,575 bytes.
            data: u32::try_from(packet.len() - transport.payload).ok()?,
            shift: if header[13] & SYN == 0 { 0 } else { window_shift(packet, &transport) },
        })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Returns the length in sequence numbers: SYN and FIN count as one each.
    pub(crate) fn length(&self) -> u32 {
        self.data + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// Returns the first sequence number after the segment.
    pub(crate) fn end(&self) -> u32 {
        self.seq.wrapping_add(self.length())
    }
}

/// Returns whether sequence number `a` is before `b` (RFC 9293, 3.4).
pub(crate) fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > u32::MAX / 2
}

/// Returns the timestamps option of a TCP segment: its own timestamp and the one that it echoes.
pub(crate) fn timestamps(packet: &[u8]) -> Option<(u32, u32)> {
    let (transport, _) = locate(packet)?;
    match option(packet, &transport, 8)? {
        &[a, b, c, d, e, f, g, h] => {
            Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])))
        }
        _ => None,
    }
}

/// Returns the shift in the window scale option of a TCP header; 0 without the option.
fn window_shift(packet: &[u8], transport: &Transport) -> u8 {
    option(packet, transport, 3).and_then(|value| value.first().copied()).unwrap_or(0)
}

/// Returns the value of the first option of the kind `wanted` in a TCP header.
fn option<'a>(packet: &'a [u8], transport: &Transport, wanted: u8) -> Option<&'a [u8]> {
    let mut options = packet.get(transport.start + TCP_HEADER..transport.payload)?;
    loop {
        match *options {
            // The NOP option has no length.
            [1, ref rest @ ..] => options = rest,
            // Any other option but the end of the list. An impossible length ends the search as
            // well.
            [kind, length, ..] if kind != 0 && length >= 2 => {
                let (whole, rest) = options.split_at_checked(usize::from(length))?;
                if kind == wanted {
                    return whole.get(2..);
                }
                options = rest;
            }
            _ => return None,
        }
    }
}

/// The contents of a bare acknowledgement: a TCP segment without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BareAck {
    /// The flow, seen from the host that receives the acknowledgement.
    pub(crate) to: FlowKey,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    /// The acknowledgement's own timestamp and the one that it echoes; `None` in a flow without
    /// timestamps.
    pub(crate) timestamps: Option<(u32, u32)>,
}

/// A bare acknowledgement as a complete packet with valid checksums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckPacket {
    bytes: [u8; IPV6_HEADER + TCP_HEADER + TIMESTAMPS],
    length: usize,
}

impl AckPacket {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl BareAck {
    /// Builds the packet with its checksums.
    pub(crate) fn packet(&self) -> AckPacket {
        let mut bytes = [0; IPV6_HEADER + TCP_HEADER + TIMESTAMPS];
        let tcp_length = if self.timestamps.is_some() { TCP_HEADER + TIMESTAMPS } else { TCP_HEADER };
        let (start, addresses) = if self.to.version == 4 { (IPV4_HEADER, 12) } else { (IPV6_HEADER, 8) };
        let length = start + tcp_length;
        // Both lengths are below 80.
        let [tcp_short, short] = [tcp_length, length].map(|length| u8::try_from(length).unwrap_or(u8::MAX));
        if self.to.version == 4 {
            bytes[0] = 0x45;
            bytes[3] = short;
            // The don't-fragment flag is set, so the identification may be zero (RFC 6864).
            bytes[6] = 0x40;
            (bytes[8], bytes[9]) = (TTL, TCP);
            bytes[12..16].copy_from_slice(&self.to.remote[..4]);
            bytes[16..20].copy_from_slice(&self.to.local[..4]);
            let sum = checksum(0, &bytes[..IPV4_HEADER]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            bytes[0] = 0x60;
            bytes[5] = tcp_short;
            (bytes[6], bytes[7]) = (TCP, TTL);
            bytes[8..24].copy_from_slice(&self.to.remote);
            bytes[24..40].copy_from_slice(&self.to.local);
        }
        let tcp = &mut bytes[start..length];
        tcp[0..2].copy_from_slice(&self.to.remote_port.to_be_bytes());
        tcp[2..4].copy_from_slice(&self.to.local_port.to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        // The header length in words of four bytes, in the upper half.
        tcp[12] = tcp_short << 2;
        tcp[13] = ACK;
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        if let Some((value, echo)) = self.timestamps {
            tcp[20..24].copy_from_slice(&[1, 1, 8, 10]);
            tcp[24..28].copy_from_slice(&value.to_be_bytes());
            tcp[28..32].copy_from_slice(&echo.to_be_bytes());
        }
        // The pseudo-header: the addresses, the protocol and the length.
        let pseudo = sum_words(u32::from(TCP) + u32::from(tcp_short), &bytes[addresses..start]);
        let sum = checksum(pseudo, &bytes[start..length]);
        bytes[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
        AckPacket { bytes, length }
    }
}

/// Returns the position of a packet's TCP header, and the first 20 bytes of that header (all but
/// its options); `None` if the packet is not TCP or is shorter.
fn locate(packet: &[u8]) -> Option<(Transport, &[u8; TCP_HEADER])> {
    let transport = Transport::locate(packet).ok().filter(|transport| transport.protocol == TCP)?;
    let header = packet.get(transport.start..)?.first_chunk()?;
    Some((transport, header))
}

/// Returns an address of a packet: the source if `which` is 0, the destination if it is 1. An IPv4
/// address fills the first four bytes.
fn address(packet: &[u8], version: u8, which: usize) -> Option<[u8; 16]> {
    let mut address = [0; 16];
    if version == 4 {
        address[..4].copy_from_slice(packet.get(12 + 4 * which..)?.get(..4)?);
    } else {
        address.copy_from_slice(packet.get(8 + 16 * which..)?.get(..16)?);
    }
    Some(address)
}

/// Adds the 16-bit words of `bytes` to the sum `start`. All inputs have an even length and fewer
/// than 100 bytes.
fn sum_words(start: u32, bytes: &[u8]) -> u32 {
    bytes.as_chunks().0.iter().fold(start, |sum, &word| sum + u32::from(u16::from_be_bytes(word)))
}

/// Returns the Internet checksum (RFC 1071) of `bytes`, added to the sum `start`.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = sum_words(start, bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The sum is at most 0xffff here.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Builders of segments for the tests of several modules, and the tests of this module.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Fields of a test segment from 10.9.0.2:4000 to 192.0.2.1:80 (or similar for IPv6), without
    /// valid checksums.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Sample {
        pub(crate) six: bool,
        pub(crate) inbound: bool,
        pub(crate) port: u16,
        pub(crate) seq: u32,
        pub(crate) ack: u32,
        pub(crate) flags: u8,
        pub(crate) window: u16,
        pub(crate) data: usize,
        pub(crate) timestamps: Option<(u32, u32)>,
    }

    impl Default for Sample {
        fn default() -> Self {
            let (seq, ack, flags, window) = (1000, 5000, ACK, 500);
            Self {
                six: false,
                inbound: false,
                port: 4000,
                seq,
                ack,
                flags,
                window,
                data: 0,
                timestamps: None,
            }
        }
    }

    impl Sample {
        pub(crate) fn packet(self) -> Vec<u8> {
            let family = |four: [u8; 4], six: u8| {
                let mut address = [0; 16];
                if self.six {
                    address = [0x20; 16];
                    address[15] = six;
                } else {
                    address[..4].copy_from_slice(&four);
                }
                address
            };
            let key = FlowKey {
                version: if self.six { 6 } else { 4 },
                local: family([10, 9, 0, 2], 2),
                remote: family([192, 0, 2, 1], 1),
                local_port: self.port,
                remote_port: 80,
            };
            let to = if self.inbound { key } else { key.reversed() };
            let Self { seq, ack, window, timestamps, .. } = self;
            let mut packet = BareAck { to, seq, ack, window, timestamps }.packet().bytes().to_vec();
            let start = if self.six { IPV6_HEADER } else { IPV4_HEADER };
            packet[start + 13] = self.flags;
            packet.extend((0..self.data).map(|at| at as u8));
            let (at, length) = if self.six { (4, packet.len() - IPV6_HEADER) } else { (2, packet.len()) };
            packet[at..at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            packet
        }
    }

    #[test]
    fn a_segment_is_read_with_its_options() {
        for six in [false, true] {
            let sample =
                Sample { six, data: 33, flags: ACK | FIN, timestamps: Some((7, 9)), ..Sample::default() };
            let packet = sample.packet();
            let segment = Segment::parse(&packet).unwrap();
            assert_eq!((segment.seq, segment.ack, segment.window), (1000, 5000, 500));
            assert_eq!((segment.data, segment.length(), segment.end()), (33, 34, 1034));
            assert_eq!(timestamps(&packet), Some((7, 9)));
            let back = Segment::parse(&Sample { inbound: true, ..sample }.packet()).unwrap();
            assert_eq!(back.key.reversed(), segment.key);
        }
        assert_eq!(timestamps(&Sample::default().packet()), None);
    }

    #[test]
    fn options_that_lie_about_their_length_end_the_search() {
        let mut packet = Sample { timestamps: Some((7, 9)), ..Sample::default() }.packet();
        for option in [[2, 0, 8, 10], [0, 0, 8, 10], [2, 200, 8, 10], [8, 9, 8, 10]] {
            packet[40..44].copy_from_slice(&option);
            assert_eq!(timestamps(&packet), None, "{option:?}");
        }
        packet[40..44].copy_from_slice(&[4, 2, 8, 10]);
        assert_eq!(timestamps(&packet), Some((7, 9)));
    }

    #[test]
    fn incomplete_segments_are_not_parsed() {
        let whole = Sample { data: 10, ..Sample::default() }.packet();
        let mut fragment = whole.clone();
        fragment[6] = 0x20;
        let mut udp = whole.clone();
        udp[9] = 17;
        let mut long_header = whole.clone();
        long_header[32] = 0xf0;
        let mut short_header = whole.clone();
        short_header[32] = 0x40;
        for packet in [&fragment, &udp, &long_header, &short_header, &whole[..39].to_vec(), &Vec::new()] {
            assert_eq!(Segment::parse(packet), None, "{packet:?}");
        }
    }

    /// Tests the example of RFC 1071, and packets whose sums must be zero when their checksums are
    /// included.
    #[test]
    fn checksums_are_valid() {
        assert_eq!(checksum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        for six in [false, true] {
            let packet = Sample { six, timestamps: Some((u32::MAX, 1)), ..Sample::default() }.packet();
            assert!(sums_are_zero(&packet), "{packet:?}");
        }
    }

    /// Returns whether the sums over the IP header and over the TCP segment are zero, as they are
    /// with valid checksums.
    pub(crate) fn sums_are_zero(packet: &[u8]) -> bool {
        let (start, addresses) = if packet[0] >> 4 == 4 { (20, 12) } else { (40, 8) };
        let tcp = &packet[start..];
        let pseudo = sum_words(u32::from(TCP) + u32::try_from(tcp.len()).unwrap(), &packet[addresses..start]);
        checksum(pseudo, tcp) == 0 && (packet[0] >> 4 == 6 || checksum(0, &packet[..20]) == 0)
    }

    #[test]
    fn sequence_numbers_wrap() {
        assert!(before(1, 2) && !before(2, 1) && !before(5, 5));
        assert!(before(u32::MAX, 0) && !before(0, u32::MAX));
    }

    proptest! {
        #[test]
        fn garbage_is_parsed_without_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
            shape in 0..3_u8,
        ) {
            let length = bytes.len();
            if shape > 0 && length >= 40 {
                // This way not everything ends at the IP header.
                let six = shape == 2;
                bytes[0] = if six { 0x60 } else { 0x40 | (bytes[0] & 0x0f) };
                let (at, claimed) = if six { (4, length - 40) } else { (2, length) };
                bytes[at..at + 2].copy_from_slice(&u16::try_from(claimed).unwrap().to_be_bytes());
                bytes[if six { 6 } else { 9 }] = TCP;
            }
            if let Some(segment) = Segment::parse(&bytes) {
                prop_assert!(segment.data as usize + TCP_HEADER + IPV4_HEADER <= length);
            }
            let _ = timestamps(&bytes);
        }

        #[test]
        fn a_segment_survives_a_round_trip(
            six in any::<bool>(), inbound in any::<bool>(), port in any::<u16>(),
            seq in any::<u32>(), ack in any::<u32>(), window in any::<u16>(),
            stamps in any::<Option<(u32, u32)>>(),
        ) {
            let sample = Sample { six, inbound, port, seq, ack, window, timestamps: stamps, ..Sample::default() };
            let packet = sample.packet();
            let segment = Segment::parse(&packet).unwrap();
            prop_assert!(sums_are_zero(&packet));
            prop_assert_eq!((segment.seq, segment.ack, segment.window, segment.data), (seq, ack, window, 0));
            prop_assert_eq!((segment.flags, timestamps(&packet)), (ACK, stamps));
        }
    }
}
