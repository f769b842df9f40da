//! Whose the queue is on a path that is held ([`SendLimit`](super::send_limit::SendLimit)): ours, or cross traffic's.
//!
//! What is ours goes away when we hold back. What persists is somebody else's, and to hold back more would only leave the path to
//! them: the share of each in a FIFO is what each has in it.

use std::time::{Duration, Instant};

use super::congestion;
use super::send_limit::InFlightLimit;
use crate::tcp_info::SendState;

/// A queue that is no longer than this costs a held path little, and may be how its round trip varies.
const MIN_QUEUE_DELAY: Duration = Duration::from_millis(20);

/// A queue of ours has gone after so long and twice its length: what was on its way is there, and the kernel's average of round trips
/// (RFC 6298) has followed. Unless cross traffic was there the last time, the path may also have been faster until now, and the window
/// remembers that for a while.
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// For how long a path with cross traffic is not held, the first time; then each time twice as long, for what it loses while it is held
/// is not soon won back.
const FIRST_RELEASE: Duration = Duration::from_secs(10);
/// At the most: after the end of the cross traffic the queue is all ours for as long.
const MAX_RELEASE: Duration = Duration::from_secs(40);

/// What is known of a path's queue.
#[derive(Debug)]
pub(super) struct CrossTraffic {
    standing: Option<StandingQueue>,
    /// There was cross traffic when the path was held the last time.
    recurring: bool,
    /// For how long the path is not to be held next.
    release: Duration,
    /// The round trip that was left when a queue of ours had gone: where it is longer than the base_rtt, the path has changed.
    drained_rtt: Duration,
}

/// A queue that is there.
#[derive(Debug, Clone, Copy)]
struct StandingQueue {
    since: Instant,
    /// When the path was last held and acknowledged something, and how much that was in all.
    last_evidence: Instant,
    acked_bytes: u64,
    /// The max_rtt round trip since.
    max_rtt: Duration,
}

impl CrossTraffic {
    pub(super) fn new() -> Self {
        Self { standing: None, recurring: false, release: FIRST_RELEASE, drained_rtt: Duration::ZERO }
    }

    /// Whether the path is held with a queue on it that may be cross traffic's. Meanwhile, what waits here says nothing of the rate to come.
    pub(super) fn is_suspected(&self) -> bool {
        self.standing.is_some()
    }

    /// Looks at a path each time that it was found out whether it is held: `limit`, to what. When the queue on it persists whether we hold
    /// back or not: for how long it is not to be held.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        path: &SendState,
        limit: Option<InFlightLimit>,
    ) -> Option<Duration> {
        self.drained_rtt = self.drained_rtt.min(path.rtt);
        // Data in flight on a held slow path is a queue of our own, at times twice the intended
        // length.
        let own = limit.map_or(Duration::ZERO, |limit| limit.queue_delay * 2);
        let base_rtt = path.base_rtt()?.max(self.drained_rtt) + own;
        let beyond = |rtt: Duration| rtt.saturating_sub(base_rtt);
        if beyond(path.rtt) < MIN_QUEUE_DELAY || !congestion::has_queue(path, base_rtt) {
            (self.standing, self.recurring, self.release) = (None, false, FIRST_RELEASE);
            return None;
        }
        if limit.is_some() {
            let new = StandingQueue {
                since: now,
                last_evidence: now,
                acked_bytes: path.acked_bytes,
                max_rtt: path.rtt,
            };
            let standing = self.standing.get_or_insert(new);
            if path.acked_bytes > standing.acked_bytes {
                (standing.last_evidence, standing.acked_bytes) = (now, path.acked_bytes);
            }
        }
        let standing = self.standing.as_mut()?;
        // Neither who is not held back nor who hears nothing shows anything by a queue.
        if now.saturating_duration_since(standing.last_evidence) > path.rtt * 2 {
            self.standing = None;
            return None;
        }
        standing.max_rtt = standing.max_rtt.max(path.rtt);
        let max_rtt = standing.max_rtt;
        let memory = if self.recurring { Duration::ZERO } else { limit?.rate_memory };
        if now.saturating_duration_since(standing.since) < DRAIN_TIME + memory + max_rtt * 2 {
            return None;
        }
        let (persists, release) = (beyond(path.rtt) > beyond(max_rtt) / 3, self.release);
        *self = if persists {
            Self { recurring: true, release: (release * 2).min(MAX_RELEASE), ..Self::new() }
        } else {
            Self { drained_rtt: path.rtt.saturating_sub(own), ..Self::new() }
        };
        persists.then_some(release)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp_info::Bbr;

    const MS: Duration = Duration::from_millis(1);

    /// An ordinary path's.
    const LIMIT: InFlightLimit =
        InFlightLimit { queue_delay: Duration::from_millis(2), rate_memory: Duration::from_secs(1) };

    /// Asks every 20 ms for so long, with the round trip of each moment: when is it cross traffic, and for how long?
    fn detect(
        cross: &mut CrossTraffic,
        millis: u64,
        rtt: impl Fn(u64) -> u64,
        limit: impl Fn(u64) -> Option<InFlightLimit>,
        acked_bytes: impl Fn(u64) -> u64,
    ) -> Option<(u64, u64)> {
        let began = Instant::now();
        let bbr = Some(Bbr { min_rtt: Some(20 * MS), ..Bbr::default() });
        (0..millis).step_by(20).find_map(|at| {
            let rtt = Duration::from_millis(rtt(at));
            let path =
                SendState { rtt, rttvar: 2 * MS, acked_bytes: acked_bytes(at), bbr, ..SendState::default() };
            let release = cross.observe(began + Duration::from_millis(at), &path, limit(at))?;
            Some((at, release.as_secs()))
        })
    }

    /// Of a path that is held all the time, and acknowledges.
    fn detect_limited(cross: &mut CrossTraffic, millis: u64, rtt: impl Fn(u64) -> u64) -> Option<(u64, u64)> {
        detect(cross, millis, rtt, |_| Some(LIMIT), |at| at)
    }

    #[test]
    fn a_queue_that_stays_while_we_hold_back_is_cross_traffic_s_each_time_for_longer() {
        let mut cross = CrossTraffic::new();
        for expected in [(2000, 10), (1000, 20), (1000, 40), (1000, 40)] {
            assert_eq!(detect_limited(&mut cross, 5000, |_| 250), Some(expected));
            assert!(!cross.is_suspected());
            assert_eq!(detect_limited(&mut cross, 100, |_| 250), None);
            assert!(cross.is_suspected());
            cross.standing = None;
        }
        // Until it was ours.
        assert_eq!(detect_limited(&mut cross, 5000, |at| if at < 600 { 250 } else { 21 }), None);
        assert!(!cross.is_suspected());
        // One that comes in the middle of a transfer, and grows.
        let found = detect_limited(&mut cross, 5000, |at| 22 + (at / 10).min(200));
        assert!(found.is_some_and(|(at, seconds)| at < 2500 && seconds == 10), "{found:?}");
    }

    #[test]
    fn a_queue_that_goes_when_we_hold_back_is_ours() {
        for begun in [60, 250, 1000] {
            let drained = |at: u64| 24 + begun - begun.min(at);
            assert_eq!(detect_limited(&mut CrossTraffic::new(), 20_000, drained), None, "{begun}");
        }
        // A path that became slower is held to the rate that it had, for as long as that is remembered.
        let slower = |at: u64| if at < 1300 { 200 } else { 24 };
        assert_eq!(detect_limited(&mut CrossTraffic::new(), 20_000, slower), None);
    }

    #[test]
    fn what_a_slow_path_has_on_its_way_while_it_is_held_is_no_cross_traffic() {
        // 1 Mbit/s: 80 to 110 ms for as long as it is held, after 240 when it became slow.
        let slow = InFlightLimit { queue_delay: 45 * MS, ..LIMIT };
        let held = |at: u64| if at < 1500 { 240 } else { 80 + at % 31 };
        assert_eq!(detect(&mut CrossTraffic::new(), 20_000, held, |_| Some(slow), |at| at), None);
        let drained = |at: u64| if at < 1400 { 250 } else { 150 };
        assert_eq!(detect(&mut CrossTraffic::new(), 20_000, drained, |_| Some(slow), |at| at), None);
        assert!(detect(&mut CrossTraffic::new(), 20_000, |_| 250, |_| Some(slow), |at| at).is_some());
    }

    #[test]
    fn a_path_that_became_longer_is_no_queue_once_ours_has_gone() {
        let mut cross = CrossTraffic::new();
        let longer = |at: u64| if at < 500 { 300 } else { 60 };
        assert_eq!(detect_limited(&mut cross, 20_000, longer), None);
        assert!(detect_limited(&mut cross, 20_000, |_| 250).is_some(), "and then there may be one");
        // Nor is it longer for ever.
        let mut cross = CrossTraffic::new();
        assert_eq!(detect_limited(&mut cross, 20_000, longer), None);
        assert_eq!(detect_limited(&mut cross, 1000, |_| 22), None);
        assert!(detect_limited(&mut cross, 20_000, |_| 75).is_some());
    }

    #[test]
    fn who_is_not_held_back_or_hears_nothing_shows_nothing_by_a_queue_nor_does_what_varies_by_little() {
        let nothing = |rtt: u64, held: fn(u64) -> bool, acked_bytes: fn(u64) -> u64| {
            let limit = |at| held(at).then_some(LIMIT);
            assert_eq!(detect(&mut CrossTraffic::new(), 20_000, |_| rtt, limit, acked_bytes), None);
        };
        nothing(250, |_| false, |at| at);
        nothing(250, |at| at % 2000 == 0, |at| at);
        nothing(250, |_| true, |_| 0);
        nothing(38, |_| true, |at| at);
    }
}
