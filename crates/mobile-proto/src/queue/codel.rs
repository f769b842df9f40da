//! Controlled delay (RFC 8289) for one flow. A queue that absorbs bursts is useful, a standing
//! queue is not. Packets of a standing queue are dropped at shrinking intervals until the queue is
//! gone, which slows its sender down.

use std::time::{Duration, Instant};

/// Time for which a flow's delay has to exceed the target before it counts as a standing queue
/// rather than as a burst: about the longest usual round trip (RFC 8289, 4.3).
const INTERVAL: Duration = Duration::from_millis(100);

/// Number of intervals within which a queue that stands again resumes nearly the former drop rate
/// (RFC 8289, 4.2 and appendix).
const RESTART_INTERVALS: u32 = 16;

/// The CoDel state of one flow.
#[derive(Debug, Default)]
pub(super) struct CoDel {
    /// The time at which the delay will have been above the target for a whole [`INTERVAL`]; `None`
    /// while it is below.
    standing_at: Option<Instant>,
    dropping: bool,
    /// The time of the next drop. While no packets are dropped, the time at which the next drop
    /// would have been.
    next_drop: Option<Instant>,
    /// Drops since dropping started.
    count: u32,
    /// The value of `count` when dropping started.
    first_count: u32,
}

impl CoDel {
    /// Returns whether a packet has to be dropped instead of sent. `late` means that the packet has
    /// waited for longer than the target delay and that further packets of its flow are queued.
    pub(super) fn should_drop(&mut self, now: Instant, late: bool) -> bool {
        let standing = self.is_standing(now, late);
        if !self.dropping {
            if standing {
                self.start_dropping(now);
            }
            return standing;
        }
        self.dropping = standing;
        let due = standing && self.next_drop.is_some_and(|next| next <= now);
        if due {
            self.count = self.count.saturating_add(1);
            self.next_drop = self.next_drop.and_then(|next| next.checked_add(self.drop_interval()));
        }
        due
    }

    fn is_standing(&mut self, now: Instant, late: bool) -> bool {
        if !late {
            self.standing_at = None;
        } else if self.standing_at.is_none() {
            self.standing_at = now.checked_add(INTERVAL);
        } else {
            return self.standing_at.is_some_and(|at| at <= now);
        }
        false
    }

    /// Starts dropping with the first of several drops.
    fn start_dropping(&mut self, now: Instant) {
        self.dropping = true;
        let recent = self
            .next_drop
            .is_some_and(|next| now.saturating_duration_since(next) < INTERVAL * RESTART_INTERVALS);
        let gained = self.count.saturating_sub(self.first_count);
        self.count = if recent && gained > 1 { gained } else { 1 };
        self.first_count = self.count;
        self.next_drop = now.checked_add(self.drop_interval());
    }

    /// Returns the time to the next drop. The interval shrinks with each drop, so that a sender
    /// whose rate depends on the square root of its losses slows down steadily.
    fn drop_interval(&self) -> Duration {
        INTERVAL.div_f64(f64::from(self.count.max(1)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Returns the milliseconds at which a packet is dropped, with one packet each millisecond.
    fn drops(codel: &mut CoDel, start: Instant, range: std::ops::Range<u32>, late: bool) -> Vec<u32> {
        range.filter(|&ms| codel.should_drop(start + MS * ms, late)).collect()
    }

    #[test]
    fn a_burst_causes_no_drop() {
        let (mut codel, start) = (CoDel::default(), Instant::now());
        for round in 0..10 {
            let at = round * 100;
            assert_eq!(drops(&mut codel, start, at..at + 99, true), []);
            assert!(!codel.should_drop(start + MS * (at + 99), false));
        }
    }

    #[test]
    fn a_standing_queue_is_dropped_at_shrinking_intervals() {
        let (mut codel, start) = (CoDel::default(), Instant::now());
        let times = drops(&mut codel, start, 0..600, true);
        assert_eq!(times[..5], [100, 200, 271, 329, 379], "interval / √count apart");
        assert_eq!(drops(&mut codel, start, 600..700, false), []);
        // The queue stands again: drops resume after an interval, at the former rate.
        let again = drops(&mut codel, start, 700..1000, true);
        assert_eq!(again[0], 800);
        assert!(again[1] - again[0] < 60, "{again:?}");
        // Long after that, dropping starts anew.
        assert_eq!(drops(&mut codel, start, 5000..5300, false), []);
        assert_eq!(drops(&mut codel, start, 5300..5550, true), [5400, 5500]);
    }
}
