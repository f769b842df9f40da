//! Starts, runs and stops the agent.
//!
//! `start` puts the parts together: it makes the kernel objects (`kernel_objects`) in an order that
//! never lets marked packets leave directly, and starts the tunnel, the agent's tasks, the control
//! socket and the metrics. `confine` and `network` limit its rights and keep slow work off the
//! packet thread.
//!
//! SIGHUP reloads the configuration. SIGTERM and SIGINT end the session and the process, and leave
//! every kernel object in place: pins, cgroup, rules, routes and device. Mobile processes wait and
//! never connect directly. The next agent adopts the objects, as it does after SIGKILL. `mobile
//! cleanup` removes them.

mod confine;
mod kernel_objects;
mod network;
mod start;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mobile_host::confine::Confinement;
use mobile_host::notify;
use mobile_host::state_file::StateFile;
use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use crate::agent::{Agent, CleanUpError, CleanUpRequest};
use crate::cleanup::remove_everything;
use crate::config::Config;
use crate::footprint;
use crate::tunnel::TunnelState;
use start::RunningAgent;

/// How long a stopping agent waits until it has closed the session at the relay. If the close does
/// not arrive, the relay detects the end of the session by itself.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the agent waits before it exits, so that the reply to `mobile cleanup` is sent.
const REPLY_DRAIN_TIME: Duration = Duration::from_millis(100);

/// Runs `mobile agent` until it is stopped.
pub(crate) fn main(config: Option<&Path>, log: Option<&str>) -> anyhow::Result<()> {
    // A SIGHUP that arrives before the agent is ready waits, instead of ending the agent.
    let hangup = SigSet::from_iter([Signal::SIGHUP]);
    hangup.thread_block().context("cannot block SIGHUP")?;
    mobile_host::log::init(log, "MOBILE_LOG")?;
    let state_file = footprint::state_file(config)
        .context("cannot determine the path of the file that records kernel objects")?;
    // The process helper reads the file again when the agent reloads it.
    let path = config.map(std::path::absolute).transpose().context("cannot resolve the path of --config")?;
    let config = Config::load(path.as_deref())?;
    mobile_host::allocator::retain_freed_memory();
    let confinement = confine::confinement(&config);
    let thread_confinement = confinement.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // These threads resolve names. The main thread needs more rights until everything is set
        // up.
        .on_thread_start(move || thread_confinement.apply().expect("a new thread can drop its privileges"))
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(run(config, path.as_deref(), &state_file, &confinement));
    // Do not wait for a resolver that does not answer.
    runtime.shutdown_background();
    result
}

async fn run(
    config: Config,
    path: Option<&Path>,
    state_file: &StateFile,
    confinement: &Confinement,
) -> anyhow::Result<()> {
    // Handle signals before making anything, so that the agent always stops in order.
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    SigSet::from_iter([Signal::SIGHUP]).thread_unblock().context("cannot unblock SIGHUP")?;
    let mut running = start::start(config, path, state_file, confinement).await?;
    confinement.apply().context("the agent cannot drop privileges")?;
    notify::ready();
    running.tasks.spawn(reload_on(hangup, Arc::clone(&running.agent)));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "agent ready");
    let mut watchdog = tokio::time::interval(notify::watchdog_interval().unwrap_or(Duration::MAX / 4));
    let mut state = running.agent.watch_tunnel();
    // Send systemd the first state too.
    state.mark_changed();
    let mut sent = String::new();
    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            fatal = running.tasks.join_next() => break Err(fatal_error(fatal)),
            Some(reply) = running.clean_ups.recv() => {
                stop(&running).await;
                return clean_up(running, path, state_file, reply).await;
            }
            Ok(()) = state.changed() => {
                let line = summary(&state.borrow_and_update());
                if line != sent {
                    notify::status(&line);
                    sent = line;
                }
            }
            _ = watchdog.tick() => notify::keep_alive(),
        }
    };
    stop(&running).await;
    tracing::info!("agent stopped; mobile processes wait for the next one, or for `mobile cleanup`");
    result
}

/// Reloads the configuration at each SIGHUP; the outcome is logged.
async fn reload_on(mut hangup: Signals, agent: Arc<Agent>) -> anyhow::Error {
    while hangup.recv().await.is_some() {
        notify::reloading();
        // The error is logged already.
        let _ = agent.reload().await;
        notify::ready();
    }
    anyhow::anyhow!("SIGHUP is no longer received")
}

async fn stop(running: &RunningAgent) {
    notify::stopping();
    let close = running.agent.close_session();
    if tokio::time::timeout(CLOSE_TIMEOUT, close).await.is_err() {
        tracing::debug!("the session was not closed at the relay in time");
    }
}

async fn clean_up(
    running: RunningAgent,
    path: Option<&Path>,
    state_file: &StateFile,
    reply: CleanUpRequest,
) -> anyhow::Result<()> {
    let RunningAgent { agent, mut tasks, network, cgroup_lock, registration, .. } = running;
    // The device can be removed only when no task holds it, the route only when no task restores
    // it, and the cgroup only when no agent has locked it.
    tasks.shutdown().await;
    drop((network, cgroup_lock));
    let names = footprint::for_running(&agent.settings().config, state_file);
    let result = remove_everything(&names, path, state_file, Some(agent.processes().helper())).await;
    // `mobile cleanup` removes the directory of the registration after the reply.
    drop(registration);
    let outcome = match &result {
        Ok(()) => Ok(()),
        Err(error) => Err(CleanUpError::Failed(mobile_host::error_chain(error))),
    };
    // The requester may be gone. The result is logged too.
    let _ = reply.send(outcome);
    tokio::time::sleep(REPLY_DRAIN_TIME).await;
    if result.is_ok() {
        tracing::info!("agent stopped, everything removed");
    }
    result
}

fn fatal_error(ended: Option<Result<anyhow::Error, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok(error)) => error.context("the agent cannot continue"),
        Some(Err(error)) => anyhow::Error::new(error).context("a task of the agent failed"),
        None => anyhow::anyhow!("all tasks of the agent have ended"),
    }
}

fn summary(state: &TunnelState) -> String {
    match &state.active {
        Some((active, relay)) => format!("connected to {relay} over {}", active.uplink),
        None if state.decision.usable.is_empty() => "no usable uplink".to_owned(),
        None => format!("connecting over {}", state.decision.usable.join(", ")),
    }
}
