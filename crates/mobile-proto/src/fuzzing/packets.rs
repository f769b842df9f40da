//! Invariants of inner packets: of the kernel's offload header, of the offload that a peer claims,
//! and of the parser of TCP segments.

use crate::coalesce::{CoalescedSegment, SegmentCoalescer};
use crate::offload::VNET_HEADER_LEN;
use crate::packet::{InnerPacket, Offload, Packet};
use crate::segment::{self, BareAck, Segment};

/// Checks a `virtio_net_hdr` and the packet behind it, as the TUN provides them. The packet is
/// checked as it is, and with a corrected length in its IP header, which a mutation breaks first.
pub fn packet(bytes: &[u8]) {
    let Some((header, packet)) = bytes.split_at_checked(VNET_HEADER_LEN) else {
        assert!(Offload::from_vnet(bytes, &[]).is_err());
        return;
    };
    check_packet(header, packet);
    let mut right = packet.to_vec();
    set_length(&mut right);
    if right != packet {
        check_packet(header, &right);
    }
}

fn check_packet(header: &[u8], packet: &[u8]) {
    if let Ok(ip) = InnerPacket::from(packet).ip() {
        assert_eq!(claimed_len(packet), packet.len());
        let version = packet[0] >> 4;
        assert_eq!((version == 4, version == 6), (ip.src.is_ipv4(), ip.dst.is_ipv6()));
    }
    // The kernel's request crosses the tunnel, and is made again at the far end.
    if let Ok(offload) = Offload::from_vnet(header, packet) {
        let again = offload.to_vnet(packet).expect("an offload read from a TUN can be written to one");
        assert_eq!(Offload::from_vnet(&again, packet), Ok(offload));
    }
    // A peer's claim is refused, or is valid for the kernel.
    let size = u16::from_be_bytes([header[4], header[5]]);
    for claim in [Offload::None, Offload::Checksum, Offload::Segment(size)] {
        if let Ok(vnet) = claim.to_vnet(packet) {
            assert_eq!(Offload::from_vnet(&vnet, packet), Ok(claim));
            let word = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
            if claim != Offload::None {
                assert!(word(6) + word(8) + 2 <= packet.len(), "the checksum lies outside the packet");
            }
            assert!(word(2) <= packet.len(), "the headers end outside the packet");
        }
    }
    check_coalescing([packet; 3]);
    let last = shorter(packet);
    // A valid run with a shorter end, and an invalid one.
    check_coalescing([packet, packet, &last]);
    check_coalescing([packet, &last, &last]);
    let stamps = segment::timestamps(packet);
    let Some(read) = Segment::parse(packet) else { return assert_eq!(stamps, None) };
    assert!((read.data as usize) < packet.len());
    assert_eq!(read.key.reversed().reversed(), read.key);
    let ack = BareAck { to: read.key, seq: read.seq, ack: read.ack, window: read.window, timestamps: stamps };
    let answer = ack.packet();
    let back = Segment::parse(answer.bytes()).expect("the packet made can be parsed");
    assert_eq!(back.key, read.key.reversed());
    assert_eq!((back.seq, back.ack, back.window, back.data), (read.seq, read.ack, read.window, 0));
    assert_eq!(segment::timestamps(answer.bytes()), stamps);
}

/// Checks that coalesced datagrams are the same after the kernel has segmented them.
fn check_coalescing(packets: [&[u8]; 3]) {
    for offload in [Offload::None, Offload::Checksum] {
        let mut coalescer = SegmentCoalescer::default();
        let coalesced = packets.iter().take_while(|bytes| coalescer.push(Packet { bytes, offload })).count();
        let Some((whole, summary)) = coalescer.take() else {
            assert_eq!(coalesced, 0, "what was pushed is returned");
            continue;
        };
        let bytes = packets[..coalesced].iter().map(|packet| packet.len() as u64).sum();
        assert_eq!(summary, CoalescedSegment { packets: coalesced as u64, bytes });
        let Offload::Segment(size) = whole.offload else {
            assert_eq!((whole.bytes, whole.offload, coalesced), (packets[0], offload, 1));
            continue;
        };
        whole.offload.to_vnet(whole.bytes).expect("the kernel accepts the coalesced packet");
        assert!(InnerPacket::from(whole.bytes).ip().is_ok());
        assert_eq!(claimed_len(whole.bytes), whole.len());
        let headers = if whole.bytes[0] >> 4 == 4 { 28 } else { 48 };
        let parts: Vec<_> = whole.bytes[headers..].chunks(size.into()).collect();
        assert_eq!(parts, packets[..coalesced].iter().map(|packet| &packet[headers..]).collect::<Vec<_>>());
        // The headers are the first one's, except for what the kernel rewrites in each: lengths and
        // checksums; in IPv4, the identification, too.
        let rewritten: &[usize] =
            if headers == 28 { &[2, 3, 4, 5, 10, 11, 24, 25, 26, 27] } else { &[4, 5, 44, 45, 46, 47] };
        for at in (0..headers).filter(|at| !rewritten.contains(at)) {
            let alike = packets[..coalesced].iter().all(|packet| packet[at] == whole.bytes[at]);
            assert!(alike, "byte {at} of the headers");
        }
    }
}

/// Returns the length of a packet according to its IP header.
fn claimed_len(packet: &[u8]) -> usize {
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    if packet[0] >> 4 == 4 { word(2) } else { word(4) + 40 }
}

/// Returns the packet without the last quarter of its bytes, with matching lengths in the headers.
fn shorter(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet[..packet.len() - packet.len() / 4].to_vec();
    set_length(&mut bytes);
    let ip = if packet.first().is_some_and(|first| first >> 4 == 6) { 40 } else { 20 };
    let length = bytes.len().saturating_sub(ip) as u16;
    if let Some(field) = bytes.get_mut(ip + 4..ip + 6) {
        field.copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

fn set_length(packet: &mut [u8]) {
    let length = packet.len();
    let (at, claimed) = match packet.first().map(|first| first >> 4) {
        Some(4) => (2, Some(length)),
        Some(6) => (4, length.checked_sub(40)),
        _ => return,
    };
    if let (Some(field), Some(claimed)) =
        (packet.get_mut(at..at + 2), claimed.and_then(|it| u16::try_from(it).ok()))
    {
        field.copy_from_slice(&claimed.to_be_bytes());
    }
}

/// Returns seeds: packets of every kind that a TUN provides, after their offload header.
#[must_use]
pub fn packet_seeds() -> Vec<Vec<u8>> {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let mut seeds = Vec::new();
    for six in [false, true] {
        for protocol in [TCP, UDP, 1, 58] {
            for data in [0, 8, 600] {
                let packet = ip(six, &[], protocol, &transport(protocol, data));
                for offload in [Offload::None, Offload::Checksum, Offload::Segment(200)] {
                    if let Ok(header) = offload.to_vnet(&packet) {
                        seeds.push([&header[..], &packet].concat());
                    }
                }
            }
        }
    }
    // Hop-by-hop options and a routing header before TCP.
    let extensions = [[43, 0, 1, 4, 0, 0, 0, 0], [TCP, 0, 0, 0, 0, 0, 0, 0]].concat();
    let packet = ip(true, &extensions, 0, &transport(TCP, 100));
    for offload in [Offload::None, Offload::Checksum, Offload::Segment(50)] {
        if let Ok(header) = offload.to_vnet(&packet) {
            seeds.push([&header[..], &packet].concat());
        }
    }
    seeds
}

/// Returns an IPv4 packet, or an IPv6 one if `six`, with extension headers and a payload. Its
/// checksums are not valid.
pub(super) fn ip(six: bool, extensions: &[u8], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; if six { 40 } else { 20 }];
    if six {
        packet[0] = 0x60;
        (packet[6], packet[7]) = (next, 64);
        (packet[8], packet[23], packet[24], packet[39]) = (0xfd, 2, 0xfd, 1);
    } else {
        packet[0] = 0x45;
        (packet[6], packet[8], packet[9]) = (0x40, 64, next);
        packet[12..20].copy_from_slice(&[10, 77, 0, 2, 192, 0, 2, 1]);
    }
    packet.extend_from_slice(extensions);
    packet.extend_from_slice(payload);
    set_length(&mut packet);
    packet
}

/// Returns a TCP segment with timestamps, a UDP datagram, or an ICMP echo request, as the number
/// `protocol` says, with `data` bytes of payload.
pub(super) fn transport(protocol: u8, data: usize) -> Vec<u8> {
    let mut bytes = match protocol {
        6 => {
            let mut tcp = vec![0x0f, 0xa0, 0, 80, 0, 0, 1, 0, 0, 0, 2, 0, 0x80, 0x18, 0x20, 0, 0, 0, 0, 0];
            tcp.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
            tcp
        }
        // The seeds are shorter than 2^16 bytes.
        _ => [&[0x0f, 0xa0, 0, 53][..], &(8 + data as u16).to_be_bytes(), &[0, 0]].concat(),
    };
    bytes.extend((0..data).map(|at| (at % 7) as u8));
    bytes
}
