//! Lets new connections of mobile processes use the ordinary route while there is no session, if
//! `[routing] on_failure` is `"open"`.
//!
//! The eBPF programs do so once a deadline has passed, and thus even when no agent runs. The task
//! of this module postpones the deadline while there is a session.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::time::{Instant, sleep_until};

use super::{Agent, Settings};
use crate::config::OnFailure;
use crate::selection::deadline::{GRACE_PERIOD, RENEWAL_INTERVAL};

/// Whether new connections of mobile processes use the ordinary route for lack of a session, and
/// how many times they began to; for status and metrics.
#[derive(Debug, Default)]
pub(crate) struct DirectFallback {
    now: AtomicBool,
    times: AtomicU64,
}

impl DirectFallback {
    /// Returns whether new connections of mobile processes use the ordinary route at present.
    pub(crate) fn now(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }

    /// Returns how many times new connections of mobile processes began to use the ordinary route.
    pub(crate) fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }
}

/// Postpones the deadline after which the eBPF programs let new connections use the ordinary route,
/// while there is a session. Logs when the deadline passes.
pub(super) async fn keep_deadline(agent: Arc<Agent>) -> anyhow::Error {
    let mut settings = agent.settings.subscribe();
    loop {
        let on_failure = settings.borrow_and_update().config.routing.on_failure;
        let is_changed = |settings: &Arc<Settings>| settings.config.routing.on_failure != on_failure;
        tokio::select! {
            ended = keep_open(&agent), if on_failure == OnFailure::Open => return ended,
            // The agent holds the sender.
            Ok(_) = settings.wait_for(is_changed) => {}
        }
        if on_failure == OnFailure::Open {
            agent.direct_fallback.now.store(false, Ordering::Relaxed);
            set_deadline(&agent, OnFailure::Closed);
        }
    }
}

async fn keep_open(agent: &Agent) -> anyhow::Error {
    let mut state = agent.watch_tunnel();
    // The deadline of the eBPF programs counts from this moment too.
    set_deadline(agent, OnFailure::Open);
    let mut deadline = Instant::now() + GRACE_PERIOD;
    let mut was_connected = false;
    loop {
        let connected = state.borrow_and_update().active.is_some();
        // Postpone the deadline at the loss of the session too, so that the whole grace period
        // follows.
        if connected || was_connected {
            deadline = Instant::now() + GRACE_PERIOD;
            set_deadline(agent, OnFailure::Open);
        }
        was_connected = connected;
        if connected && agent.direct_fallback.now.swap(false, Ordering::Relaxed) {
            tracing::info!("session established: new connections of mobile processes use the tunnel again");
        }
        let wake = match (connected, agent.direct_fallback.now()) {
            (true, _) => Some(deadline - GRACE_PERIOD + RENEWAL_INTERVAL),
            (false, false) => Some(deadline),
            (false, true) => None,
        };
        let mut timer = pin!(wake.map(sleep_until));
        tokio::select! {
            changed = state.changed() => if changed.is_err() {
                return anyhow::anyhow!("the tunnel has ended");
            },
            () = async {
                match timer.as_mut().as_pin_mut() {
                    Some(timer) => timer.await,
                    None => std::future::pending().await,
                }
            } => if !connected {
                agent.direct_fallback.now.store(true, Ordering::Relaxed);
                agent.direct_fallback.times.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    "no session for {} s: new connections of mobile processes go directly until there is one \
                     ([routing] on_failure = \"open\")",
                    GRACE_PERIOD.as_secs()
                );
            },
        }
    }
}

fn set_deadline(agent: &Agent, on_failure: OnFailure) {
    if let Err(error) = agent.processes.selector().extend_deadline(on_failure) {
        tracing::warn!(
            %error,
            "cannot postpone the deadline of the eBPF programs: new connections of mobile \
            processes will go directly despite the session"
        );
    }
}
