//! Thinning of inner TCP acknowledgements: the check whether a queued acknowledgement is redundant
//! because of a later one.
//!
//! The receiver of a bulk transfer sends several acknowledgements while a batch of packets waits in
//! the queue. Acknowledgements are cumulative, so the last one is enough. Each one that is not sent
//! saves a record, a write into the device and some wake-ups at the other end. The ACK filter of
//! CAKE does the same in its conservative mode.

use std::num::NonZero;

use crate::packet::InnerPacket;
use crate::segment::{ACK, before};

/// The timestamps option as Linux pads it (RFC 7323, appendix A); no other option may be present.
const PADDED_TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];

/// Length in bytes of a TCP header without options.
const HEADER_LEN: usize = 20;
/// Length in bytes of a TCP header with the padded timestamps option.
const HEADER_LEN_WITH_TIMESTAMPS: usize = 32;

/// The header of a bare acknowledgement of TCP, with no content but sequence numbers, window and
/// timestamps: the length of its IP header in bytes, 20 or 40.
pub(super) type BareAckHeader = NonZero<u8>;

/// Returns the header of a bare acknowledgement; `None` if the packet is anything else.
pub(super) fn bare_ack_header(packet: &InnerPacket<'_>) -> Option<BareAckHeader> {
    let header = packet.tcp_header()?;
    let ip_len = match (packet.version(), packet.transport_at()) {
        (Some(4), 20) | (Some(6), 40) => u8::try_from(packet.transport_at()).ok()?,
        _ => return None,
    };
    let length = packet.len() - packet.transport_at();
    let plain = match length {
        HEADER_LEN => true,
        HEADER_LEN_WITH_TIMESTAMPS => packet.tcp_options()?.starts_with(&PADDED_TIMESTAMPS),
        _ => false,
    };
    // The header fills the segment, no flag but ACK is set (no accurate ECN, RFC 9293, 3.1), and
    // the urgent pointer is 0.
    let bare = header[12..14] == [(length as u8) << 2, ACK] && header[18..20] == [0, 0];
    NonZero::new(ip_len).filter(|_| plain && bare)
}

/// Returns whether the packet `new` makes `old`, which was queued before, redundant. Both are bare
/// acknowledgements with this `header`.
///
/// Both have to belong to one flow, and `new` has to acknowledge more. So a duplicate
/// acknowledgement, a selective one, a congestion mark and a mere window update are never
/// redundant.
pub(super) fn supersedes(header: BareAckHeader, new: &[u8], old: &[u8]) -> bool {
    if new.len() != old.len() {
        return false;
    }
    let Some((new, old)) = AckHeader::read(header, new).zip(AckHeader::read(header, old)) else {
        return false;
    };
    new.headers == old.headers
        && new.seq == old.seq
        && before(old.ack, new.ack)
        && match (new.timestamp, old.timestamp) {
            (Some(new), Some(old)) => !before(new, old),
            (new, old) => new.is_none() && old.is_none(),
        }
}

/// The fields of a bare acknowledgement that the check compares.
struct AckHeader<'a> {
    /// The parts that have to be equal in both acknowledgements: the IP header except for the time
    /// to live, the identification and the checksum; and the ports.
    headers: [&'a [u8]; 4],
    seq: u32,
    ack: u32,
    timestamp: Option<u32>,
}

impl<'a> AckHeader<'a> {
    fn read(header: BareAckHeader, packet: &'a [u8]) -> Option<Self> {
        let (ip, tcp) = packet.split_at_checked(header.get().into())?;
        let headers = match ip.len() {
            20 => [&ip[..4], &ip[6..8], &ip[12..], tcp.get(..4)?],
            40 => [&ip[..7], &[], &ip[8..], tcp.get(..4)?],
            _ => return None,
        };
        let read_u32 = |at: usize| Some(u32::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let timestamp = if tcp.len() == HEADER_LEN { None } else { Some(read_u32(24)?) };
        Some(Self { headers, seq: read_u32(4)?, ack: read_u32(8)?, timestamp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::TCP;

    fn supersedes(new: &[u8], old: &[u8]) -> bool {
        let [arriving, queued] = [new, old].map(|packet| bare_ack_header(&packet.into()));
        arriving.is_some_and(|header| queued == arriving && super::supersedes(header, new, old))
    }

    fn bare(ip: usize, ack: u32, timestamps: Option<(u32, u32)>) -> Vec<u8> {
        let mut packet = if ip == 20 { vec![0x45; 20] } else { vec![0x60; 40] };
        if ip == 20 {
            packet[6..8].copy_from_slice(&[0x40, 0]);
            packet[9] = TCP;
        } else {
            packet[6] = TCP;
        }
        let length = if timestamps.is_some() { HEADER_LEN_WITH_TIMESTAMPS } else { HEADER_LEN };
        packet.extend([0, 80, 1, 2, 0, 0, 0, 5]);
        packet.extend(ack.to_be_bytes());
        packet.extend([(length as u8) << 2, ACK, 0, 99, 0, 0, 0, 0]);
        if let Some((value, echo)) = timestamps {
            packet.extend(PADDED_TIMESTAMPS);
            packet.extend(value.to_be_bytes());
            packet.extend(echo.to_be_bytes());
        }
        let total = packet.len() as u16;
        if ip == 20 {
            packet[2..4].copy_from_slice(&total.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&(total - 40).to_be_bytes());
        }
        packet
    }

    #[test]
    fn a_later_bare_acknowledgement_supersedes_an_earlier_one() {
        for ip in [20, 40] {
            assert!(supersedes(&bare(ip, 8, None), &bare(ip, 7, None)));
            assert!(supersedes(&bare(ip, 8, Some((3, 1))), &bare(ip, 7, Some((3, 0)))));
            assert!(supersedes(&bare(ip, 3, Some((0, 1))), &bare(ip, u32::MAX, Some((u32::MAX, 0)))));
        }
        // Fields that routers change, and an older window, do not matter.
        let mut later = bare(20, 8, None);
        (later[4], later[8], later[10], later[34], later[36]) = (9, 9, 9, 9, 9);
        assert!(supersedes(&later, &bare(20, 7, None)));
    }

    #[test]
    fn duplicate_and_older_acknowledgements_are_kept() {
        let old = bare(20, 7, Some((3, 1)));
        for (ack, value) in [(7, 3), (6, 3), (8, 2)] {
            assert!(!supersedes(&bare(20, ack, Some((value, 1))), &old), "{ack} {value}");
        }
        assert!(!supersedes(&bare(20, 8, None), &old));
        assert!(!supersedes(&bare(40, 8, None), &bare(20, 7, None)));
    }

    /// Tests every bit of the headers that a router or the receiver of a cumulative acknowledgement
    /// must not ignore.
    #[test]
    fn acknowledgements_with_any_further_content_are_kept() {
        for ip in [20, 40] {
            let (old, new) = (bare(ip, 7, Some((3, 1))), bare(ip, 8, Some((3, 1))));
            // Congestion marks (both fields of accurate ECN), other flags, urgency, sequence,
            // ports, addresses.
            let of_ip = if ip == 20 { vec![0, 1, 6, 12, 19] } else { vec![0, 1, 3, 8, 39] };
            let of_tcp = [0, 3, 4, 7, 12, 13, 18, 19, 20, 22, 23];
            for at in of_ip.into_iter().chain(of_tcp.map(|at| ip + at)) {
                for bit in 0..8 {
                    let mut odd = new.clone();
                    odd[at] ^= 1 << bit;
                    assert!(!supersedes(&odd, &old), "new: byte {at}, bit {bit}");
                    let mut odd = old.clone();
                    odd[at] ^= 1 << bit;
                    assert!(!supersedes(&new, &odd), "old: byte {at}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn data_and_selective_acknowledgements_are_kept() {
        let longer = |ack: u32| [bare(20, ack, Some((3, 1))), vec![0]].concat();
        assert!(!supersedes(&longer(8), &longer(7)));
        // Twelve bytes of selective acknowledgement instead of timestamps, and after them.
        let mut selective = [bare(20, 7, Some((3, 1))), bare(20, 8, Some((3, 1)))];
        selective.iter_mut().for_each(|packet| packet[40..44].copy_from_slice(&[1, 1, 5, 10]));
        assert!(!supersedes(&selective[1], &selective[0]));
        let both = [7, 8].map(|ack| {
            let mut packet =
                [bare(20, ack, Some((3, 1))), vec![1, 1, 5, 10, 0, 0, 0, 9, 0, 0, 0, 10]].concat();
            (packet[3], packet[32]) = (64, 44 << 2);
            packet
        });
        assert!(!supersedes(&both[1], &both[0]));
        assert!(!supersedes(&[], &[]));
    }
}
