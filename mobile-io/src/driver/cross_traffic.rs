//! Whose the queue is on a path that is held ([`Window`](super::window::Window)): ours, or cross traffic's.
//!
//! What is ours goes away when we hold back. What stays is somebody else's, and to hold back more would only leave the path to
//! them: the share of each in a FIFO is what each has in it.

use std::time::{Duration, Instant};

use super::congestion;
use crate::tcp_info::Outgoing;

/// A queue shorter than this costs a held path little, and may be how its round trip varies.
const WORTH: Duration = Duration::from_millis(20);

/// A queue of ours has gone after so long and twice its length: the window goes by the best rate of a second, and the path may have
/// been faster until now; what was on its way is there, and the kernel's average of round trips (RFC 6298) has followed.
const PATIENCE: Duration = Duration::from_millis(1500);

/// For how long a path with cross traffic is not held, the first time; then each time twice as long, for what it loses while it is held
/// is not soon won back.
const COMPETING: Duration = Duration::from_secs(10);
/// At the most: after the end of the cross traffic the queue is all ours for as long.
const LONGEST: Duration = Duration::from_secs(40);

/// Who had no more from a path by competing on it does not try again for so long. A path so slow that the least that can be on its way
/// is a queue looks like a shared one.
const VAIN: Duration = Duration::from_secs(300);

/// What is known of a path's queue.
#[derive(Debug)]
pub(super) struct CrossTraffic {
    standing: Option<Standing>,
    /// For how long the path is not to be held next.
    competing: Duration,
    /// The path's rate, in bytes a second, when that began last.
    before: Option<u64>,
    /// Until then every queue is taken for ours.
    vain: Option<Instant>,
    /// The round trip that was left when a queue of ours had gone: where it is longer than the shortest, the path has changed.
    settled: Duration,
}

/// A queue that is there.
#[derive(Debug, Clone, Copy)]
struct Standing {
    since: Instant,
    /// When the path was last held.
    held: Instant,
    /// The longest round trip since.
    longest: Duration,
}

impl CrossTraffic {
    pub(super) fn new() -> Self {
        Self { standing: None, competing: COMPETING, before: None, vain: None, settled: Duration::ZERO }
    }

    /// The path is going to be held. `rate`: what it carried until now, in bytes a second.
    pub(super) fn begin(&mut self, now: Instant, rate: u64) {
        if self.before.take().is_some_and(|before| rate < before * 3 / 2) {
            (self.competing, self.vain) = (COMPETING, now.checked_add(VAIN));
        }
    }

    /// Whether there is a queue that may be cross traffic's. While the path is held for it, what waits here says nothing of the rate to come.
    pub(super) fn is_suspected(&self) -> bool {
        self.standing.is_some()
    }

    /// Looks at a path each time that it was found out whether it is `held`. When the queue on it stays whether we hold back or not: for
    /// how long it is not to be held.
    pub(super) fn found(&mut self, now: Instant, path: &Outgoing, rate: u64, held: bool) -> Option<Duration> {
        let shortest = path.shortest()?.max(self.settled);
        let beyond = |rtt: Duration| rtt.saturating_sub(shortest);
        let queued = beyond(path.rtt) >= WORTH && congestion::is_queued(path, shortest);
        if !queued || self.vain.is_some_and(|until| now < until) {
            (self.standing, self.competing) = (None, COMPETING);
            return None;
        }
        let new = Standing { since: now, held: now, longest: path.rtt };
        let standing = self.standing.get_or_insert(new);
        if held {
            standing.held = now;
        } else if now.saturating_duration_since(standing.held) > path.rtt * 2 {
            // Who is not held back shows nothing by a queue.
            *standing = new;
        }
        standing.longest = standing.longest.max(path.rtt);
        let longest = standing.longest;
        if now.saturating_duration_since(standing.since) < PATIENCE + longest * 2 {
            return None;
        }
        if beyond(path.rtt) <= beyond(longest) / 3 {
            *self = Self { settled: path.rtt, ..Self::new() };
            return None;
        }
        let competing = self.competing;
        *self = Self { competing: (competing * 2).min(LONGEST), before: Some(rate), ..Self::new() };
        Some(competing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp_info::Bbr;

    const MS: Duration = Duration::from_millis(1);

    const RATE: u64 = 100_000;

    /// Asks every 20 ms for so long, with the round trip of each moment: when is it cross traffic, and for how long?
    fn find(
        cross: &mut CrossTraffic,
        millis: u64,
        rtt: impl Fn(u64) -> u64,
        held: impl Fn(u64) -> bool,
    ) -> Option<(u64, u64)> {
        let began = Instant::now();
        let bbr = Some(Bbr { min_rtt: Some(20 * MS), ..Bbr::default() });
        (0..millis).step_by(20).find_map(|at| {
            let rtt = Duration::from_millis(rtt(at));
            let path = Outgoing { rtt, rttvar: 2 * MS, bbr, ..Outgoing::default() };
            let competing = cross.found(began + Duration::from_millis(at), &path, RATE, held(at))?;
            Some((at, competing.as_secs()))
        })
    }

    #[test]
    fn a_queue_that_stays_while_we_hold_back_is_cross_traffic_s_each_time_for_longer() {
        let mut cross = CrossTraffic::new();
        for seconds in [10, 20, 40, 40] {
            assert_eq!(find(&mut cross, 5000, |_| 250, |_| true), Some((2000, seconds)));
            assert!(!cross.is_suspected());
            cross.begin(Instant::now(), 2 * RATE);
        }
        // Until it was ours.
        assert_eq!(find(&mut cross, 5000, |at| if at < 600 { 250 } else { 21 }, |_| true), None);
        // One that comes in the middle of a transfer, and grows.
        let found = find(&mut cross, 5000, |at| 22 + (at / 10).min(200), |_| true);
        assert!(found.is_some_and(|(at, seconds)| at < 2500 && seconds == 10), "{found:?}");
    }

    #[test]
    fn a_queue_that_goes_when_we_hold_back_is_ours() {
        for begun in [60, 250, 1000] {
            let drained = |at: u64| 24 + begun - begun.min(at);
            assert_eq!(find(&mut CrossTraffic::new(), 20_000, drained, |_| true), None, "{begun}");
        }
        // A path that became slower is held to the rate that it had, for a second.
        let slower = |at: u64| if (100..1400).contains(&at) { 200 } else { 24 };
        assert_eq!(find(&mut CrossTraffic::new(), 20_000, slower, |_| true), None);
    }

    #[test]
    fn a_path_that_became_longer_is_no_queue_once_ours_has_gone() {
        let mut cross = CrossTraffic::new();
        let longer = |at: u64| if at < 500 { 300 } else { 60 };
        assert_eq!(find(&mut cross, 20_000, longer, |_| true), None);
        assert_eq!(
            find(&mut cross, 20_000, |_| 250, |_| true),
            Some((2000, 10)),
            "and then there may be one"
        );
    }

    #[test]
    fn who_had_no_more_by_competing_does_not_try_again_at_once() {
        let mut cross = CrossTraffic::new();
        assert!(find(&mut cross, 5000, |_| 250, |_| true).is_some());
        let now = Instant::now();
        cross.begin(now, RATE + 1);
        assert_eq!(find(&mut cross, 20_000, |_| 250, |_| true), None);
        cross.begin(now, RATE + 1);
        cross.vain = Some(now);
        assert_eq!(find(&mut cross, 20_000, |_| 250, |_| true), Some((2000, 10)));
    }

    #[test]
    fn who_is_not_held_back_and_what_varies_by_little_show_nothing() {
        assert_eq!(find(&mut CrossTraffic::new(), 20_000, |_| 250, |_| false), None);
        assert_eq!(find(&mut CrossTraffic::new(), 20_000, |_| 250, |at| at % 2000 == 0), None);
        assert_eq!(find(&mut CrossTraffic::new(), 20_000, |_| 38, |_| true), None);
    }
}
