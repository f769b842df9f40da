//! Passes the relay's configuration on to the rest of the agent at a limited rate.
//!
//! Each change moves addresses, routes, rules and files of this host, and netlink announces it to
//! other programs. An honest relay changes its configuration when its operator does. Of a relay
//! that changes it without end, the agent follows only the latest one.

use std::time::{Duration, Instant};

use mobile_proto::PushConfig;
use tokio::sync::watch;

/// The number of changes that may follow each other at once.
const BURST: u32 = 8;
/// The time between two changes after those.
const INTERVAL: Duration = Duration::from_secs(10);

/// Passes on the relay's configuration.
#[derive(Debug)]
pub(super) struct Assignments {
    told: watch::Sender<Option<PushConfig>>,
    /// The latest configuration, if it has to wait.
    waiting: Option<PushConfig>,
    /// The time until which the changes so far are accounted for, each with [`INTERVAL`].
    paid: Option<Instant>,
    deferred: u64,
}

impl Assignments {
    /// Creates a limiter that publishes to `publish`.
    pub(super) fn new(told: watch::Sender<Option<PushConfig>>) -> Self {
        Self { told, waiting: None, paid: None, deferred: 0 }
    }

    /// Takes a configuration that the relay pushed.
    pub(super) fn offer(&mut self, now: Instant, config: PushConfig) {
        if self.told.borrow().as_ref() == Some(&config) {
            self.waiting = None;
        } else if self.may_change(now) {
            self.pass_on(now, config);
        } else {
            self.deferred += 1;
            if self.waiting.replace(config).is_none() {
                tracing::warn!(
                    wait_s = self.wait(now).as_secs(),
                    "the relay changes its configuration too often: the latest one is used later"
                );
            }
        }
    }

    /// Returns when the waiting configuration may be used.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.as_ref()?;
        self.paid.and_then(|paid| paid.checked_sub(INTERVAL * (BURST - 1)))
    }

    /// Uses the waiting configuration, if its time has come.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.may_change(now)
            && let Some(config) = self.waiting.take()
        {
            self.pass_on(now, config);
        }
    }

    /// Returns the number of configurations that were deferred or superseded while they waited.
    pub(super) fn deferred(&self) -> u64 {
        self.deferred
    }

    fn pass_on(&mut self, now: Instant, config: PushConfig) {
        self.waiting = None;
        self.paid = Some(self.paid.map_or(now, |paid| paid.max(now)) + INTERVAL);
        self.told.send_replace(Some(config));
    }

    fn may_change(&self, now: Instant) -> bool {
        self.wait(now).is_zero()
    }

    fn wait(&self, now: Instant) -> Duration {
        let owed = self.paid.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now));
        owed.saturating_sub(INTERVAL * (BURST - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mtu: u16) -> PushConfig {
        PushConfig { ipv4: None, ipv6: None, mtu, dns: Vec::new() }
    }

    #[test]
    fn a_configuration_that_changes_without_end_is_used_now_and_then() {
        let (told, mut heard) = watch::channel(None);
        let (mut assignments, start) = (Assignments::new(told), Instant::now());
        let mut changes = 0;
        for ms in 0..100_000 {
            let now = start + Duration::from_millis(ms);
            assignments.offer(now, config(1300 + u16::try_from(ms % 2).unwrap()));
            if assignments.due().is_some_and(|due| due <= now) {
                assignments.tick(now);
            }
            if heard.has_changed().unwrap() {
                changes += 1;
                heard.borrow_and_update();
            }
        }
        assert!((8..=18).contains(&changes), "{changes}");
        assert!(assignments.deferred() > 40_000);
    }

    #[test]
    fn the_last_configuration_is_used_in_the_end() {
        let (told, heard) = watch::channel(None);
        let (mut assignments, now) = (Assignments::new(told), Instant::now());
        for mtu in 1300..1320 {
            assignments.offer(now, config(mtu));
        }
        assert_eq!(*heard.borrow(), Some(config(1307)));
        let due = assignments.due().unwrap();
        assert_eq!(due, now + INTERVAL);
        assignments.tick(due - Duration::from_millis(1));
        assert_eq!(*heard.borrow(), Some(config(1307)));
        assignments.tick(due);
        assert_eq!((heard.borrow().clone(), assignments.due()), (Some(config(1319)), None));
        assignments.offer(due, config(1318));
        assignments.offer(due, config(1319));
        assert_eq!(assignments.due(), None, "what is in force does not wait");
        assert_eq!(assignments.deferred(), 13);
    }
}
