//! What becomes of new connections without a session, where `[routing] on_failure` is `"open"`.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::time::{Instant, sleep_until};

use super::Agent;
use crate::config::OnFailure;
use crate::selection::deadline::{GRACE_PERIOD, RENEWAL_INTERVAL};

/// What others may know of it.
#[derive(Debug, Default)]
pub(crate) struct DirectFallback {
    now: AtomicBool,
    times: AtomicU64,
}

impl DirectFallback {
    /// Whether new connections of mobile processes go directly now.
    pub(crate) fn now(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }

    /// How often they began to.
    pub(crate) fn times(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }
}

/// Puts the deadline of the programs off while there is a session, and says when it is over.
pub(super) async fn keep_deadline(agent: Arc<Agent>) -> anyhow::Error {
    if agent.config.routing.on_failure == OnFailure::Closed {
        return std::future::pending().await;
    }
    let mut state = agent.tunnel.state.clone();
    // The programs are new: they count from now too.
    let mut deadline = Instant::now() + GRACE_PERIOD;
    let mut was_connected = false;
    loop {
        let connected = state.borrow_and_update().active.is_some();
        // At its loss too: then the grace is whole.
        if connected || was_connected {
            deadline = Instant::now() + GRACE_PERIOD;
            put_off(&agent);
        }
        was_connected = connected;
        if connected && agent.direct_fallback.now.swap(false, Ordering::Relaxed) {
            tracing::info!("there is a session again: new connections of mobile processes take the tunnel");
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
                    "no session for {} s: new connections of mobile processes go directly until there is one, as \
                     [routing] on_failure says",
                    GRACE_PERIOD.as_secs()
                );
            },
        }
    }
}

fn put_off(agent: &Agent) {
    let mut selector = agent.selector.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = selector.extend_deadline(OnFailure::Open) {
        tracing::warn!(%error, "new connections of mobile processes will go directly although there is a session");
    }
}
