//! Carries out what the machine decides, and tells it what happens.

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobile_io::driver::{DriverEvent, Handle};
use mobile_proto::{CloseCode, Event, PathId, PushConfig};
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::State;
use super::assignments::Assignments;
use super::cause::{Cause, Failure, Fault};
use super::connect::{self, Connected, Dialer};
use super::ledger::Ledger;
use super::machine::{Action, Lost, Machine, Was, Wishes};
use super::suspend::Suspend;
use crate::uplinks::Uplinks;

/// So long the tunnel is without a path before the log has a line of it: longer than an ordinary handover.
const TELL_OUTAGE: Duration = Duration::from_secs(3);

/// The number of session events that are taken at once; while as many wait, the driver reads no
/// path.
const MAX_BATCH: usize = 64;

/// The one task that knows the machine.
pub(super) struct Manager {
    machine: Machine,
    dialer: Arc<Dialer>,
    driver: Handle,
    uplinks: Uplinks,
    connects: JoinSet<(PathId, Result<Connected, Failure>)>,
    aborts: HashMap<PathId, AbortHandle>,
    /// The relay's address on each open path.
    transports: HashMap<PathId, SocketAddr>,
    ledger: Ledger,
    suspend: Suspend,
    assignments: Assignments,
    /// The beginning of the last outage that the log has a line of.
    told_outage: Option<Instant>,
}

impl Manager {
    /// Has done nothing yet.
    pub(super) fn new(
        wishes: Wishes,
        dialer: Dialer,
        driver: Handle,
        uplinks: Uplinks,
        assigned: watch::Sender<Option<PushConfig>>,
    ) -> Self {
        Self {
            machine: Machine::new(wishes, dialer.families(), || rand::rng().random()),
            dialer: Arc::new(dialer),
            driver,
            uplinks,
            connects: JoinSet::new(),
            aborts: HashMap::new(),
            transports: HashMap::new(),
            ledger: Ledger::new(),
            suspend: Suspend::new(),
            assignments: Assignments::new(assigned),
            told_outage: None,
        }
    }

    /// Runs until the session or the watching of the uplinks has ended; says why.
    pub(super) async fn run(
        mut self,
        mut events: mpsc::Receiver<DriverEvent>,
        mut forces: mpsc::UnboundedReceiver<Option<String>>,
        publish: watch::Sender<State>,
    ) -> anyhow::Error {
        self.look_at_uplinks();
        let mut batch = Vec::new();
        loop {
            self.act();
            publish.send_replace(self.state());
            let deadlines = [self.machine.deadline(), self.tell_outage(), self.assignments.due()];
            let deadline = deadlines.into_iter().flatten().min();
            tokio::select! {
                changed = self.uplinks.known.changed() => {
                    if changed.is_err() {
                        // The uplinks' own task ends with the reason, perhaps a moment later on
                        // another thread.
                        return pending().await;
                    }
                    self.look_at_uplinks();
                }
                // Take all events that have come, and act and copy the state once for all of them.
                _ = events.recv_many(&mut batch, MAX_BATCH) => {
                    if matches!(batch.last(), Some(DriverEvent::Stopped) | None) {
                        return anyhow::anyhow!("the session has stopped");
                    }
                    batch.drain(..).for_each(|event| self.driver_event(event));
                }
                Some(result) = self.connects.join_next() => {
                    // An aborted task has nothing to say, and a panic was reported by its hook.
                    if let Ok((path, result)) = result {
                        self.connected(path, result);
                    }
                }
                Some(uplink) = forces.recv() => self.machine.force(Instant::now(), uplink),
                slept = self.suspend.over() => {
                    tracing::info!(slept_s = slept.as_secs(), "back from suspend: asking every path for a sign of life");
                    self.driver.probe();
                    self.uplinks.refresh();
                }
                () = at(deadline) => {
                    let now = Instant::now();
                    self.machine.tick(now);
                    self.assignments.tick(now);
                }
            }
        }
    }

    /// Says once of each outage that there is one; or when it will be time to.
    fn tell_outage(&mut self) -> Option<Instant> {
        let since = self.machine.outage_since().filter(|since| self.told_outage != Some(*since))?;
        let due = since + TELL_OUTAGE;
        if Instant::now() < due {
            return Some(due);
        }
        self.told_outage = Some(since);
        let usable_uplinks = self.machine.decision().candidates.join(" ");
        tracing::info!(
            usable_uplinks,
            "no path to the relay, open connections wait for one: `mobile uplinks` says why"
        );
        None
    }

    fn look_at_uplinks(&mut self) {
        let known = self.uplinks.known.borrow_and_update().clone();
        self.ledger.forget_absent(&known);
        self.machine.set_uplinks(Instant::now(), known);
    }

    fn driver_event(&mut self, event: DriverEvent) {
        let now = Instant::now();
        match event {
            DriverEvent::Session(Event::PathReady { path, resumed }) => {
                tracing::debug!(%path, resumed, "path ready");
                self.machine.path_ready(now, path);
                if let Some(uplink) = self.uplink_of(path) {
                    self.ledger.success(&uplink);
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
            DriverEvent::Session(Event::Config(config)) => self.assignments.offer(now, config),
            DriverEvent::Session(Event::PathProbing { path }) => {
                tracing::debug!(%path, "path doubted");
                if self.machine.uses(path) {
                    // A lost carrier is announced up to a second late, but never denied to who asks.
                    self.uplinks.refresh();
                }
            }
            DriverEvent::Session(Event::PathUnresponsive { path, silent_for }) => {
                let began = now.checked_sub(silent_for).unwrap_or(now);
                self.suspected(path, began, silent_for);
            }
            DriverEvent::Session(Event::PathRecovered { path }) => {
                self.machine.recovered(now, path);
                if let Some(uplink) = self.uplink_of(path).filter(|_| self.machine.uses(path)) {
                    tracing::info!(uplink, "the path answers again");
                }
            }
            DriverEvent::Session(Event::PathClosed { path, code }) => {
                let failure = Failure::closed(code, self.dialer.own_key());
                self.path_lost(path, Cause::RelayClosed, failure);
            }
            DriverEvent::PathError { path, cause } => {
                tracing::debug!(%path, error = %cause, "path failed");
                let failure = Failure::tls(&cause, self.dialer.own_key());
                self.path_lost(path, Cause::TransportFailed, failure);
            }
            DriverEvent::Stopped => {}
        }
    }

    fn suspected(&mut self, path: PathId, began: Instant, silent_for: Duration) {
        let Some(Lost { uplink, was }) = self.machine.suspect(Instant::now(), path, began) else { return };
        let silent_ms = u64::try_from(silent_for.as_millis()).unwrap_or(u64::MAX);
        if was == Was::Active {
            tracing::warn!(uplink, silent_ms, "the path has gone silent");
        } else {
            tracing::debug!(uplink, silent_ms, ?was, "a path that is not in use has gone silent");
        }
    }

    /// A path that was open is not any more: an attempt that failed late, one that was in use or stood by, or one given up already.
    fn path_lost(&mut self, path: PathId, cause: Cause, failure: Failure) {
        let now = Instant::now();
        self.transports.remove(&path);
        let Some(Lost { uplink, was }) = self.machine.path_lost(now, path, cause, failure.fault, now) else {
            return;
        };
        if was == Was::Attempt || failure.fault == Fault::Identity {
            self.ledger.failure(&uplink, failure);
        } else if was == Was::Active {
            tracing::warn!(uplink, cause = failure.problem.cause, "path lost");
        } else {
            tracing::debug!(uplink, cause = failure.problem.cause, "standby path lost");
        }
    }

    fn connected(&mut self, path: PathId, result: Result<Connected, Failure>) {
        let now = Instant::now();
        self.aborts.remove(&path);
        self.machine.set_families(now, self.dialer.families());
        match result {
            Ok(Connected { stream, local, remote }) => {
                if self.machine.transport_ready(now, path, connect::local_ip(local)) {
                    self.transports.insert(path, remote);
                    self.driver.open_path(path, stream);
                }
            }
            Err(failure) => self.path_lost(path, Cause::TransportFailed, failure),
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            tracing::trace!(?action, "tunnel");
            match action {
                Action::Connect { path, uplink, families, patience } => {
                    self.ledger.attempts += 1;
                    let dialer = Arc::clone(&self.dialer);
                    let abort = self
                        .connects
                        .spawn(async move { (path, dialer.connect(uplink, families, patience).await) });
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
                    let stage =
                        if opened { "it did not welcome us" } else { "it did not accept the connection" };
                    self.ledger.failure(&uplink, Failure::timeout(stage));
                }
                Action::Report(handover) => self.ledger.handover(Instant::now(), handover),
            }
        }
    }

    fn uplink_of(&self, path: PathId) -> Option<String> {
        let mut ready = self.machine.ready();
        ready.find(|(ready, _)| *ready == path).map(|(_, uplink)| uplink.to_owned())
    }

    /// What the rest of the agent may know.
    pub(super) fn state(&self) -> State {
        let active = self.machine.active().and_then(|active| {
            let remote = self.transports.get(&active.path)?;
            Some((active, *remote))
        });
        State {
            active,
            outage_since: self.machine.outage_since(),
            ready: self.machine.ready().map(|(path, uplink)| (path, uplink.to_owned())).collect(),
            connecting: self.machine.connecting().map(str::to_owned).collect(),
            uplinks: self.machine.uplinks().to_vec(),
            decision: self.machine.decision().clone(),
            forced: self.machine.forced().map(str::to_owned),
            ledger: self.ledger.clone(),
            assignments_deferred: self.assignments.deferred(),
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
