//! Rate limit for the small segments into which a peer's packets are cut.
//!
//! A packet that has to be segmented costs its sender one frame, and the receiving kernel one
//! packet for each segment. Segments of an ordinary size are no more work than the received bytes,
//! but small ones turn little data into many packets. Senders of small segments exist (an MSS of
//! 256, or of 88, the minimum of `TCP_MAXSEG`), so small segments pass at a limited rate: as many a
//! second as a peer could send of the smallest packets that need no segmentation, on a link of some
//! 6 Mbit/s. At this rate, small segments do not amplify a peer's traffic.

use std::time::{Duration, Instant};

use crate::{Offload, Packet};

/// Minimum size of an ordinary segment in bytes: every host accepts 536 bytes (RFC 9293, 3.7.1), of
/// which TCP's options may be 40.
const ORDINARY_SIZE: u16 = 536 - 40;

/// Time that pays for one small segment: 32,768 of them pass in a second. That is 64 Mbit/s with an
/// MSS of 256, and 20 Mbit/s with an MSS of 88.
const SEGMENT_COST: Duration = Duration::from_nanos(1_000_000_000 / 32_768);

/// Maximum time that can be spent in advance: 8,192 segments pass at once, as many as in four of
/// the largest packets.
const BURST_CREDIT: Duration = Duration::from_millis(250);

/// The budget for the small segments of one peer.
#[derive(Debug, Default)]
pub(crate) struct SegmentBudget {
    /// The time by which all segments so far are paid for.
    paid_until: Option<Instant>,
}

impl SegmentBudget {
    /// Returns whether the budget allows a packet of the peer to be passed on to be segmented.
    pub(crate) fn admit(&mut self, now: Instant, packet: Packet<'_>) -> bool {
        let Offload::Segment(size) = packet.offload else { return true };
        if size >= ORDINARY_SIZE {
            return true;
        }
        // Headers count as data, so that the limit does not depend on parsing them.
        let segments = packet.len().div_ceil(usize::from(size.max(1)));
        let cost = SEGMENT_COST.saturating_mul(u32::try_from(segments).unwrap_or(u32::MAX));
        let paid_until = self.paid_until.map_or(now, |paid_until| paid_until.max(now)) + cost;
        let admitted = paid_until <= now + BURST_CREDIT;
        if admitted {
            self.paid_until = Some(paid_until);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bytes and segments that are admitted in ten seconds from a peer that sends as
    /// much as it can.
    fn admitted(size: u16, length: usize) -> (usize, usize) {
        let (start, bytes) = (Instant::now(), vec![0; length]);
        let packet = Packet { bytes: &bytes, offload: Offload::Segment(size) };
        let mut budget = SegmentBudget::default();
        let mut admits = |step| budget.admit(start + Duration::from_micros(100) * step, packet);
        let packets = (0..100_000).filter(|&step| admits(step)).count();
        (packets * length, packets * length.div_ceil(size.into()))
    }

    #[test]
    fn only_small_segments_are_limited() {
        for size in [1448, 1208, 536 - 12, 536 - 40] {
            assert_eq!(admitted(size, 65_000).0, 65_000 * 100_000, "{size}");
        }
        for size in [1, 8, 36, 76, 244, 495] {
            let (_, segments) = admitted(size, 4000);
            assert!((300_000..=340_000).contains(&segments), "{segments} of {size} bytes");
        }
    }

    #[test]
    fn a_small_mss_still_carries_data() {
        for (mss, least) in [(256, 60_000_000), (88, 19_000_000)] {
            // Ten seconds of segments with timestamps.
            let bits = admitted(mss - 12, 40_000).0 * 8 / 10;
            assert!(bits > least, "{bits} bit/s with an MSS of {mss}");
        }
    }

    #[test]
    fn a_segment_size_of_zero_has_a_cost() {
        let bytes = [0; 60_000];
        let packet = Packet { bytes: &bytes, offload: Offload::Segment(0) };
        assert!(!SegmentBudget::default().admit(Instant::now(), packet));
    }
}
