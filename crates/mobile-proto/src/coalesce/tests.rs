use proptest::prelude::*;

use super::*;

/// Returns a UDP datagram over IPv4, or over IPv6 if `six`, from port `from`, with a valid
/// checksum.
fn datagram(six: bool, from: u16, payload: &[u8]) -> Vec<u8> {
    let ip = if six { IPV6_HEADER } else { IPV4_HEADER };
    let mut bytes = vec![0; ip + UDP_HEADER];
    bytes.extend_from_slice(payload);
    let (total, length) = (bytes.len() as u16, (bytes.len() - ip) as u16);
    if six {
        (bytes[0], bytes[6], bytes[7]) = (0x60, UDP, 64);
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
        bytes[8..24].fill(0xfd);
        bytes[24..40].fill(0x20);
    } else {
        (bytes[0], bytes[6], bytes[8], bytes[9]) = (0x45, 0x40, 64, UDP);
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 192, 0, 2, 2]);
    }
    bytes[ip..ip + 2].copy_from_slice(&from.to_be_bytes());
    bytes[ip + 2..ip + 4].copy_from_slice(&53u16.to_be_bytes());
    bytes[ip + 4..ip + 6].copy_from_slice(&length.to_be_bytes());
    let check = !sum(&bytes, ip, &bytes[ip..]);
    bytes[ip + 6..ip + 8].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// Segments a packet as the kernel's `__udp_gso_segment` does.
fn cut(packet: Packet<'_>) -> Vec<Vec<u8>> {
    let Offload::Segment(size) = packet.offload else { return vec![packet.bytes.to_vec()] };
    let six = packet.bytes[0] >> 4 == 6;
    let ip = if six { IPV6_HEADER } else { IPV4_HEADER };
    assert!(packet.offload.to_vnet(packet.bytes).is_ok());
    if !six {
        assert_eq!(fold(add(0, &packet.bytes[..ip])), 0xffff, "the header's checksum");
        assert_eq!(read_u16(packet.bytes, 2), packet.len());
    }
    assert_eq!(read_u16(packet.bytes, ip + 6), usize::from(sum(packet.bytes, ip, &[])), "a partial checksum");
    let from = read_u16(packet.bytes, ip) as u16;
    let payloads = packet.bytes[ip + UDP_HEADER..].chunks(usize::from(size));
    payloads.map(|payload| datagram(six, from, payload)).collect()
}

fn of(bytes: &[u8]) -> Packet<'_> {
    Packet { bytes, offload: Offload::None }
}

/// Passes packets through a coalescer as the writer of a device does. Returns the packets after
/// segmentation and the number of writes.
fn pass<'a>(packets: impl Iterator<Item = Packet<'a>>) -> (Vec<Vec<u8>>, usize) {
    let (mut coalescer, mut out, mut writes) = (SegmentCoalescer::default(), Vec::new(), 0);
    let mut flush = |coalescer: &mut SegmentCoalescer, out: &mut Vec<Vec<u8>>| {
        if let Some((packet, summary)) = coalescer.take() {
            let again = cut(*packet);
            let bytes = again.iter().map(Vec::len).sum::<usize>() as u64;
            assert_eq!(summary, CoalescedSegment { packets: again.len() as u64, bytes });
            out.extend(again);
            writes += 1;
        }
    };
    for packet in packets {
        if coalescer.push(packet) {
            continue;
        }
        flush(&mut coalescer, &mut out);
        if !coalescer.push(packet) {
            out.push(packet.bytes.to_vec());
        }
    }
    flush(&mut coalescer, &mut out);
    (out, writes)
}

#[test]
fn equal_datagrams_become_one_packet_that_segments_back() {
    for six in [false, true] {
        let sent: Vec<_> = (0..10u8).map(|number| datagram(six, 7, &[number; 200])).collect();
        let (received, writes) = pass(sent.iter().map(|bytes| of(bytes)));
        assert_eq!((received, writes), (sent, 1));
    }
}

#[test]
fn a_single_datagram_is_passed_on_unchanged() {
    let bytes = datagram(false, 7, b"a question");
    let packet = Packet { bytes: &bytes, offload: Offload::Checksum };
    let mut coalescer = SegmentCoalescer::default();
    assert!(coalescer.push(packet));
    let (taken, summary) = coalescer.take().unwrap();
    assert_eq!(
        (taken.bytes, taken.offload, summary),
        (packet.bytes, Offload::Checksum, CoalescedSegment::single(packet))
    );
    assert!(coalescer.take().is_none());
}

#[test]
fn datagrams_that_the_kernel_would_not_recreate_are_not_coalesced() {
    let first = datagram(false, 7, &[1; 100]);
    let mut coalescer = SegmentCoalescer::default();
    let change = |at: usize, value: u8| {
        let mut other = first.clone();
        other[at] = value;
        other
    };
    // Another flow, type of service or time to live than the first datagram's.
    let others = [(1, 8), (8, 63), (15, 9), (20, 9)].map(|(at, value)| change(at, value));
    for other in &others {
        assert!(coalescer.push(of(&first)));
        let packet = Packet { bytes: other, offload: Offload::Checksum };
        assert!(!coalescer.push(packet), "{other:?}");
        coalescer.take();
    }
    // A longer datagram, and one after a shorter one.
    assert!(coalescer.push(of(&first)));
    assert!(!coalescer.push(of(&datagram(false, 7, &[1; 101]))));
    assert!(coalescer.push(of(&first)));
    assert!(coalescer.push(of(&datagram(false, 7, &[1; 99]))));
    assert!(!coalescer.push(of(&datagram(false, 7, &[1; 99]))));
    coalescer.take();
    // A fragment, a packet that may be fragmented, options, no UDP, wrong lengths, a wrong
    // checksum.
    for (at, value) in [(6, 0x60), (6, 0), (7, 1), (0, 0x46), (9, 6), (3, 99), (25, 9), (40, 9)] {
        assert!(!coalescer.push(of(&change(at, value))), "{at}");
    }
    let mut without = first.clone();
    without[26..28].fill(0);
    assert!(!coalescer.push(of(&without)));
    assert!(!coalescer.push(of(&datagram(false, 7, &[1; 7]))));
    let large = Packet { bytes: &first, offload: Offload::Segment(10) };
    assert!(!coalescer.push(large));
}

#[test]
fn a_datagram_shorter_than_its_header_is_not_read_beyond_its_end() {
    for (six, ip) in [(false, IPV4_HEADER), (true, IPV6_HEADER)] {
        let whole = datagram(six, 7, &[1; 100]);
        for (length, offload) in
            (0..whole.len()).flat_map(|it| [(it, Offload::None), (it, Offload::Checksum)])
        {
            let mut short = whole[..length].to_vec();
            assert!(
                !SegmentCoalescer::default().push(Packet { bytes: &short, offload }),
                "{length} bytes, cut off"
            );
            // The IP header states the truth; the UDP header does not, or is cut off.
            if let Some(payload) = length.checked_sub(ip) {
                let (at, claimed) = if six { (4, payload) } else { (2, length) };
                short[at..at + 2].copy_from_slice(&(claimed as u16).to_be_bytes());
                assert!(
                    !SegmentCoalescer::default().push(Packet { bytes: &short, offload }),
                    "{length} bytes of IP"
                );
            }
            // Both headers state the truth, but less than the minimum payload is left.
            if (ip + UDP_HEADER..ip + UDP_HEADER + MIN_PAYLOAD).contains(&length) {
                short[ip + 4..ip + 6].copy_from_slice(&((length - ip) as u16).to_be_bytes());
                assert!(
                    !SegmentCoalescer::default().push(Packet { bytes: &short, offload }),
                    "{length} bytes of UDP"
                );
            }
        }
    }
}

#[test]
fn a_probe_of_the_path_mtu_does_not_take_the_datagram_behind_it_along() {
    for six in [false, true] {
        let (probe, data) = (datagram(six, 7, &[0; 1452]), datagram(six, 7, &[1; 1200]));
        let sent: Vec<_> = [&probe, &data, &data, &data].map(Clone::clone).into();
        let (received, writes) = pass(sent.iter().map(|bytes| of(bytes)));
        assert_eq!((received, writes), (sent, 2), "the probe alone, and a run of three");
    }
}

#[test]
fn number_and_length_of_coalesced_datagrams_are_bounded() {
    let small: Vec<_> = (0..200u16).map(|_| datagram(true, 7, &[1; 20])).collect();
    assert_eq!(pass(small.iter().map(|bytes| of(bytes))), (small.clone(), 4));
    let long: Vec<_> = (0..50u16).map(|_| datagram(false, 7, &[2; 1400])).collect();
    let (received, writes) = pass(long.iter().map(|bytes| of(bytes)));
    assert_eq!((received, writes), (long, 2));
}

proptest! {
    #[test]
    fn all_packets_are_passed_on_in_order(
        packets in proptest::collection::vec(
            (any::<bool>(), 1..3u16, prop_oneof![Just(100usize), 0..150usize], any::<u8>(), any::<bool>()),
            0..80,
        ),
    ) {
        let sent: Vec<Vec<u8>> = packets
            .iter()
            .map(|(six, from, length, fill, broken)| {
                let mut bytes = datagram(*six, *from, &vec![*fill; *length]);
                if *broken {
                    *bytes.last_mut().unwrap() ^= 1;
                }
                bytes
            })
            .collect();
        let (received, _) = pass(sent.iter().map(|bytes| of(bytes)));
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn garbage_is_not_coalesced_and_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), partial in any::<bool>()) {
        let offload = if partial { Offload::Checksum } else { Offload::None };
        let mut coalescer = SegmentCoalescer::default();
        coalescer.push(Packet { bytes: &bytes, offload });
        coalescer.push(Packet { bytes: &bytes, offload });
        coalescer.take();
    }
}
