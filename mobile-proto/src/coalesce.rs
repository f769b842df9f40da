//! Datagrams of one flow that follow each other, joined into one packet that the kernel cuts again (UDP segmentation offload):
//! then it routes and filters one packet instead of dozens.
//!
//! What comes out at the other side of the kernel are the same datagrams in the same order. Only such are joined as it makes
//! alike: equal headers, equal lengths but for the last of three or more, a checksum that is right or still to be made. (An IPv4 packet's
//! identification is counted on from the first one's; it means nothing where a packet may not be fragmented, RFC 6864.)

use crate::{Offload, Packet};

/// As many as the kernel itself makes of one (`UDP_MAX_SEGMENTS` before Linux 6.9).
const MAX_PARTS: u16 = 64;

/// An IPv4 packet's total length, and an IPv6 packet's payload, are numbers of 16 bits.
const MAX_LENGTH: usize = u16::MAX as usize;

/// What is shorter than the kernel's least segment is not joined ([`Offload::Segment`]).
const MIN_PAYLOAD: usize = 8;

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// What a packet was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoalescedSegment {
    /// Packets that were joined; one is itself.
    pub packets: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
}

impl CoalescedSegment {
    /// Of a packet that is what it was.
    #[must_use]
    pub fn single(packet: Packet<'_>) -> Self {
        Self { packets: 1, bytes: packet.len() as u64 }
    }
}

/// Some datagrams on their way to the device.
#[derive(Debug, Default)]
pub struct SegmentCoalescer {
    bytes: Vec<u8>,
    /// Of the first, which is handed on as it came if it stays alone.
    offload: Offload,
    /// Length of the IP header.
    ip: usize,
    /// Payload of each but the last.
    size: usize,
    parts: u16,
    /// The last one is shorter: none can follow.
    ended: bool,
}

impl SegmentCoalescer {
    /// Takes a datagram behind those it holds; false if that cannot be: then it is to be handed on by itself, after those.
    pub fn push(&mut self, packet: Packet<'_>) -> bool {
        let Some(ip) = joinable(packet) else { return false };
        let payload = packet.len() - ip - UDP_HEADER;
        if self.parts == 0 {
            self.bytes.clear();
            self.bytes.extend_from_slice(packet.bytes);
            (self.offload, self.ip, self.size) = (packet.offload, ip, payload);
            (self.parts, self.ended) = (1, false);
            return true;
        }
        // A shorter one behind a single longer one is no run: the longer may be a probe of what the way can carry, and if it
        // cannot, the kernel drops both.
        let least = if self.parts == 1 { self.size } else { MIN_PAYLOAD };
        if self.ended
            || self.parts == MAX_PARTS
            || !(least..=self.size).contains(&payload)
            || self.bytes.len() + payload > MAX_LENGTH
            || !is_alike(&self.bytes, packet.bytes, ip)
        {
            return false;
        }
        self.bytes.extend_from_slice(&packet.bytes[ip + UDP_HEADER..]);
        self.parts += 1;
        self.ended = payload < self.size;
        true
    }

    /// What it holds as one packet, and of what that was made; then it holds nothing. None if it did not.
    pub fn take(&mut self) -> Option<(Packet<'_>, CoalescedSegment)> {
        let parts = std::mem::take(&mut self.parts);
        let offload = match parts {
            0 => return None,
            1 => self.offload,
            _ => {
                finish(&mut self.bytes, self.ip);
                // Shorter than the packet.
                Offload::Segment(self.size as u16)
            }
        };
        let headers = usize::from(parts - 1) * (self.ip + UDP_HEADER);
        let made = CoalescedSegment { packets: parts.into(), bytes: (self.bytes.len() + headers) as u64 };
        Some((Packet { bytes: &self.bytes, offload }, made))
    }
}

/// The length of the IP header of a datagram that can be joined with others.
fn joinable(packet: Packet<'_>) -> Option<usize> {
    let bytes = packet.bytes;
    let (ip, length) = match bytes.first()? {
        // Without options; not to be fragmented, and no fragment.
        0x45 if bytes.len() > IPV4_HEADER && bytes[9] == UDP && bytes[6] & 0xbf == 0 && bytes[7] == 0 => {
            (bytes[6] & 0x40 != 0).then_some((IPV4_HEADER, word(bytes, 2)))?
        }
        0x60..=0x6f if bytes.len() > IPV6_HEADER && bytes[6] == UDP => {
            (IPV6_HEADER, word(bytes, 4) + IPV6_HEADER)
        }
        _ => return None,
    };
    // Before anything behind the IP header is looked at.
    if length != bytes.len() || length < ip + UDP_HEADER + MIN_PAYLOAD || word(bytes, ip + 4) != length - ip {
        return None;
    }
    let summed = match packet.offload {
        Offload::Checksum => true,
        Offload::None => word(bytes, ip + 6) != 0 && sum(bytes, ip, &bytes[ip..]) == 0xffff,
        Offload::Segment(_) => false,
    };
    summed.then_some(ip)
}

/// Whether two datagrams have the same headers, but for lengths, checksums and identification.
fn is_alike(a: &[u8], b: &[u8], ip: usize) -> bool {
    let same = |range: std::ops::Range<usize>| a[range.clone()] == b[range];
    if a[0] >> 4 != b[0] >> 4 {
        return false;
    }
    let addresses = if ip == IPV4_HEADER { same(0..2) && same(6..10) } else { same(0..4) && same(6..8) };
    addresses && same(ip - if ip == IPV4_HEADER { 8 } else { 32 }..ip + 4)
}

/// Makes the headers those of a packet that is to be cut: lengths of all of it, and a partial checksum.
fn finish(bytes: &mut [u8], ip: usize) {
    // At most MAX_LENGTH.
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

/// The sum of the pseudo-header and of `data`.
fn sum(bytes: &[u8], ip: usize, data: &[u8]) -> u16 {
    let addresses = if ip == IPV4_HEADER { 12..20 } else { 8..40 };
    // A datagram's length is below 2^16.
    let start = u32::from(UDP) + (bytes.len() - ip) as u32;
    fold(add(add(start, &bytes[addresses]), data))
}

/// Of at most 64 KiB: no carry is lost.
fn add(start: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(start, |sum, word| sum + u32::from(u16::from_be_bytes(*word)));
    rest.first().map_or(sum, |&last| sum + (u32::from(last) << 8))
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    // The second time nothing is left above.
    ((once & 0xffff) + (once >> 16)) as u16
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

#[cfg(test)]
mod tests;
