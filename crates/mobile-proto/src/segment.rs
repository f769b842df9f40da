//! Inner TCP segments: the fields that the freeze needs (answers to TCP senders in an outage), and
//! a builder for bare acknowledgements.

mod bare_ack;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use bare_ack::{AckPacket, BareAck};

use crate::packet::InnerPacket;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

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
    /// Reads the headers of a packet. Returns `None` unless the packet is a complete TCP segment.
    pub(crate) fn of(packet: &InnerPacket<'_>) -> Option<Self> {
        let header = packet.tcp_header()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let long =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let [local, remote] = packet.addresses();
        let key =
            FlowKey { version: packet.version()?, local, remote, local_port: word(0), remote_port: word(2) };
        Some(Self {
            key,
            seq: long(4),
            ack: long(8),
            flags: header[13],
            window: word(14),
            // A packet has at most 65,575 bytes.
            data: u32::try_from(packet.len() - packet.payload_at()).ok()?,
            shift: if header[13] & SYN == 0 { 0 } else { window_shift(packet) },
        })
    }

    /// Parses the headers of a packet, like [`of`](Self::of).
    #[cfg(any(fuzzing, test))]
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        Self::of(&packet.into())
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
pub(crate) fn timestamps<'a>(packet: impl Into<InnerPacket<'a>>) -> Option<(u32, u32)> {
    match option(&packet.into(), 8)? {
        &[a, b, c, d, e, f, g, h] => {
            Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])))
        }
        _ => None,
    }
}

/// Returns the shift in the window scale option of a TCP header; 0 without the option.
fn window_shift(packet: &InnerPacket<'_>) -> u8 {
    option(packet, 3).and_then(|value| value.first().copied()).unwrap_or(0)
}

/// Returns the value of the first option of the kind `wanted` in a TCP header.
fn option<'a>(packet: &InnerPacket<'a>, wanted: u8) -> Option<&'a [u8]> {
    let mut options = packet.tcp_options()?;
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
