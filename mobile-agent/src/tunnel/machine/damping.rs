//! Decides when a failing uplink is tried again, and how long it ranks behind the other uplinks.

use std::time::{Duration, Instant};

use super::super::cause::Fault;

/// The pause before an uplink is tried again after its first failure, doubled with each further
/// one. The first pause is short, because a relay that restarts is back within tens of
/// milliseconds.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(50);
/// The longest pause before an uplink is tried again, short because mobile processes wait
/// meanwhile.
pub(super) const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The longest pause before an uplink is tried again when a key is refused, because a person has to
/// act first, and then expects a quick connection.
pub(super) const MAX_RETRY_DELAY_IDENTITY: Duration = Duration::from_secs(5);
/// How long an uplink ranks behind the others after its first failure, doubled with each further
/// one, so that a flapping uplink is damped.
const AVOID_TIME: Duration = Duration::from_secs(1);
/// How long an uplink ranks behind the others after its link came back, doubled with each loss of
/// the link. The contacts of a bouncing plug settle within this time. Doing without one uplink is
/// no outage, but each return to it is a handover.
const SETTLE_TIME: Duration = Duration::from_millis(250);
/// The limit to which [`AVOID_TIME`] and [`SETTLE_TIME`] are doubled. The limit is needed because
/// nothing tells the agent that an uplink has recovered.
const MAX_AVOID_TIME: Duration = Duration::from_secs(60);
/// How long a path has to be healthy to clear the failures of its uplink, doubled with each
/// failure.
const MIN_HEALTHY_LIFETIME: Duration = Duration::from_secs(10);
/// The limit to which [`MIN_HEALTHY_LIFETIME`] is doubled: ten healthy minutes clear any number of
/// failures.
const MAX_HEALTHY_LIFETIME: Duration = Duration::from_secs(600);

/// The failures or link losses of one uplink, and when the uplink may be tried again.
#[derive(Debug, Default)]
pub(super) struct Damping {
    failures: u32,
    retry_at: Option<Instant>,
    background_retry_at: Option<Instant>,
    avoided: bool,
}

impl Damping {
    /// Records a failed connection attempt or a lost path of the uplink; `jitter` is a random
    /// number in 0..1.
    pub(super) fn record_failure(&mut self, now: Instant, fault: Fault, jitter: f64) {
        let longest = if fault == Fault::Identity { MAX_RETRY_DELAY_IDENTITY } else { MAX_RETRY_DELAY };
        // Vary the pause by a quarter in either direction.
        let pause = doubled(RETRY_DELAY, self.failures, longest).mul_f64(0.75 + jitter / 2.0);
        self.retry_at = Some(now + pause);
        self.count(now, AVOID_TIME);
        self.avoided = fault == Fault::Uplink;
    }

    /// Records that the relay stopped answering on a path of the uplink. The uplink ranks behind
    /// the others for a while, but may be tried at once, because it may be the only one.
    pub(super) fn record_silence(&mut self, now: Instant) {
        self.record_failure(now, Fault::Uplink, 0.0);
        self.retry_at = None;
    }

    /// Records that the uplink lost its link. Once the link is back, the uplink ranks behind the
    /// others for a while.
    pub(super) fn record_flap(&mut self, now: Instant) {
        self.count(now, SETTLE_TIME);
        self.avoided = true;
    }

    fn count(&mut self, now: Instant, pause: Duration) {
        self.background_retry_at = Some(now + doubled(pause, self.failures, MAX_AVOID_TIME));
        self.failures = self.failures.saturating_add(1);
    }

    /// Returns whether a path that was healthy for `life` clears the earlier failures of its
    /// uplink.
    pub(super) fn is_reset_by(&self, life: Duration) -> bool {
        life >= doubled(MIN_HEALTHY_LIFETIME, self.failures, MAX_HEALTHY_LIFETIME)
    }

    /// Returns when the uplink may be tried again while no path works; `None` means at once.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Returns when the uplink may be tried again while another path works; `None` means at once.
    pub(super) fn background_retry_at(&self) -> Option<Instant> {
        self.background_retry_at
    }

    /// Returns until when the uplink ranks behind the others; `None` if it does not.
    pub(super) fn avoided_until(&self) -> Option<Instant> {
        self.background_retry_at.filter(|_| self.avoided)
    }

    /// Returns whether the last failure is too old to matter.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.background_retry_at.is_none_or(|until| now >= until + MAX_HEALTHY_LIFETIME)
    }

    /// Returns a time limit for the next attempt: `base` doubled for each failure so far, up to
    /// `most`.
    pub(super) fn timeout(&self, base: Duration, most: Duration) -> Duration {
        doubled(base, self.failures, most)
    }
}

/// Returns `base` doubled `times` times, up to `most`.
fn doubled(base: Duration, times: u32, most: Duration) -> Duration {
    // Beyond 2^16, every base here exceeds its limit.
    base.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flapping_uplink_needs_a_longer_healthy_lifetime_each_time() {
        let now = Instant::now();
        let mut damping = Damping::default();
        let mut needed = Vec::new();
        for _ in 0..8 {
            let life = (1..).find(|s| damping.is_reset_by(Duration::from_secs(*s)));
            needed.push(life.unwrap());
            damping.record_silence(now);
        }
        assert_eq!(needed, [10, 20, 40, 80, 160, 320, 600, 600]);
    }

    #[test]
    fn only_a_fault_of_the_uplink_ranks_it_behind_the_others() {
        let now = Instant::now();
        let mut damping = Damping::default();
        damping.record_failure(now, Fault::Relay, 0.5);
        assert_eq!(damping.avoided_until(), None);
        assert_eq!(damping.retry_at(), Some(now + RETRY_DELAY));
        assert_eq!(damping.background_retry_at(), Some(now + AVOID_TIME));
        damping.record_failure(now, Fault::Uplink, 0.5);
        assert_eq!(damping.avoided_until(), Some(now + 2 * AVOID_TIME));
        damping.record_silence(now);
        assert_eq!(damping.retry_at(), None);
        assert_eq!(damping.avoided_until(), Some(now + 4 * AVOID_TIME));
    }
}
