//! Which acknowledgement makes an older one needless. A receiver of a bulk transfer acknowledges several times while a batch
//! waits; each acknowledgement is cumulative, so the last one is enough, and each one less is a record, a write into the
//! device and some wake-ups less at the other end (as the ACK filter of CAKE, in its conservative mode).

use crate::offload::Transport;
use crate::segment::{ACK, before};

const TCP: u8 = 6;

/// The timestamps option as Linux pads it (RFC 7323, appendix A); the only one that may be there.
const PADDED_TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];

/// Where the header ends without and with that option, and what stands there then (RFC 9293, 3.1): its length, no flag of
/// accurate ECN, and no other flag than ACK.
const HEADER_LEN: usize = 20;
const HEADER_LEN_WITH_TIMESTAMPS: usize = 32;

/// Whether `new` says all that `old`, which came before it, says: both are bare acknowledgements of one flow, without
/// anything but numbers, the window and timestamps; and `new` acknowledges more. So a duplicate acknowledgement, a
/// selective one, a mark of congestion, and a window that is only updated are never in question.
pub(super) fn supersedes(new: &[u8], old: &[u8]) -> bool {
    if new.len() != old.len() || new.len() > 60 + HEADER_LEN_WITH_TIMESTAMPS {
        return false;
    }
    let Some((new, old)) = AckHeader::read(new).zip(AckHeader::read(old)) else { return false };
    new.headers == old.headers
        && new.seq == old.seq
        && before(old.ack, new.ack)
        && match (new.timestamp, old.timestamp) {
            (Some(new), Some(old)) => !before(new, old),
            (new, old) => new.is_none() && old.is_none(),
        }
}

/// What is compared of a bare acknowledgement.
struct AckHeader<'a> {
    /// What has to be equal: of the IP header all but the time to live, the identification and the checksum; and the ports.
    headers: [&'a [u8]; 4],
    seq: u32,
    ack: u32,
    timestamp: Option<u32>,
}

impl<'a> AckHeader<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        let transport = Transport::locate(packet).ok().filter(|it| it.protocol == TCP)?;
        let (ip, tcp) = packet.split_at_checked(transport.start)?;
        let headers = match transport.version {
            4 if ip.len() == 20 => [&ip[..4], &ip[6..8], &ip[12..], tcp.get(..4)?],
            6 if ip.len() == 40 => [&ip[..7], &[], &ip[8..], tcp.get(..4)?],
            _ => return None,
        };
        let read_u32 = |at: usize| Some(u32::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let timestamp = match tcp.len() {
            HEADER_LEN => None,
            HEADER_LEN_WITH_TIMESTAMPS if tcp[HEADER_LEN..].starts_with(&PADDED_TIMESTAMPS) => {
                Some(read_u32(24)?)
            }
            _ => return None,
        };
        // Its whole length is the header's, and nothing is urgent.
        let bare = tcp[12..14] == [(tcp.len() as u8) << 2, ACK] && tcp[18..20] == [0, 0];
        bare.then_some(Self { headers, seq: read_u32(4)?, ack: read_u32(8)?, timestamp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_later_bare_acknowledgement_of_the_same_flow_says_it_all() {
        for ip in [20, 40] {
            assert!(supersedes(&bare(ip, 8, None), &bare(ip, 7, None)));
            assert!(supersedes(&bare(ip, 8, Some((3, 1))), &bare(ip, 7, Some((3, 0)))));
            assert!(supersedes(&bare(ip, 3, Some((0, 1))), &bare(ip, u32::MAX, Some((u32::MAX, 0)))));
        }
        // Nobody reads what a router changes, nor a window that is older.
        let mut later = bare(20, 8, None);
        (later[4], later[8], later[10], later[34], later[36]) = (9, 9, 9, 9, 9);
        assert!(supersedes(&later, &bare(20, 7, None)));
    }

    #[test]
    fn a_duplicate_an_older_one_and_one_from_the_past_stay() {
        let old = bare(20, 7, Some((3, 1)));
        for (ack, value) in [(7, 3), (6, 3), (8, 2)] {
            assert!(!supersedes(&bare(20, ack, Some((value, 1))), &old), "{ack} {value}");
        }
        assert!(!supersedes(&bare(20, 8, None), &old));
        assert!(!supersedes(&bare(40, 8, None), &bare(20, 7, None)));
    }

    /// Every byte that neither router nor receiver of a cumulative acknowledgement may overlook.
    #[test]
    fn whatever_says_more_stays() {
        for ip in [20, 40] {
            let (old, new) = (bare(ip, 7, Some((3, 1))), bare(ip, 8, Some((3, 1))));
            // Marks of congestion (both fields of accurate ECN), other flags, urgency, sequence, ports, addresses.
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
    fn data_and_selective_acknowledgements_stay() {
        let longer = |ack: u32| [bare(20, ack, Some((3, 1))), vec![0]].concat();
        assert!(!supersedes(&longer(8), &longer(7)));
        // Twelve bytes of it instead of timestamps, and behind them.
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
