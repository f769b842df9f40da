//! Closes the traffic accounts of ended mobile processes (their counters for `mobile ps`), and
//! warns when connections are missing from an account.

use std::sync::Arc;

use mobile_ebpf_common::{CountedEvent, map};
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use crate::selection::account::SWEEP_INTERVAL;

/// Closes the traffic accounts of ended processes periodically. Returns only on a fatal error.
pub(super) async fn sweep(agent: Arc<Agent>) -> anyhow::Error {
    let mut sweeps = interval(SWEEP_INTERVAL);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing = unaccounted(&agent);
    loop {
        sweeps.tick().await;
        let sweeping = Arc::clone(&agent);
        let swept = tokio::task::spawn_blocking(move || {
            sweeping.processes.attach_to_mobile_only();
            sweeping.processes.sweep_accounts()
        });
        match swept.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot close the accounts of ended processes"),
            Err(error) => {
                return anyhow::Error::new(error)
                    .context("the sweep of the accounts of mobile processes failed");
            }
        }
        let now = unaccounted(&agent);
        if let (Some(before), Some(now)) = (missing, now)
            && now > before
        {
            tracing::warn!(
                connections = now - before,
                "connections are missing from `mobile ps`: the eBPF map {} is full, or the kernel \
                is out of memory",
                map::ACCOUNTS
            );
        }
        missing = now;
    }
}

/// Returns how many connections are missing from the traffic accounts; `None` if the counters of
/// the eBPF programs cannot be read.
fn unaccounted(agent: &Agent) -> Option<u64> {
    agent.processes.counters().ok()?.count(CountedEvent::Unaccounted)
}
