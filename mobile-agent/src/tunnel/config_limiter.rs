//! Limits the rate at which configurations that the relay pushes take effect.
//!
//! Each new configuration changes addresses, routes, rules and files of this host, which netlink
//! announces to other programs. An honest relay changes its configuration when its operator does.
//! If a relay changes it without end, the agent uses only the latest configuration once per
//! [`INTERVAL`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use mobile_proto::PushConfig;
use tokio::sync::watch;

/// The number of changed configurations that may take effect one after the other without delay.
const BURST: u32 = 8;
/// The minimum time between the publication of two changed configurations once [`BURST`] is used
/// up.
const INTERVAL: Duration = Duration::from_secs(10);

/// A token-bucket limiter that publishes the relay's configurations to the rest of the agent.
#[derive(Debug)]
pub(super) struct ConfigLimiter {
    publish: watch::Sender<Option<Arc<PushConfig>>>,
    /// The relay's latest configuration, while it is deferred.
    waiting: Option<PushConfig>,
    /// The time at which the token bucket is full again. Each published configuration delays this
    /// time by one [`INTERVAL`].
    charged_until: Option<Instant>,
    deferred: u64,
}

impl ConfigLimiter {
    /// Creates a limiter that sends configurations to `publish`.
    pub(super) fn new(publish: watch::Sender<Option<Arc<PushConfig>>>) -> Self {
        Self { publish, waiting: None, charged_until: None, deferred: 0 }
    }

    /// Publishes a configuration that the relay pushed, or defers it.
    pub(super) fn offer(&mut self, now: Instant, config: PushConfig) {
        if self.publish.borrow().as_deref() == Some(&config) {
            self.waiting = None;
        } else if self.may_publish(now) {
            self.publish_config(now, config);
        } else {
            self.deferred += 1;
            if self.waiting.replace(config).is_none() {
                tracing::warn!(
                    wait_s = self.delay(now).as_secs(),
                    "the relay changes its configuration too often: deferring the latest one"
                );
            }
        }
    }

    /// Returns when the deferred configuration may be published, or `None` if none is deferred.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.waiting.as_ref()?;
        self.charged_until.and_then(|charged_until| charged_until.checked_sub(INTERVAL * (BURST - 1)))
    }

    /// Publishes the deferred configuration if its time has come.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.may_publish(now)
            && let Some(config) = self.waiting.take()
        {
            self.publish_config(now, config);
        }
    }

    /// Returns the number of configurations that were deferred, including those that a later one
    /// replaced.
    pub(super) fn deferred(&self) -> u64 {
        self.deferred
    }

    fn publish_config(&mut self, now: Instant, config: PushConfig) {
        self.waiting = None;
        self.charged_until =
            Some(self.charged_until.map_or(now, |charged_until| charged_until.max(now)) + INTERVAL);
        self.publish.send_replace(Some(Arc::new(config)));
    }

    fn may_publish(&self, now: Instant) -> bool {
        self.delay(now).is_zero()
    }

    fn delay(&self, now: Instant) -> Duration {
        let owed = self
            .charged_until
            .map_or(Duration::ZERO, |charged_until| charged_until.saturating_duration_since(now));
        owed.saturating_sub(INTERVAL * (BURST - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mtu: u16) -> PushConfig {
        PushConfig { mtu, ..PushConfig::default() }
    }

    #[test]
    fn a_configuration_that_changes_without_end_is_published_at_a_limited_rate() {
        let (publish, mut published) = watch::channel(None);
        let (mut config_limiter, start) = (ConfigLimiter::new(publish), Instant::now());
        let mut changes = 0;
        for ms in 0..100_000 {
            let now = start + Duration::from_millis(ms);
            config_limiter.offer(now, config(1300 + u16::try_from(ms % 2).unwrap()));
            if config_limiter.due_at().is_some_and(|due| due <= now) {
                config_limiter.tick(now);
            }
            if published.has_changed().unwrap() {
                changes += 1;
                published.borrow_and_update();
            }
        }
        assert!((8..=18).contains(&changes), "{changes}");
        assert!(config_limiter.deferred() > 40_000);
    }

    #[test]
    fn an_unchanged_configuration_is_not_published_again() {
        let (publish, mut published) = watch::channel(None);
        let (mut config_limiter, now) = (ConfigLimiter::new(publish), Instant::now());
        config_limiter.offer(now, config(1300));
        published.borrow_and_update();
        config_limiter.offer(now, config(1300));
        config_limiter.tick(now + INTERVAL);
        assert!(!published.has_changed().unwrap());
    }

    #[test]
    fn the_last_configuration_is_published_in_the_end() {
        let (publish, published) = watch::channel(None);
        let (mut config_limiter, now) = (ConfigLimiter::new(publish), Instant::now());
        for mtu in 1300..1320 {
            config_limiter.offer(now, config(mtu));
        }
        assert_eq!(published.borrow().as_deref(), Some(&config(1307)));
        let due = config_limiter.due_at().unwrap();
        assert_eq!(due, now + INTERVAL);
        config_limiter.tick(due - Duration::from_millis(1));
        assert_eq!(published.borrow().as_deref(), Some(&config(1307)));
        config_limiter.tick(due);
        assert_eq!((published.borrow().as_deref(), config_limiter.due_at()), (Some(&config(1319)), None));
        config_limiter.offer(due, config(1318));
        config_limiter.offer(due, config(1319));
        assert_eq!(config_limiter.due_at(), None, "the configuration in force is not deferred");
        assert_eq!(config_limiter.deferred(), 13);
    }
}
