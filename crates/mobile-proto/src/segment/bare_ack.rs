//! The builder of bare acknowledgements, with which the session answers a TCP sender in the name of
//! the other end.

use super::{ACK, FlowKey};
use crate::packet::TCP;

pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
pub(super) const TCP_HEADER: usize = 20;
/// Length in bytes of the timestamps option as Linux pads it: two NOPs, kind 8, length 10 and two
/// numbers (RFC 7323, appendix A).
const TIMESTAMPS: usize = 12;
/// The initial time to live of most systems.
const TTL: u8 = 64;

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

/// Adds the 16-bit words of `bytes` to the sum `start`. All inputs have an even length and fewer
/// than 100 bytes.
pub(super) fn sum_words(start: u32, bytes: &[u8]) -> u32 {
    bytes.as_chunks().0.iter().fold(start, |sum, &word| sum + u32::from(u16::from_be_bytes(word)))
}

/// Returns the Internet checksum (RFC 1071) of `bytes`, added to the sum `start`.
pub(super) fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = sum_words(start, bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The sum is at most 0xffff here.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
