//! Builders of segments for the tests of several modules, and the tests of this module.

use proptest::prelude::*;

use super::bare_ack::{IPV4_HEADER, IPV6_HEADER, TCP_HEADER, checksum, sum_words};
use super::*;
use crate::packet::TCP;

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
        Self { six: false, inbound: false, port: 4000, seq, ack, flags, window, data: 0, timestamps: None }
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
