//! The daemon: starts in order, runs until told, stops fail-closed.
//!
//! SIGTERM (and SIGINT) ends the session and the process, and leaves everything in the kernel as it is: pins, cgroup,
//! rules, routes, device. Mobile processes wait; they never go direct, and the next agent adopts it all, as it does
//! after SIGKILL. `mobile cleanup` is the way to remove it.

mod accounts;
mod agent;
mod confine;
mod extent;
mod failure;
mod network;
mod start;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use mobile_io::confine::Confinement;
use mobile_io::notify;
use mobile_io::state_file::StateFile;
use mobile_proto::CloseCode;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use agent::Agent;
use start::Running;

use crate::config::Config;
use crate::footprint;

/// How long the relay may take to hear our goodbye; it finds out by itself if not.
const GOODBYE: Duration = Duration::from_millis(500);

/// How long the answer to `mobile cleanup` may take to leave the socket.
const LAST_ANSWER: Duration = Duration::from_millis(100);

/// `mobile agent`.
pub(crate) fn main(config: Option<&Path>, log: Option<&str>) -> anyhow::Result<()> {
    mobile_io::log::init(log, "MOBILE_LOG")?;
    let record =
        footprint::record(config).context("cannot determine the path of the record of kernel objects")?;
    let config = Config::load(config)?;
    mobile_io::allocator::retain_freed_memory();
    let confinement = confine::confinement(&config);
    let of_threads = confinement.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Those that look up names; the first thread has things to make before.
        .on_thread_start(move || of_threads.apply().expect("a thread gives up what it does not need"))
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(run(config, &record, &confinement));
    // A resolver that does not answer is no reason to wait.
    runtime.shutdown_background();
    result
}

async fn run(config: Config, record: &StateFile, confinement: &Confinement) -> anyhow::Result<()> {
    // Before anything is made: from here on a signal finds us ready to stop in order.
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut running = start::start(config, record, confinement).await?;
    confinement.apply().context("the agent cannot drop privileges")?;
    notify::ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "agent ready");
    let mut watchdog = tokio::time::interval(notify::watchdog_interval().unwrap_or(Duration::MAX / 4));
    let mut state = running.agent.tunnel.state.clone();
    let mut said = String::new();
    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            fatal = running.tasks.join_next() => break Err(fatal_error(fatal)),
            Some(reply) = running.clean_ups.recv() => {
                stop(&running).await;
                return clean_up(running, record, reply).await;
            }
            Ok(()) = state.changed() => {
                let line = summary(&state.borrow_and_update());
                if line != said {
                    notify::status(&line);
                    said = line;
                }
            }
            _ = watchdog.tick() => notify::keep_alive(),
        }
    };
    stop(&running).await;
    tracing::info!("agent stopped; mobile processes wait for the next one, or for `mobile cleanup`");
    result
}

async fn stop(running: &Running) {
    notify::stopping();
    let goodbye = running.agent.tunnel.driver.shutdown(CloseCode::Shutdown);
    if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
        tracing::debug!("the relay did not hear the goodbye in time");
    }
}

async fn clean_up(
    running: Running,
    record: &StateFile,
    reply: tokio::sync::oneshot::Sender<Result<(), String>>,
) -> anyhow::Result<()> {
    let Running { agent, mut tasks, network, claim, .. } = running;
    // The device can be removed only when nobody holds it, the route only when nobody puts it back,
    // the cgroup only when no agent has it.
    tasks.shutdown().await;
    drop((network, claim));
    let names = footprint::of_running(&agent.config, record);
    let result = crate::cli::remove_everything(&names, record, Some(&agent.processes)).await;
    let told = match &result {
        Ok(()) => Ok(()),
        Err(error) => Err(crate::cli::story(error)),
    };
    // The asker may have gone; the result is in the log too.
    let _ = reply.send(told);
    tokio::time::sleep(LAST_ANSWER).await;
    if result.is_ok() {
        tracing::info!("agent stopped, everything removed");
    }
    result
}

fn fatal_error(ended: Option<Result<anyhow::Error, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok(error)) => error.context("the agent cannot go on"),
        Some(Err(error)) => anyhow::Error::new(error).context("a task of the agent failed"),
        None => anyhow::anyhow!("the agent has nothing left to do"),
    }
}

fn summary(state: &crate::tunnel::State) -> String {
    match &state.active {
        Some((active, relay)) => format!("connected to {relay} over {}", active.uplink),
        None if state.decision.candidates.is_empty() => "no usable uplink".to_owned(),
        None => format!("connecting over {}", state.decision.candidates.join(", ")),
    }
}
