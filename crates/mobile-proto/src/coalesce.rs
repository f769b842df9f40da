//! Coalescing of consecutive UDP datagrams of one flow into one packet that the kernel segments
//! again (UDP segmentation offload). The kernel then routes and filters one packet instead of
//! dozens.
//!
//! The kernel segments the packet into the same datagrams in the same order. Only datagrams are
//! coalesced that the kernel recreates exactly: equal headers, equal lengths, of which the last of
//! three or more may be shorter, and a checksum that is correct or still to be computed. (The
//! kernel numbers the identification of IPv4 packets on from the first one's; it means nothing
//! where a packet may not be fragmented, RFC 6864.)

use crate::packet::{InnerPacket, PacketHeaders, UDP};
use crate::{Offload, Packet};

/// Maximum number of coalesced datagrams: as many as the kernel itself makes of one packet
/// (`UDP_MAX_SEGMENTS` before Linux 6.9).
const MAX_DATAGRAMS: u16 = 64;

/// Maximum length in bytes: an IPv4 packet's total length and an IPv6 packet's payload length have
/// 16 bits.
const MAX_LENGTH: usize = u16::MAX as usize;

/// Minimum payload in bytes: the kernel's smallest segment ([`Offload::Segment`]).
const MIN_PAYLOAD: usize = 8;

const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// The number and size of the packets that were coalesced into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoalescedSegment {
    /// The number of packets; 1 if nothing was coalesced.
    pub packets: u64,
    /// The bytes of the packets, headers included.
    pub bytes: u64,
}

impl CoalescedSegment {
    /// Returns the description of a packet that was not coalesced.
    #[must_use]
    pub fn single(packet: Packet<'_>) -> Self {
        Self { packets: 1, bytes: packet.len() as u64 }
    }
}

/// Coalesces consecutive UDP datagrams that are to be written to a device; the datagrams that were
/// not passed on yet are called *held*.
#[derive(Debug, Default)]
pub struct SegmentCoalescer {
    bytes: Vec<u8>,
    /// The headers of the first datagram, which is passed on unchanged if no other joins it.
    first: Option<PacketHeaders>,
    /// Length of the IP header in bytes.
    ip_len: usize,
    /// Payload of each datagram in bytes; only the last may be shorter.
    payload_len: usize,
    datagrams: u16,
    /// Whether the last datagram is shorter than the others, so that none can follow.
    complete: bool,
}

impl SegmentCoalescer {
    /// Appends a datagram to the held ones. Returns false if it cannot be coalesced with them: the
    /// caller then passes on the held datagrams first and this packet after them.
    pub fn push<'a>(&mut self, packet: impl Into<InnerPacket<'a>>) -> bool {
        let packet = packet.into();
        let Some(ip) = coalescible_header_len(&packet) else { return false };
        let payload = packet.len() - ip - UDP_HEADER;
        if self.datagrams == 0 {
            self.bytes.clear();
            self.bytes.extend_from_slice(packet.bytes);
            (self.first, self.ip_len, self.payload_len) = (Some(packet.headers()), ip, payload);
            (self.datagrams, self.complete) = (1, false);
            return true;
        }
        // A shorter datagram is not appended to a single longer one: the longer may be a probe of
        // the path MTU, and if it is too long for the path, the kernel drops both.
        let least = if self.datagrams == 1 { self.payload_len } else { MIN_PAYLOAD };
        if self.complete
            || self.datagrams == MAX_DATAGRAMS
            || !(least..=self.payload_len).contains(&payload)
            || self.bytes.len() + payload > MAX_LENGTH
            || !has_same_headers(&self.bytes, packet.bytes, ip)
        {
            return false;
        }
        self.bytes.extend_from_slice(&packet.bytes[ip + UDP_HEADER..]);
        self.datagrams += 1;
        self.complete = payload < self.payload_len;
        true
    }

    /// Returns the held datagrams as one packet, with their number and size, and holds none
    /// afterwards. Returns `None` if none were held.
    pub fn take(&mut self) -> Option<(InnerPacket<'_>, CoalescedSegment)> {
        let datagrams = std::mem::take(&mut self.datagrams);
        let first = self.first?;
        let offload = match datagrams {
            0 => return None,
            1 => first.offload(),
            _ => {
                write_headers(&mut self.bytes, self.ip_len);
                // The payload is shorter than the packet, so it fits 16 bits.
                Offload::Segment(self.payload_len as u16)
            }
        };
        let headers = usize::from(datagrams - 1) * (self.ip_len + UDP_HEADER);
        let summary =
            CoalescedSegment { packets: datagrams.into(), bytes: (self.bytes.len() + headers) as u64 };
        Some((InnerPacket::in_buffer(&self.bytes, first.resized(self.bytes.len(), offload)), summary))
    }
}

/// Returns the length of the IP header in bytes if the packet is a datagram that can be coalesced.
fn coalescible_header_len(packet: &InnerPacket<'_>) -> Option<usize> {
    if packet.transport() != Some(UDP) {
        return None;
    }
    let (bytes, ip, length) = (packet.bytes, packet.transport_at(), packet.len());
    let is_plain = match packet.version()? {
        // No options; the don't-fragment flag set, and no fragment.
        4 => ip == IPV4_HEADER && bytes[6..8] == [0x40, 0],
        _ => ip == IPV6_HEADER,
    };
    if !is_plain || length < ip + UDP_HEADER + MIN_PAYLOAD || read_u16(bytes, ip + 4) != length - ip {
        return None;
    }
    let summed = match packet.offload {
        Offload::Checksum => true,
        Offload::None => read_u16(bytes, ip + 6) != 0 && sum(bytes, ip, &bytes[ip..]) == 0xffff,
        Offload::Segment(_) => false,
    };
    summed.then_some(ip)
}

/// Returns whether two datagrams have the same headers except for lengths, checksums and
/// identification.
fn has_same_headers(a: &[u8], b: &[u8], ip: usize) -> bool {
    let same = |range: std::ops::Range<usize>| a[range.clone()] == b[range];
    if a[0] >> 4 != b[0] >> 4 {
        return false;
    }
    let addresses = if ip == IPV4_HEADER { same(0..2) && same(6..10) } else { same(0..4) && same(6..8) };
    addresses && same(ip - if ip == IPV4_HEADER { 8 } else { 32 }..ip + 4)
}

/// Writes the lengths and the partial checksum into the headers of a packet that the kernel has to
/// segment.
fn write_headers(bytes: &mut [u8], ip: usize) {
    // The datagram has at most `MAX_LENGTH` bytes.
    let datagram = (bytes.len() - ip) as u16;
    bytes[ip + 4..ip + 6].copy_from_slice(&datagram.to_be_bytes());
    if ip == IPV4_HEADER {
        let total = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[10..12].fill(0);
        let header = !fold(add(0, &bytes[..ip]));
        bytes[10..12].copy_from_slice(&header.to_be_bytes());
    } else {
        bytes[4..6].copy_from_slice(&datagram.to_be_bytes());
    }
    let pseudo = sum(bytes, ip, &[]);
    bytes[ip + 6..ip + 8].copy_from_slice(&pseudo.to_be_bytes());
}

/// Returns the sum of the UDP pseudo-header and `data`, as for the Internet checksum.
fn sum(bytes: &[u8], ip: usize, data: &[u8]) -> u16 {
    let addresses = if ip == IPV4_HEADER { 12..20 } else { 8..40 };
    // A datagram's length is below 2^16.
    let start = u32::from(UDP) + (bytes.len() - ip) as u32;
    fold(add(add(start, &bytes[addresses]), data))
}

/// Adds the 16-bit words of `bytes` to the sum `start`. With at most 64 KiB no carry is lost.
fn add(start: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(start, |sum, read_u16| sum + u32::from(u16::from_be_bytes(*read_u16)));
    rest.first().map_or(sum, |&last| sum + (u32::from(last) << 8))
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    // The second addition leaves no carry.
    ((once & 0xffff) + (once >> 16)) as u16
}

fn read_u16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

#[cfg(test)]
mod tests;
