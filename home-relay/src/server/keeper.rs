//! Keeps what the relay has in the kernel: looks when the kernel says that something changed, and every few seconds at
//! what it does not tell; puts back what others removed, counts it and says so.

use std::time::Duration;

use anyhow::Context as _;
use mobile_io::netlink::{NetlinkError, TableWatch, Watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};

use super::{InForce, Relay};
use crate::network::KeepError;

/// The least time between two looks at what changed: whoever flushes our rules in a loop costs at most this rate, and
/// who does it once finds them back at once.
const SPACING: Duration = Duration::from_millis(200);

/// How often settings are looked at: the kernel does not tell who changes them. What failed is tried again then.
const SETTINGS: Duration = Duration::from_secs(5);

impl Relay {
    /// Looks at everything now. Gives what was not as it should be, and is again.
    pub(crate) async fn look(&self) -> Result<Vec<String>, KeepError> {
        self.keep(&mut *self.in_force.lock().await, true).await
    }

    /// One look, at the rules too if `rules`.
    pub(super) async fn keep(&self, in_force: &mut InForce, rules: bool) -> Result<Vec<String>, KeepError> {
        for (reason, packets) in in_force.home.take_drops() {
            self.metrics.dropped(reason, packets);
        }
        // The nftables rules recognise these networks by themselves.
        if let Ok(local) = in_force.home.local_networks().await {
            self.registry.set_local(local);
        }
        match in_force.home.keep(rules).await {
            Ok(restored) => {
                if self.metrics.set_broken(None).is_some() {
                    info!("device, addresses, forwarding and rules are whole again");
                }
                if !restored.is_empty() {
                    self.metrics.restored.inc_by(restored.len() as u64);
                    warn!("somebody removed or changed, and it was put back: {}", restored.join(", "));
                }
                Ok(restored)
            }
            Err(KeepError::Other(error)) => {
                let story = format!("{error:#}");
                if self.metrics.set_broken(Some(story.clone())).as_ref() != Some(&story) {
                    warn!("what somebody removed or changed cannot be put back, and is tried again: {story}");
                }
                Err(KeepError::Other(error))
            }
            Err(gone @ KeepError::Gone(_)) => Err(gone),
        }
    }

    /// Keeps it, until it cannot go on.
    pub(super) async fn run_keeper(&self) -> anyhow::Result<()> {
        let mut network = Watch::new().context("cannot watch the device")?;
        let table = self.in_force.lock().await.home.ruleset().table();
        // A kernel without nftables has no table to watch either.
        let mut table = TableWatch::new(&table).ok();
        let mut settings = interval(SETTINGS);
        settings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What changed before the subscriptions is not told.
        let mut rules = true;
        loop {
            match self.keep(&mut *self.in_force.lock().await, rules).await {
                // What failed is in the log, and tried again.
                Ok(_) | Err(KeepError::Other(_)) => {}
                Err(gone @ KeepError::Gone(_)) => return Err(gone.into()),
            }
            let next = Instant::now() + SPACING;
            rules = tokio::select! {
                changed = network.changed() => changed.context("cannot watch the device any more").map(|_| false)?,
                changed = changed(&mut table) => changed.context("cannot watch the rules any more").map(|()| true)?,
                _ = settings.tick() => self.metrics.healthy().is_err(),
            };
            sleep_until(next).await;
        }
    }
}

async fn changed(table: &mut Option<TableWatch>) -> Result<(), NetlinkError> {
    match table {
        Some(table) => table.changed().await,
        None => std::future::pending().await,
    }
}
