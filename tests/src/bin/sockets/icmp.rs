//! ICMP echo requests, and IP headers for sockets that write their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The payload of an echo request, which identifies the reply as an answer to this program.
const PAYLOAD: &[u8; 8] = b"sockets!";
const LENGTH: usize = 16;

/// The protocol number, the type of an echo request and the type of an echo reply, of ICMP and of
/// ICMPv6.
const ICMP4: (u8, u8, u8) = (1, 8, 0);
const ICMP6: (u8, u8, u8) = (58, 128, 129);

/// Returns an echo request with `number` as its sequence number, including the checksum.
///
/// The checksum of ICMPv6 also covers the addresses `six`; with `None` the kernel computes it.
pub(crate) fn request(number: u16, six: Option<(Ipv6Addr, Ipv6Addr)>, is_six: bool) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[0] = if is_six { ICMP6.1 } else { ICMP4.1 };
    bytes[4..6].copy_from_slice(&number.to_be_bytes());
    bytes[6..8].copy_from_slice(&number.to_be_bytes());
    bytes[8..].copy_from_slice(PAYLOAD);
    let mut pseudo = Vec::new();
    if let Some((source, destination)) = six {
        pseudo.extend(source.octets());
        pseudo.extend(destination.octets());
        pseudo.extend((LENGTH as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, ICMP6.0]);
    }
    let sum = checksum(&[&pseudo[..], &bytes].concat());
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Returns an echo request with `number` as its sequence number, with an IP header in front.
///
/// The kernel fills in the source (if unspecified), the length and the checksum of an IPv4 header.
pub(crate) fn packet(number: u16, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut bytes = vec![0x60, 0, 0, 0, 0, LENGTH as u8, ICMP6.0, 64];
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend(request(number, Some((source, destination)), true));
            bytes
        }
        (_, destination) => {
            let IpAddr::V4(destination) = destination.to_canonical() else { return Vec::new() };
            let mut bytes = vec![0x45, 0, 0, 20 + LENGTH as u8, 0, 0, 0, 0, 64, ICMP4.0, 0, 0];
            bytes.extend(Ipv4Addr::UNSPECIFIED.octets());
            bytes.extend(destination.octets());
            bytes.extend(request(number, None, false));
            bytes
        }
    }
}

/// Returns whether a received ICMP message, with or without an IPv4 header, is the reply to the
/// echo request `number`.
pub(crate) fn answers(bytes: &[u8], number: u16) -> bool {
    let is_reply = |message: &[u8]| {
        message.len() >= LENGTH
            && [ICMP4.2, ICMP6.2].contains(&message[0])
            && message[6..8] == number.to_be_bytes()
            && &message[8..16] == PAYLOAD
    };
    is_reply(bytes) || bytes.get(20..).is_some_and(|behind| bytes[0] >> 4 == 4 && is_reply(behind))
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
