//! Counts handovers and connection failures, and logs each handover and each new failure.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use prometheus::Histogram;

use super::cause::{FAILURE_KINDS, Failure, Fault, HandoverCause};
use super::machine::Handover;
use crate::declared_metrics;
use crate::status::Problem;
use crate::uplinks::policy::Uplink;

/// The upper bounds, in seconds, of the histogram of blackouts (interruptions by a handover). The
/// bounds range from make-before-break (0) and one round trip to interruptions of minutes.
const BLACKOUT_BUCKETS: [f64; 10] = [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0, 600.0];

/// The number of past handovers to remember: those of a busy day, in a few kilobytes.
const MAX_RECENT_HANDOVERS: usize = 32;

/// Counters of handovers and failures, and the last handovers.
#[derive(Debug, Clone)]
pub(crate) struct HandoverHistory {
    /// The last handovers, each with the time at which it was completed; the newest is last.
    pub(crate) recent: VecDeque<(Handover, Instant)>,
    /// The number of handovers for each cause.
    pub(crate) handovers: BTreeMap<&'static str, u64>,
    /// The histogram of the times for which handovers interrupted the traffic.
    pub(crate) blackouts: Histogram,
    /// The number of connection attempts.
    pub(crate) attempts: u64,
    /// The number of failed connection attempts for each [`Failure::kind`].
    pub(crate) failures: BTreeMap<&'static str, u64>,
    /// The last connection failure on each uplink, kept until the relay is reached over it.
    problems: BTreeMap<String, Failure>,
}

impl PartialEq for HandoverHistory {
    /// Compares everything but the histogram: clones share it, and a handover that it counts is
    /// also counted by its cause.
    fn eq(&self, other: &Self) -> bool {
        let Self { recent, handovers, blackouts: _, attempts, failures, problems } = self;
        *recent == other.recent
            && *handovers == other.handovers
            && *attempts == other.attempts
            && *failures == other.failures
            && *problems == other.problems
    }
}

impl HandoverHistory {
    /// Creates a history with every counter at zero, so that Prometheus sees each series from the
    /// start.
    pub(crate) fn new() -> Self {
        let options = declared_metrics::HANDOVER_BLACKOUT.histogram(&BLACKOUT_BUCKETS);
        Self {
            recent: VecDeque::new(),
            handovers: HandoverCause::ALL.iter().map(|cause| (cause.word(), 0)).collect(),
            blackouts: Histogram::with_opts(options).expect("the name is well formed and the bounds ascend"),
            attempts: 0,
            failures: FAILURE_KINDS.iter().map(|kind| (*kind, 0)).collect(),
            problems: BTreeMap::new(),
        }
    }

    /// Counts, logs and remembers a completed handover.
    pub(crate) fn record_handover(&mut self, now: Instant, handover: Handover) {
        *self.handovers.entry(handover.cause.word()).or_default() += 1;
        self.blackouts.observe(handover.blackout.as_secs_f64());
        tracing::info!(
            cause = handover.cause.word(),
            from = handover.from,
            to = handover.to,
            blackout_ms = whole_ms(handover.blackout),
            replayed_records = handover.replayed,
            dropped_packets = handover.dropped,
            "handover complete"
        );
        if self.recent.len() == MAX_RECENT_HANDOVERS {
            self.recent.pop_front();
        }
        self.recent.push_back((handover, now));
    }

    /// Returns the number of handovers.
    pub(crate) fn handover_count(&self) -> u64 {
        self.handovers.values().sum()
    }

    /// Counts a failed connection attempt. Logs a warning unless attempts failed for the same
    /// reason before.
    pub(crate) fn record_failure(&mut self, uplink: &str, failure: Failure) {
        *self.failures.entry(failure.kind).or_default() += 1;
        if let Some(known) = self.known_failure(uplink, &failure).cloned() {
            tracing::debug!(
                uplink,
                cause = failure.problem.cause,
                "connection attempt failed again for the same reason"
            );
            self.problems.insert(uplink.to_owned(), known);
            return;
        }
        let Problem { cause, next_step } = &failure.problem;
        if failure.fault == Fault::Identity {
            tracing::warn!(
                uplink,
                cause,
                next_step,
                "relay reached over this uplink, but no session is possible"
            );
        } else {
            tracing::warn!(uplink, cause, next_step, "relay not reachable over this uplink");
        }
        self.problems.insert(uplink.to_owned(), failure);
    }

    /// Returns the recorded failure with the same reason, if there is one: on this uplink, or on
    /// any uplink if a key is refused.
    fn known_failure(&self, uplink: &str, failure: &Failure) -> Option<&Failure> {
        // The relay refuses a revoked key as an unknown one from then on. The first answer was the
        // exact one.
        let same = |known: &Failure| {
            known.kind == failure.kind || (known.kind == "revoked" && failure.kind == "unauthorised")
        };
        let here = self.problems.get(uplink).filter(|known| same(known));
        let anywhere = || self.problems.values().find(|known| same(known) && known.fault == Fault::Identity);
        here.or_else(anywhere)
    }

    /// Clears the recorded failure of an uplink over which the relay was reached, and the failures
    /// on other uplinks for which the relay or a key was at fault.
    pub(crate) fn record_success(&mut self, uplink: &str) {
        self.problems.retain(|name, failure| name != uplink && failure.fault == Fault::Uplink);
    }

    /// Forgets the failures on uplinks that are gone, because tethered devices appear under ever
    /// new names.
    pub(crate) fn forget_absent(&mut self, uplinks: &[Uplink]) {
        self.problems.retain(|name, _| uplinks.iter().any(|uplink| uplink.name == *name));
    }

    /// Returns the problem of the last failure on an uplink, and whether only a person can resolve
    /// it.
    pub(crate) fn problem(&self, uplink: &str) -> Option<(&Problem, bool)> {
        let Failure { fault, problem, .. } = self.problems.get(uplink)?;
        Some((problem, *fault == Fault::Identity))
    }
}

/// Returns a duration in milliseconds, rounded up: 0 stays for no time at all.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_millisecond_counts_as_one() {
        for (nanos, ms) in [(0, 0), (1, 1), (600_000, 1), (1_000_000, 1), (25_000_001, 26)] {
            assert_eq!(whole_ms(Duration::from_nanos(nanos)), ms);
        }
        // The status carries seconds.
        assert!((1..5000).all(|ms| {
            let seconds = Duration::from_millis(ms).as_secs_f64();
            whole_ms(Duration::try_from_secs_f64(seconds).unwrap()) == ms
        }));
    }

    fn handover(blackout: u64) -> Handover {
        Handover {
            cause: HandoverCause::CarrierLost,
            from: "eth0".into(),
            to: "wlan0".into(),
            blackout: Duration::from_millis(blackout),
            replayed: 3,
            dropped: 0,
        }
    }

    #[test]
    fn handovers_are_counted_by_cause_and_blackout() {
        let mut history = HandoverHistory::new();
        history.record_handover(Instant::now(), handover(20));
        history.record_handover(Instant::now(), handover(5000));
        assert_eq!(history.handover_count(), 2);
        assert_eq!(history.handovers["carrier_lost"], 2);
        assert_eq!(history.blackouts.get_sample_count(), 2);
        assert!((history.blackouts.get_sample_sum() - 5.02).abs() < 1e-9);
        assert_eq!(history.recent.back().unwrap().0.blackout, Duration::from_secs(5));
    }

    #[test]
    fn all_handovers_are_counted_and_the_newest_remembered() {
        let mut history = HandoverHistory::new();
        for blackout in 0..100 {
            history.record_handover(Instant::now(), handover(blackout));
        }
        assert_eq!(history.handover_count(), 100);
        let remembered: Vec<_> = history.recent.iter().map(|(it, _)| it.blackout.as_millis()).collect();
        assert_eq!(remembered, (68..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_revoked_client_is_called_revoked_even_when_it_is_refused_afterwards() {
        let failure = |kind: &'static str| Failure {
            fault: Fault::Identity,
            kind,
            problem: Problem { cause: kind.into(), next_step: String::new() },
        };
        let mut history = HandoverHistory::new();
        history.record_failure("eth0", failure("revoked"));
        history.record_failure("eth0", failure("unauthorised"));
        assert_eq!(history.problem("eth0").unwrap().0.cause, "revoked");
        assert!(history.problem("eth0").unwrap().1);
        history.record_failure("wlan0", failure("unauthorised"));
        assert_eq!(history.problem("wlan0").unwrap().0.cause, "revoked");
        assert_eq!(history.failures["unauthorised"], 2);
        history.record_success("wlan0");
        assert!(history.problem("eth0").is_none());
        history.record_failure("eth0", failure("unauthorised"));
        assert_eq!(history.problem("eth0").unwrap().0.cause, "unauthorised");
    }
}
