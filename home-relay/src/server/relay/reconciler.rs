//! Keeps the kernel's network state as configured: the device, addresses, forwarding and nftables
//! rules. The reconciler reacts to the kernel's notifications, checks sysctls every few seconds
//! because their changes are not notified, restores what other programs changed, and counts and
//! logs each repair.

use std::time::Duration;

use anyhow::Context as _;
use mobile_netlink::{NetlinkError, TableWatch, Watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{info, warn};

use super::{AppliedState, Relay};
use crate::network::{ReconcileError, ReconcileScope};

/// The shortest time between two checks of the kernel's network state, which bounds the cost of a
/// program that flushes the nftables rules in a loop. A single flush is repaired at once.
const MIN_INTERVAL: Duration = Duration::from_millis(200);

/// The interval at which sysctls are checked, because the kernel does not notify of their changes;
/// failed repairs are retried at the same interval.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(5);

impl Relay {
    /// Checks the device, addresses, forwarding and nftables rules now, restores what differs, and
    /// returns the names of what was restored.
    pub(in crate::server) async fn reconcile_all(&self) -> Result<Vec<String>, ReconcileError> {
        self.reconcile(&mut *self.applied.lock().await, ReconcileScope::Everything).await
    }

    /// Checks the parts of the network state in `scope`; restores what differs, and returns the
    /// names of what was restored.
    pub(super) async fn reconcile(
        &self,
        applied: &mut AppliedState,
        scope: ReconcileScope,
    ) -> Result<Vec<String>, ReconcileError> {
        for (reason, packets) in applied.network.take_drops() {
            self.metrics.dropped(reason, packets);
        }
        // The nftables rules recognise these networks by themselves (`fib daddr type local`).
        if let Ok(local) = applied.network.local_networks().await {
            self.registry.set_local(local);
        }
        match applied.network.reconcile(scope).await {
            Ok(restored) => {
                if self.metrics.set_fault(None).is_some() {
                    info!("device, addresses, forwarding and rules are as configured again");
                }
                if !restored.is_empty() {
                    self.metrics.restored.inc_by(restored.len() as u64);
                    warn!("restored kernel state that another program changed: {}", restored.join(", "));
                }
                Ok(restored)
            }
            Err(ReconcileError::Other(error)) => {
                let reason = format!("{error:#}");
                if self.metrics.set_fault(Some(reason.clone())).as_ref() != Some(&reason) {
                    warn!("cannot restore kernel state, retrying: {reason}");
                }
                Err(ReconcileError::Other(error))
            }
            Err(error @ ReconcileError::DeviceGone(_)) => Err(error),
        }
    }

    /// Keeps the kernel's network state as configured until the home virtual device is gone, which
    /// is an error.
    pub(in crate::server) async fn run_reconciler(&self) -> anyhow::Result<()> {
        let mut network = Watch::new().context("cannot watch the device")?;
        let table = self.applied.lock().await.network.ruleset().table();
        // A kernel without nftables has no table to watch.
        let mut table = TableWatch::new(&table).ok();
        let mut settings = interval(SETTINGS_INTERVAL);
        settings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Changes before the subscriptions are not notified, so check the rules at first.
        let mut scope = ReconcileScope::Everything;
        loop {
            match self.reconcile(&mut *self.applied.lock().await, scope).await {
                // Failures are logged by `reconcile` and retried.
                Ok(_) | Err(ReconcileError::Other(_)) => {}
                Err(error @ ReconcileError::DeviceGone(_)) => return Err(error.into()),
            }
            let next = Instant::now() + MIN_INTERVAL;
            scope = tokio::select! {
                changed = network.changed() => {
                    changed.context("watching the device failed")?;
                    ReconcileScope::WithoutRules
                }
                changed = changed(&mut table) => {
                    changed.context("watching the nftables rules failed")?;
                    ReconcileScope::Everything
                }
                _ = settings.tick() => match self.metrics.health() {
                    Ok(()) => ReconcileScope::WithoutRules,
                    Err(_) => ReconcileScope::Everything,
                },
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
