//! Inner packets: what the kernel says of them, what a peer says of them, and what the freeze reads in them.

use crate::coalesce::{CoalescedSegment, SegmentCoalescer};
use crate::offload::{Offload, VNET_HEADER_LEN};
use crate::packet::{IpHeader, Packet};
use crate::segment::{self, BareAck, Segment};

/// A `virtio_net_hdr` and the packet behind it, as the TUN gives them. The packet is looked at as it is, and with its
/// header's length made right, which is what a mutation breaks first.
pub fn packet(bytes: &[u8]) {
    let Some((header, packet)) = bytes.split_at_checked(VNET_HEADER_LEN) else {
        assert!(Offload::from_vnet(bytes, &[]).is_err());
        return;
    };
    look(header, packet);
    let mut right = packet.to_vec();
    make_length_right(&mut right);
    if right != packet {
        look(header, &right);
    }
}

fn look(header: &[u8], packet: &[u8]) {
    if let Ok(ip) = IpHeader::parse(packet) {
        assert_eq!(ip.total_len, packet.len());
        assert_eq!((ip.version == 4, ip.version == 6), (ip.src.is_ipv4(), ip.dst.is_ipv6()));
    }
    // What the kernel asks for crosses the tunnel, and is asked for again at the far end.
    if let Ok(offload) = Offload::from_vnet(header, packet) {
        let again = offload.to_vnet(packet).expect("what was taken from the TUN can be given to one");
        assert_eq!(Offload::from_vnet(&again, packet), Ok(offload));
    }
    // What a peer claims is refused, or is what the kernel may be told.
    let size = u16::from_be_bytes([header[4], header[5]]);
    for claim in [Offload::None, Offload::Checksum, Offload::Segment(size)] {
        if let Ok(told) = claim.to_vnet(packet) {
            assert_eq!(Offload::from_vnet(&told, packet), Ok(claim));
            let word = |at: usize| usize::from(u16::from_ne_bytes([told[at], told[at + 1]]));
            if claim != Offload::None {
                assert!(word(6) + word(8) + 2 <= packet.len(), "the checksum lies outside the packet");
            }
            assert!(word(2) <= packet.len(), "the headers end outside the packet");
        }
    }
    join([packet; 3]);
    let last = shorter(packet);
    // As a run ends; and what is none.
    join([packet, packet, &last]);
    join([packet, &last, &last]);
    let stamps = segment::timestamps(packet);
    let Some(read) = Segment::parse(packet) else { return assert_eq!(stamps, None) };
    assert!((read.data as usize) < packet.len());
    assert_eq!(read.key.reversed().reversed(), read.key);
    let ack = BareAck { to: read.key, seq: read.seq, ack: read.ack, window: read.window, timestamps: stamps };
    let answer = ack.packet();
    let back = Segment::parse(answer.bytes()).expect("what is made is read");
    assert_eq!(back.key, read.key.reversed());
    assert_eq!((back.seq, back.ack, back.window, back.data), (read.seq, read.ack, read.window, 0));
    assert_eq!(segment::timestamps(answer.bytes()), stamps);
}

/// What is joined is taken apart by the kernel: the same datagrams must come of it.
fn join(packets: [&[u8]; 3]) {
    for offload in [Offload::None, Offload::Checksum] {
        let mut joiner = SegmentCoalescer::default();
        let joined = packets.iter().take_while(|bytes| joiner.push(Packet { bytes, offload })).count();
        let Some((whole, made)) = joiner.take() else {
            assert_eq!(joined, 0, "what was taken is given back");
            continue;
        };
        let bytes = packets[..joined].iter().map(|packet| packet.len() as u64).sum();
        assert_eq!(made, CoalescedSegment { packets: joined as u64, bytes });
        let Offload::Segment(size) = whole.offload else {
            assert_eq!((whole.bytes, whole.offload, joined), (packets[0], offload, 1));
            continue;
        };
        whole.offload.to_vnet(whole.bytes).expect("the kernel takes what was joined");
        assert_eq!(IpHeader::parse(whole.bytes).map(|ip| ip.total_len), Ok(whole.len()));
        let headers = if whole.bytes[0] >> 4 == 4 { 28 } else { 48 };
        let parts: Vec<_> = whole.bytes[headers..].chunks(size.into()).collect();
        assert_eq!(parts, packets[..joined].iter().map(|packet| &packet[headers..]).collect::<Vec<_>>());
        // Headers are the first one's, but for what the kernel makes anew of each: lengths and checksums.
        // Of IPv4, the identification too.
        let made_anew: &[usize] =
            if headers == 28 { &[2, 3, 4, 5, 10, 11, 24, 25, 26, 27] } else { &[4, 5, 44, 45, 46, 47] };
        for at in (0..headers).filter(|at| !made_anew.contains(at)) {
            let alike = packets[..joined].iter().all(|packet| packet[at] == whole.bytes[at]);
            assert!(alike, "byte {at} of the headers");
        }
    }
}

/// The same with a quarter less behind its headers, and lengths that say so.
fn shorter(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet[..packet.len() - packet.len() / 4].to_vec();
    make_length_right(&mut bytes);
    let ip = if packet.first().is_some_and(|first| first >> 4 == 6) { 40 } else { 20 };
    let length = bytes.len().saturating_sub(ip) as u16;
    if let Some(field) = bytes.get_mut(ip + 4..ip + 6) {
        field.copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

fn make_length_right(packet: &mut [u8]) {
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

/// Packets of every kind that a TUN gives, behind the header it gives with them.
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

/// An IP packet around extension headers and a payload; checksums are not looked at by anyone here.
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
    make_length_right(&mut packet);
    packet
}

/// A TCP segment with timestamps, a UDP datagram, or an echo request.
pub(super) fn transport(protocol: u8, data: usize) -> Vec<u8> {
    let mut bytes = match protocol {
        6 => {
            let mut tcp = vec![0x0f, 0xa0, 0, 80, 0, 0, 1, 0, 0, 0, 2, 0, 0x80, 0x18, 0x20, 0, 0, 0, 0, 0];
            tcp.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
            tcp
        }
        // The seeds are below 2^16.
        _ => [&[0x0f, 0xa0, 0, 53][..], &(8 + data as u16).to_be_bytes(), &[0, 0]].concat(),
    };
    bytes.extend((0..data).map(|at| (at % 7) as u8));
    bytes
}
