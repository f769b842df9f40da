//! Decides whether the queue at the bottleneck of a path holds the path's own data or cross
//! traffic, while a [`SendLimit`](super::send_limit::SendLimit) limits the path's bytes in flight.
//!
//! The path's own queue drains while the limit holds data back, so a queue that persists is cross
//! traffic's. Holding back more would only yield the bottleneck to the cross traffic, because each
//! sender's share of the rate is its share of the FIFO.

use std::time::{Duration, Instant};

use super::congestion;
use super::sample::TcpSample;
use super::send_limit::InFlightLimit;

/// The queueing delay below which a queue is ignored, because a short queue costs a limited path
/// little and may be ordinary variation of the round trip.
const MIN_QUEUE_DELAY: Duration = Duration::from_millis(20);

/// The time, in addition to two round trips, within which the path's own queue drains while the
/// path is limited: the data in flight has arrived, and the kernel's smoothed round trip (RFC 6298)
/// has followed.
///
/// Except right after an earlier detection of cross traffic, the detection also waits for the
/// `rate_memory` of the send limit, because a limit that remembers a higher rate of the path does
/// not let the queue drain.
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// The time for which a path is left unlimited after the first detection of cross traffic.
///
/// Each further detection in a row doubles the time, because a path does not quickly regain the
/// share of the bottleneck that it loses while it is limited.
const FIRST_RELEASE: Duration = Duration::from_secs(10);
/// The maximum time for which a path is left unlimited after a detection, because the path's own
/// queue may persist for as long after the cross traffic has ended.
const MAX_RELEASE: Duration = Duration::from_secs(40);

/// Watches the queue at the bottleneck of one path for cross traffic.
#[derive(Debug)]
pub(super) struct CrossTraffic {
    standing: Option<StandingQueue>,
    /// Whether the previous period in which the path was limited ended with the detection of cross
    /// traffic.
    recurring: bool,
    /// The time for which the path is left unlimited after the next detection.
    release: Duration,
    /// The round trip that remained after the path's own queue had drained. A value above the
    /// minimum round trip means that the path itself has become longer.
    drained_rtt: Duration,
}

/// A queue at the bottleneck that has not drained since it was first observed.
#[derive(Debug, Clone, Copy)]
struct StandingQueue {
    since: Instant,
    /// The time, and the total of acknowledged bytes, of the last observation in which the path was
    /// limited and more data had been acknowledged than at the previous one.
    last_evidence: Instant,
    acked_bytes: u64,
    /// The longest round trip since the queue was first observed.
    max_rtt: Duration,
}

impl CrossTraffic {
    pub(super) fn new() -> Self {
        Self { standing: None, recurring: false, release: FIRST_RELEASE, drained_rtt: Duration::ZERO }
    }

    /// Returns whether a limited path has a queue at the bottleneck that may be cross traffic's.
    ///
    /// If so, the delay in the session's queue says nothing about the future rate of the path,
    /// because the path may soon be left unlimited.
    pub(super) fn is_suspected(&self) -> bool {
        self.standing.is_some()
    }

    /// Evaluates the path's statistics after each update of its send limit; `limit` is `None` if
    /// the path is not limited.
    ///
    /// Returns how long to leave the path unlimited if cross traffic is detected, that is, if the
    /// queue persists although the limit holds data back; otherwise `None`.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        path: &TcpSample,
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
    use crate::rate_control::sample::Bbr;

    const MS: Duration = Duration::from_millis(1);

    /// The limit on the bytes in flight of an ordinary path.
    const LIMIT: InFlightLimit =
        InFlightLimit { queue_delay: Duration::from_millis(2), rate_memory: Duration::from_secs(1) };

    /// Observes a path every 20 ms for `millis`; returns after how many milliseconds cross traffic
    /// was detected, and for how many seconds the path is then left unlimited. Returns `None` if no
    /// cross traffic was detected.
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
                TcpSample { rtt, rttvar: 2 * MS, acked_bytes: acked_bytes(at), bbr, ..TcpSample::default() };
            let release = cross.observe(began + Duration::from_millis(at), &path, limit(at))?;
            Some((at, release.as_secs()))
        })
    }

    /// Calls `detect` for a path that is always limited and whose data is always acknowledged.
    fn detect_limited(cross: &mut CrossTraffic, millis: u64, rtt: impl Fn(u64) -> u64) -> Option<(u64, u64)> {
        detect(cross, millis, rtt, |_| Some(LIMIT), |at| at)
    }

    #[test]
    fn a_persistent_queue_is_cross_traffic_and_the_release_doubles() {
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
    fn a_queue_that_drains_under_the_limit_is_not_cross_traffic() {
        for begun in [60, 250, 1000] {
            let drained = |at: u64| 24 + begun - begun.min(at);
            assert_eq!(detect_limited(&mut CrossTraffic::new(), 20_000, drained), None, "{begun}");
        }
        // A path that becomes slower is limited to its earlier rate as long as that is remembered.
        let slower = |at: u64| if at < 1300 { 200 } else { 24 };
        assert_eq!(detect_limited(&mut CrossTraffic::new(), 20_000, slower), None);
    }

    #[test]
    fn the_allowed_data_in_flight_on_a_slow_path_is_not_cross_traffic() {
        // 1 Mbit/s: 80 to 110 ms while it is limited, after 240 ms when it became slow.
        let slow = InFlightLimit { queue_delay: 45 * MS, ..LIMIT };
        let held = |at: u64| if at < 1500 { 240 } else { 80 + at % 31 };
        assert_eq!(detect(&mut CrossTraffic::new(), 20_000, held, |_| Some(slow), |at| at), None);
        let drained = |at: u64| if at < 1400 { 250 } else { 150 };
        assert_eq!(detect(&mut CrossTraffic::new(), 20_000, drained, |_| Some(slow), |at| at), None);
        assert!(detect(&mut CrossTraffic::new(), 20_000, |_| 250, |_| Some(slow), |at| at).is_some());
    }

    #[test]
    fn a_longer_path_is_not_a_queue_once_its_own_queue_has_drained() {
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
    fn without_a_limit_acknowledgements_or_much_delay_nothing_is_detected() {
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
