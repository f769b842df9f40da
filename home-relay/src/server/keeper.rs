//! Keeps the kernel's network state as configured: the device, addresses, forwarding and nftables
//! rules. It reacts to the kernel's notifications, checks settings that have none every few
//! seconds, restores what other programs changed, and counts and logs each repair.

use std::time::Duration;

use anyhow::Context as _;
use mobile_io::netlink::{NetlinkError, TableWatch, Watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};

use super::{InForce, Relay};
use crate::network::KeepError;

/// The shortest time between two checks: a program that flushes the rules in a loop costs at most
/// this rate, and a single flush is repaired at once.
const SPACING: Duration = Duration::from_millis(200);

/// How often sysctls are checked, because the kernel does not notify of their changes; failed
/// repairs are retried at the same interval.
const SETTINGS: Duration = Duration::from_secs(5);

impl Relay {
    /// Checks everything now and returns the names of what was restored.
    pub(crate) async fn look(&self) -> Result<Vec<String>, KeepError> {
        self.keep(&mut *self.in_force.lock().await, true).await
    }

    /// Checks the device and settings, and the nftables rules too if `rules`; returns the names of
    /// what was restored.
    pub(super) async fn keep(&self, in_force: &mut InForce, rules: bool) -> Result<Vec<String>, KeepError> {
        for (reason, packets) in in_force.home.take_drops() {
            self.metrics.dropped(reason, packets);
        }
        // The nftables rules recognise these networks by themselves (`fib daddr type local`).
        if let Ok(local) = in_force.home.local_networks().await {
            self.registry.set_local(local);
        }
        match in_force.home.keep(rules).await {
            Ok(restored) => {
                if self.metrics.set_broken(None).is_some() {
                    info!("device, addresses, forwarding and rules are as configured again");
                }
                if !restored.is_empty() {
                    self.metrics.restored.inc_by(restored.len() as u64);
                    warn!("restored kernel state that another program changed: {}", restored.join(", "));
                }
                Ok(restored)
            }
            Err(KeepError::Other(error)) => {
                let reason = format!("{error:#}");
                if self.metrics.set_broken(Some(reason.clone())).as_ref() != Some(&reason) {
                    warn!("cannot restore kernel state, retrying: {reason}");
                }
                Err(KeepError::Other(error))
            }
            Err(gone @ KeepError::Gone(_)) => Err(gone),
        }
    }

    /// Reconciles until the device is gone.
    pub(super) async fn run_keeper(&self) -> anyhow::Result<()> {
        let mut network = Watch::new().context("cannot watch the device")?;
        let table = self.in_force.lock().await.home.ruleset().table();
        // A kernel without nftables has no table to watch.
        let mut table = TableWatch::new(&table).ok();
        let mut settings = interval(SETTINGS);
        settings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Changes before the subscriptions are not notified, so check the rules at first.
        let mut rules = true;
        loop {
            match self.keep(&mut *self.in_force.lock().await, rules).await {
                // Failures are logged by `reconcile` and retried.
                Ok(_) | Err(KeepError::Other(_)) => {}
                Err(gone @ KeepError::Gone(_)) => return Err(gone.into()),
            }
            let next = Instant::now() + SPACING;
            rules = tokio::select! {
                changed = network.changed() => changed.context("watching the device failed").map(|_| false)?,
                changed = changed(&mut table) => changed.context("watching the nftables rules failed").map(|()| true)?,
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
