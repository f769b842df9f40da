//! The packets that the tests send, each with a number.

use std::ops::Range;

use mobile_proto::{Offload, Packet};

/// Returns a packet that carries its number, padded to `size` with bytes that depend on it.
pub(crate) fn packet(number: u32, size: usize) -> Vec<u8> {
    let mut packet = number.to_be_bytes().to_vec();
    packet.extend((4..size).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8));
    packet
}

/// Returns the packet with an offload that depends on its length, so that every kind is sent.
pub(crate) fn with_offload(bytes: &[u8]) -> Packet<'_> {
    let offload = match bytes.len() % 3 {
        0 => Offload::None,
        1 => Offload::Checksum,
        _ => Offload::Segment(bytes.len() as u16),
    };
    Packet { bytes, offload }
}

/// Returns the bytes of a packet, after a check that its offload is the one it was sent with.
pub(super) fn checked(packet: Packet<'_>) -> Vec<u8> {
    assert_eq!(packet, with_offload(packet.bytes), "the offload was changed on the way");
    packet.bytes.to_vec()
}

/// Returns the number of a packet, after a check that all its bytes are correct.
pub(crate) fn number(bytes: &[u8]) -> u32 {
    let number = u32::from_be_bytes(*bytes.first_chunk().expect("four bytes"));
    assert!(bytes == packet(number, bytes.len()), "packet {number} was changed on the way");
    number
}

pub(crate) fn numbers(packets: &[Vec<u8>]) -> Vec<u32> {
    packets.iter().map(|packet| number(packet)).collect()
}

pub(crate) fn all(range: Range<u32>) -> Vec<u32> {
    range.collect()
}
