//! Invariants of compressed streams, of a hostile peer and of an honest one.

use super::packets;
use crate::MAX_PACKET;
use crate::compression::{Decoder, Encoder};

/// Checks that a decoder withstands a hostile peer's stream if the first byte is even, in pieces of
/// `claimed length (16 bits) | number of bytes (8 bits) | bytes`. If the first byte is odd, checks
/// that packets of up to 1 KiB survive a round trip.
pub fn compression(bytes: &[u8]) {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    if choice % 2 == 0 { hostile(rest) } else { honest(rest) }
}

fn hostile(mut bytes: &[u8]) {
    let mut decoder = Decoder::new().expect("memory");
    while let Some((&[high, low, count], rest)) = bytes.split_first_chunk() {
        // 0xffff stands for the maximum length, and 0xfffe for more than that.
        let claimed = match u16::from_be_bytes([high, low]) {
            0xffff => MAX_PACKET,
            0xfffe => MAX_PACKET + 1,
            claimed => usize::from(claimed),
        };
        let (piece, rest) = rest.split_at(usize::from(count).min(rest.len()));
        match decoder.decode(claimed, piece) {
            Ok(packet) => assert_eq!(packet.len(), claimed),
            Err(_) => return,
        }
        bytes = rest;
    }
}

fn honest(mut bytes: &[u8]) {
    let (mut encoder, mut decoder) = (Encoder::new().expect("memory"), Decoder::new().expect("memory"));
    while let Some((&[high, low], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low]) % 1024).min(rest.len());
        let (packet, rest) = rest.split_at(length);
        if !packet.is_empty() {
            assert!(encoder.encode(packet), "the encoder failed");
            assert_eq!(decoder.decode(packet.len(), encoder.output()).expect("an encoded packet"), packet);
        }
        bytes = rest;
    }
}

/// Returns seeds: streams of similar packets in compressed form, and the packets.
#[must_use]
pub fn compression_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for size in [0, 40, 140] {
        let (mut stream, mut plain) = (vec![0], vec![1]);
        let mut encoder = Encoder::new().expect("memory");
        for protocol in [6, 17, 6] {
            let packet = packets::ip(protocol == 17, &[], protocol, &packets::transport(protocol, size));
            assert!(encoder.encode(&packet));
            let length = u16::try_from(packet.len()).expect("short");
            let count = u8::try_from(encoder.output().len()).expect("short");
            stream.extend_from_slice(&length.to_be_bytes());
            stream.push(count);
            stream.extend_from_slice(encoder.output());
            plain.extend_from_slice(&length.to_be_bytes());
            plain.extend_from_slice(&packet);
        }
        seeds.extend([stream, plain]);
    }
    seeds
}
