//! Performs the I/O for the machine: carries out its actions, and reports the events of paths and
//! uplinks to it.

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobile_proto::{CloseCode, Event, PathId, PushConfig};
use mobile_transport::driver::{DriverEvent, Handle};
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::cause::{Failure, Fault, HandoverCause};
use super::config_limiter::ConfigLimiter;
use super::connect::{self, Dialer, RelayConnection};
use super::history::HandoverHistory;
use super::machine::{Action, LostPath, Machine, PathRole, Preferences};
use super::suspend::SuspendWatch;
use super::{PresentPaths, TunnelCommand, TunnelSettings, TunnelState};
use crate::publish::publish_if_changed;
use crate::uplinks::Uplinks;

/// How long an outage lasts before it is logged. An ordinary handover takes less.
const OUTAGE_LOG_DELAY: Duration = Duration::from_secs(3);

/// How long the look-up of a newly announced name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest number of session events to dequeue at once. While that many are queued, the driver
/// does not read from any path.
const MAX_BATCH: usize = 64;

/// The task that owns the machine and performs its I/O.
pub(super) struct Manager {
    machine: Machine,
    dialer: Arc<Dialer>,
    driver: Handle,
    uplinks: Uplinks,
    connects: JoinSet<(PathId, Result<RelayConnection, Failure>)>,
    aborts: HashMap<PathId, AbortHandle>,
    /// The relay's address on each open path.
    transports: HashMap<PathId, SocketAddr>,
    history: HandoverHistory,
    suspend: SuspendWatch,
    config_limiter: ConfigLimiter,
    /// When the present session began; `None` before the first.
    session_since: Option<Instant>,
    /// The beginning of the last outage that was logged.
    logged_outage: Option<Instant>,
}

impl Manager {
    /// Creates a manager that has not started any connection attempt yet.
    pub(super) fn new(
        preferences: Preferences,
        dialer: Dialer,
        driver: Handle,
        uplinks: Uplinks,
        pushed_config: watch::Sender<Option<Arc<PushConfig>>>,
    ) -> Self {
        Self {
            machine: Machine::new(preferences, dialer.families(), || rand::rng().random()),
            dialer: Arc::new(dialer),
            driver,
            uplinks,
            connects: JoinSet::new(),
            aborts: HashMap::new(),
            transports: HashMap::new(),
            history: HandoverHistory::new(),
            suspend: SuspendWatch::new(),
            config_limiter: ConfigLimiter::new(pushed_config),
            session_since: None,
            logged_outage: None,
        }
    }

    /// Runs until the session stops, and returns the reason.
    pub(super) async fn run(
        mut self,
        mut events: mpsc::Receiver<DriverEvent>,
        mut commands: mpsc::UnboundedReceiver<TunnelCommand>,
        publish: watch::Sender<Arc<TunnelState>>,
    ) -> anyhow::Error {
        let mut known = self.dialer.known().subscribe();
        self.update_uplinks();
        let mut batch = Vec::new();
        loop {
            self.run_actions();
            publish_if_changed(&publish, self.state());
            let deadlines = [self.machine.deadline(), self.log_outage(), self.config_limiter.due_at()];
            let deadline = deadlines.into_iter().flatten().min();
            tokio::select! {
                changed = self.uplinks.known.changed() => {
                    if changed.is_err() {
                        // The uplinks' own task ends with the reason, perhaps a moment later on
                        // another thread.
                        return pending().await;
                    }
                    self.update_uplinks();
                }
                // Take all queued events, then run the actions and publish the state once.
                _ = events.recv_many(&mut batch, MAX_BATCH) => {
                    if matches!(batch.last(), Some(DriverEvent::Stopped) | None) {
                        return anyhow::anyhow!("the session has stopped");
                    }
                    batch.drain(..).for_each(|event| self.driver_event(event));
                }
                Some(result) = self.connects.join_next() => {
                    // An aborted task has no result, and the panic hook has reported a panic.
                    if let Ok((path, result)) = result {
                        self.connected(path, result);
                    }
                }
                // The dialer holds the sender.
                Ok(()) = known.changed() => {
                    self.dialer.refresh(LOOKUP_TIMEOUT);
                    self.machine.set_families(Instant::now(), self.dialer.families());
                }
                Some(command) = commands.recv() => self.run_command(command),
                slept = self.suspend.resumed() => {
                    tracing::info!(
                        slept_s = slept.as_secs(),
                        "resumed from suspend: probing every path"
                    );
                    self.driver.probe();
                    self.uplinks.refresh();
                }
                () = sleep_until_some(deadline) => {
                    let now = Instant::now();
                    self.machine.tick(now);
                    self.config_limiter.tick(now);
                }
            }
        }
    }

    /// Logs the current outage once it has lasted for [`OUTAGE_LOG_DELAY`]. Returns when to call
    /// again, or `None` if nothing is left to log.
    fn log_outage(&mut self) -> Option<Instant> {
        let since = self.machine.outage_since().filter(|since| self.logged_outage != Some(*since))?;
        let due = since + OUTAGE_LOG_DELAY;
        if Instant::now() < due {
            return Some(due);
        }
        self.logged_outage = Some(since);
        let usable_uplinks = self.machine.decision().usable.join(" ");
        tracing::info!(
            usable_uplinks,
            "no path to the relay: open connections wait until a path works; `mobile uplinks` \
            lists the obstacles"
        );
        None
    }

    fn run_command(&mut self, command: TunnelCommand) {
        let now = Instant::now();
        match command {
            TunnelCommand::Force(uplink) => self.machine.force(now, uplink),
            TunnelCommand::Configure(settings) => {
                let TunnelSettings { preferences, identity } = *settings;
                self.uplinks.set_prefer(preferences.prefer.clone());
                self.machine.set_preferences(now, preferences);
                if let Some((relay, key, present)) = identity {
                    self.dialer.set_key(key);
                    if present == PresentPaths::Replace {
                        self.dialer.set_relay(relay, LOOKUP_TIMEOUT);
                    }
                    self.machine.set_families(now, self.dialer.families());
                    self.machine.dial_anew(now, present);
                }
            }
        }
    }

    fn update_uplinks(&mut self) {
        let known = Arc::clone(&self.uplinks.known.borrow_and_update());
        self.history.forget_absent(&known);
        self.machine.set_uplinks(Instant::now(), known.to_vec());
    }

    fn driver_event(&mut self, event: DriverEvent) {
        let now = Instant::now();
        match event {
            DriverEvent::Session(Event::PathReady { path, resumed }) => {
                tracing::debug!(%path, resumed, "path ready");
                if !resumed {
                    self.session_since = Some(now);
                }
                self.machine.path_ready(now, path);
                if let Some(uplink) = self.uplink_of(path) {
                    self.history.record_success(&uplink);
                }
            }
            DriverEvent::Session(Event::PathActivated { path, replayed, dropped, .. }) => {
                self.machine.activated(path, replayed, dropped);
            }
            DriverEvent::Session(Event::PathConfirmed { path }) => {
                self.machine.confirmed(now, path);
                if let Some(active) = self.machine.active() {
                    tracing::info!(uplink = active.uplink, "path active");
                }
            }
            DriverEvent::Session(Event::Config(config)) => self.config_limiter.offer(now, config),
            DriverEvent::Session(Event::PathProbing { path }) => {
                tracing::debug!(%path, "expected answers are late: probing the path");
                if self.machine.is_current(path) {
                    // The kernel announces a lost carrier up to a second late, but reports it at
                    // once when asked.
                    self.uplinks.refresh();
                }
            }
            DriverEvent::Session(Event::PathUnresponsive { path, silent_for }) => {
                let began = now.checked_sub(silent_for).unwrap_or(now);
                self.path_unresponsive(path, began, silent_for);
            }
            DriverEvent::Session(Event::PathRecovered { path }) => {
                self.machine.recovered(now, path);
                if let Some(uplink) = self.uplink_of(path).filter(|_| self.machine.is_current(path)) {
                    tracing::info!(uplink, "path answers again");
                }
            }
            DriverEvent::Session(Event::PathClosed { path, code }) => {
                let failure = Failure::closed(code, &self.dialer.own_key());
                self.path_lost(path, HandoverCause::RelayClosed, failure);
            }
            DriverEvent::PathError { path, cause } => {
                tracing::debug!(%path, error = %cause, "path failed");
                let failure = Failure::tls(&cause, &self.dialer.own_key());
                self.path_lost(path, HandoverCause::TransportFailed, failure);
            }
            // A relay's session reports `Confirmed`.
            DriverEvent::Session(Event::Confirmed(_)) | DriverEvent::Stopped => {}
        }
    }

    fn path_unresponsive(&mut self, path: PathId, began: Instant, silent_for: Duration) {
        let Some(LostPath { uplink, role }) = self.machine.mark_unresponsive(Instant::now(), path, began)
        else {
            return;
        };
        let silent_ms = u64::try_from(silent_for.as_millis()).unwrap_or(u64::MAX);
        if role == PathRole::Active {
            tracing::warn!(uplink, silent_ms, "active path has gone silent");
        } else {
            tracing::debug!(uplink, silent_ms, ?role, "unused path has gone silent");
        }
    }

    /// Handles the loss of a path in any stage; a path that the machine has closed already is
    /// ignored.
    fn path_lost(&mut self, path: PathId, cause: HandoverCause, failure: Failure) {
        let now = Instant::now();
        self.transports.remove(&path);
        let Some(LostPath { uplink, role }) = self.machine.path_lost(now, path, cause, failure.fault, now)
        else {
            return;
        };
        if role == PathRole::Attempt || failure.fault == Fault::Identity {
            self.history.record_failure(&uplink, failure);
        } else if role == PathRole::Active {
            tracing::warn!(uplink, cause = failure.problem.cause, "active path lost");
        } else {
            tracing::debug!(uplink, cause = failure.problem.cause, "standby path lost");
        }
    }

    fn connected(&mut self, path: PathId, result: Result<RelayConnection, Failure>) {
        let now = Instant::now();
        self.aborts.remove(&path);
        self.machine.set_families(now, self.dialer.families());
        match result {
            Ok(RelayConnection { stream, local, remote }) => {
                if self.machine.transport_ready(now, path, connect::local_ip(local)) {
                    self.transports.insert(path, remote);
                    self.driver.open_path(path, stream);
                }
            }
            Err(failure) => self.path_lost(path, HandoverCause::TransportFailed, failure),
        }
    }

    fn run_actions(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            tracing::trace!(?action, "running action");
            match action {
                Action::Connect { path, uplink, families, timeout } => {
                    self.history.attempts += 1;
                    let dialer = Arc::clone(&self.dialer);
                    let abort = self
                        .connects
                        .spawn(async move { (path, dialer.connect(uplink, families, timeout).await) });
                    self.aborts.insert(path, abort);
                }
                Action::Abort { path } => {
                    if let Some(abort) = self.aborts.remove(&path) {
                        abort.abort();
                    }
                }
                Action::Close { path } => {
                    self.transports.remove(&path);
                    self.driver.close_path(path, CloseCode::Normal);
                }
                Action::Probe => self.driver.probe(),
                Action::Activate { path, keep } => self.driver.activate(path, keep),
                Action::TimedOut { uplink, opened } => {
                    let stage = if opened { "waiting for its welcome" } else { "waiting for TCP and TLS" };
                    self.history.record_failure(&uplink, Failure::timeout(stage));
                }
                Action::RecordHandover(handover) => self.history.record_handover(Instant::now(), handover),
            }
        }
    }

    fn uplink_of(&self, path: PathId) -> Option<String> {
        let mut ready = self.machine.ready();
        ready.find(|(ready, _)| *ready == path).map(|(_, uplink)| uplink.to_owned())
    }

    /// Returns a snapshot of the tunnel's state, for the rest of the agent.
    pub(super) fn state(&self) -> TunnelState {
        let active = self.machine.active().and_then(|active| {
            let remote = self.transports.get(&active.path)?;
            Some((active, *remote))
        });
        TunnelState {
            active,
            session_since: self.session_since,
            outage_since: self.machine.outage_since(),
            ready: self.machine.ready().map(|(path, uplink)| (path, uplink.to_owned())).collect(),
            connecting: self.machine.connecting().map(str::to_owned).collect(),
            uplinks: self.machine.uplinks().to_vec(),
            decision: self.machine.decision().clone(),
            forced: self.machine.forced().map(str::to_owned),
            history: self.history.clone(),
            assignments_deferred: self.config_limiter.deferred(),
        }
    }
}

async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
