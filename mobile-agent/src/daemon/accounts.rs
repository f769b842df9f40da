//! Keeps the accounts of mobile processes: closes those of processes that have ended, and says when one is incomplete.

use std::sync::Arc;

use mobile_ebpf_common::{CountedEvent, map};
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use crate::processes::Job;
use crate::selection::account::SWEEP;

/// For ever.
pub(super) async fn keep(agent: Arc<Agent>) -> anyhow::Error {
    let mut sweeps = interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing = unaccounted(&agent);
    loop {
        sweeps.tick().await;
        let sweeping = Arc::clone(&agent);
        let swept = tokio::task::spawn_blocking(move || {
            sweeping.watch_fewer();
            sweeping.processes.run::<()>(&Job::SweepAccounts, None)
        });
        match swept.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot close the accounts of ended processes"),
            Err(error) => {
                return anyhow::Error::new(error).context("cannot keep the accounts of mobile processes");
            }
        }
        let now = unaccounted(&agent);
        if let (Some(before), Some(now)) = (missing, now)
            && now > before
        {
            tracing::warn!(
                connections = now - before,
                "`mobile ps` does not count all that processes carry: no place in the eBPF map {}, or no memory",
                map::ACCOUNTS
            );
        }
        missing = now;
    }
}

/// How many connections are missing from their account, if the kernel says.
fn unaccounted(agent: &Agent) -> Option<u64> {
    let events = agent.selector().events().ok()?;
    events.into_iter().find_map(|(event, count)| (event == CountedEvent::Unaccounted).then_some(count))
}
