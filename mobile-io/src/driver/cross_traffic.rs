//! Decides whether a queue on a limited path ([`SendLimit`](super::send_limit::SendLimit)) is the
//! path's own or that of cross traffic.
//!
//! The path's own queue drains while the limit holds data back. A queue that persists belongs to
//! others. Holding back more would only leave the bottleneck to them, because the share of each
//! sender in a FIFO is what it has in the FIFO.

use std::time::{Duration, Instant};

use super::congestion;
use super::send_limit::InFlightLimit;
use crate::tcp_info::SendState;

/// The queueing delay below which a queue is ignored: it costs a limited path little and may be
/// ordinary variation of the round trip.
const MIN_QUEUE_DELAY: Duration = Duration::from_millis(20);

/// The time, besides two round trips, after which the path's own queue has drained: the data in
/// flight has arrived, and the kernel's smoothed round trip (RFC 6298) has followed.
///
/// Unless cross traffic was detected the last time, the path may also have been faster recently,
/// which the send limit remembers for a while (`rate_memory`).
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// The time for which a path with cross traffic is not limited the first time.
///
/// The time doubles with each detection in a row, because a path does not quickly regain the share
/// that it loses while it is limited.
const FIRST_RELEASE: Duration = Duration::from_secs(10);
/// The maximum time for which the path is not limited. After the cross traffic ends, the path's own
/// queue may stand for as long.
const MAX_RELEASE: Duration = Duration::from_secs(40);

/// Watches the queue of one path for cross traffic.
#[derive(Debug)]
pub(super) struct CrossTraffic {
    standing: Option<StandingQueue>,
    /// Whether the previous limited phase ended with the detection of cross traffic.
    recurring: bool,
    /// The time for which the path is not limited after the next detection.
    release: Duration,
    /// The round trip that remained after the path's own queue had drained. If it exceeds the
    /// minimum round trip, the path itself has become longer.
    drained_rtt: Duration,
}

/// A queue that has not drained since it was first observed.
#[derive(Debug, Clone, Copy)]
struct StandingQueue {
    since: Instant,
    /// The time, and the number of acknowledged bytes, of the last observation in which the path
    /// was limited and data was acknowledged.
    last_evidence: Instant,
    acked_bytes: u64,
    /// The longest round trip since the queue was first observed.
    max_rtt: Duration,
}

impl CrossTraffic {
    pub(super) fn new() -> Self {
        Self { standing: None, recurring: false, release: FIRST_RELEASE, drained_rtt: Duration::ZERO }
    }

    /// Returns whether the path is limited and has a queue that may be cross traffic's.
    ///
    /// During that time the queue in this process says nothing about the future rate.
    pub(super) fn is_suspected(&self) -> bool {
        self.standing.is_some()
    }

    /// Evaluates the path after each update of its send limit; `limit` is `None` if the path is not
    /// limited.
    ///
    /// Returns how long to leave the path unlimited when cross traffic is detected, that is, when
    /// the queue persists although the limit holds data back.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        path: &SendState,
        limit: Option<InFlightLimit>,
    ) -> Option<Duration> {
        self.drained_rtt = self.drained_rtt.min(path.rtt);
        // Data in flight on a limited slow path is a queue of its own, at times twice the intended
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
        // A queue is evidence only while the limit holds data back and acknowledgements arrive.
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

    /// The limit of an ordinary path.
    const LIMIT: InFlightLimit =
        InFlightLimit { queue_delay: Duration::from_millis(2), rate_memory: Duration::from_secs(1) };

    /// Observes a path every 20 ms for `millis`; returns when cross traffic was detected, in ms,
    /// and for how many seconds the path is released.
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

    /// Calls `detect` for a path that is always limited and acknowledges.
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
        // Detection starts afresh after a queue that was the path's own.
        assert_eq!(detect_limited(&mut cross, 5000, |at| if at < 600 { 250 } else { 21 }), None);
        assert!(!cross.is_suspected());
        // Cross traffic may start in the middle of a transfer and grow.
        let found = detect_limited(&mut cross, 5000, |at| 22 + (at / 10).min(200));
        assert!(found.is_some_and(|(at, seconds)| at < 2500 && seconds == 10), "{found:?}");
    }

    #[test]
    fn a_queue_that_goes_when_we_hold_back_is_ours() {
        for begun in [60, 250, 1000] {
            let drained = |at: u64| 24 + begun - begun.min(at);
            assert_eq!(detect_limited(&mut CrossTraffic::new(), 20_000, drained), None, "{begun}");
        }
        // A path that becomes slower is limited to its earlier rate as long as that is remembered.
        let slower = |at: u64| if at < 1300 { 200 } else { 24 };
        assert_eq!(detect_limited(&mut CrossTraffic::new(), 20_000, slower), None);
    }

    #[test]
    fn what_a_slow_path_has_on_its_way_while_it_is_held_is_no_cross_traffic() {
        // 1 Mbit/s: 80 to 110 ms while it is limited, after 240 ms when it became slow.
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
        // A shorter round trip ends the assumption that the path is longer.
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
