//! The tunnel: keeps the session on the best uplink. `machine` decides, this does.

pub(crate) mod cause;
pub(crate) mod connect;
pub(crate) mod io;
pub(crate) mod ledger;
pub(crate) mod machine;

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use globset::GlobMatcher;
use mobile_io::driver::{self, DriverEvent, Handle};
use mobile_proto::{CloseCode, Event, Limits, PathId, PushConfig, Session, SessionId};
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::uplinks::policy::{Decision, Uplink};
use cause::{Cause, Failure, Fault};
use connect::{Connected, Dialer};
use io::TunIo;
use ledger::Ledger;
use machine::{Action, Active, Machine};

/// What the rest of the agent asks of the tunnel.
#[derive(Clone)]
pub(crate) struct Tunnel {
    /// The running session.
    pub(crate) driver: Handle,
    /// What the manager knows.
    pub(crate) state: watch::Receiver<State>,
    /// What the relay assigned, whenever it says so.
    pub(crate) assigned: watch::Receiver<Option<PushConfig>>,
    force: mpsc::UnboundedSender<Option<String>>,
}

/// What the manager knows, for status and metrics.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// The path in use, and the relay's address on it.
    pub(crate) active: Option<(Active, SocketAddr)>,
    /// Since when there is none, if there was one.
    pub(crate) outage_since: Option<Instant>,
    /// The uplinks being tried.
    pub(crate) connecting: Vec<String>,
    /// What is known of the uplinks.
    pub(crate) uplinks: Vec<Uplink>,
    /// The policy's choice.
    pub(crate) decision: Decision,
    /// The uplink `mobile use` named.
    pub(crate) forced: Option<String>,
    /// What happened.
    pub(crate) ledger: Ledger,
}

/// `[uplink]`, compiled.
pub(crate) struct Wishes {
    /// Globs, the most wanted first.
    pub(crate) prefer: Vec<GlobMatcher>,
    /// Globs that never carry the tunnel.
    pub(crate) exclude: Vec<GlobMatcher>,
}

impl Tunnel {
    /// Starts the session and its manager. The returned future ends only when the session does, with the reason.
    pub(crate) fn start(
        dialer: Dialer,
        wishes: Wishes,
        device: TunIo,
        uplinks: watch::Receiver<Vec<Uplink>>,
    ) -> (Self, impl Future<Output = anyhow::Error>) {
        let (events_in, events) = mpsc::unbounded_channel();
        let session = Session::client(SessionId(rand::random()), Limits::default());
        let driver = driver::spawn(session, device, events_in);
        let machine = Machine::new(wishes.prefer, wishes.exclude, dialer.families(), || rand::rng().random());
        let (force, forces) = mpsc::unbounded_channel();
        let (assigned_in, assigned) = watch::channel(None);
        let manager = Manager {
            machine,
            dialer: Arc::new(dialer),
            driver: driver.clone(),
            connects: JoinSet::new(),
            aborts: HashMap::new(),
            transports: HashMap::new(),
            ledger: Ledger::new(),
            assigned: assigned_in,
        };
        let (publish, state) = watch::channel(manager.state());
        (Self { driver, state, assigned, force }, manager.run(events, uplinks, forces, publish))
    }

    /// `mobile use`.
    pub(crate) fn force(&self, uplink: Option<String>) {
        // The manager ends only together with the agent.
        let _ = self.force.send(uplink);
    }
}

struct Manager {
    machine: Machine,
    dialer: Arc<Dialer>,
    driver: Handle,
    connects: JoinSet<(PathId, Result<Connected, Failure>)>,
    aborts: HashMap<PathId, AbortHandle>,
    /// The relay's address on each open path.
    transports: HashMap<PathId, SocketAddr>,
    ledger: Ledger,
    assigned: watch::Sender<Option<PushConfig>>,
}

impl Manager {
    async fn run(
        mut self,
        mut events: mpsc::UnboundedReceiver<DriverEvent>,
        mut uplinks: watch::Receiver<Vec<Uplink>>,
        mut forces: mpsc::UnboundedReceiver<Option<String>>,
        publish: watch::Sender<State>,
    ) -> anyhow::Error {
        let known = uplinks.borrow_and_update().clone();
        self.machine.set_uplinks(Instant::now(), known);
        loop {
            self.act();
            publish.send_replace(self.state());
            let deadline = self.machine.deadline();
            tokio::select! {
                changed = uplinks.changed() => {
                    if changed.is_err() {
                        return anyhow::anyhow!("the uplinks are not watched any more");
                    }
                    let known = uplinks.borrow_and_update().clone();
                    self.machine.set_uplinks(Instant::now(), known);
                }
                event = events.recv() => match event {
                    Some(DriverEvent::Stopped) | None => return anyhow::anyhow!("the session has stopped"),
                    Some(event) => self.driver_event(event),
                },
                Some(result) = self.connects.join_next() => {
                    // An aborted task has nothing to say, and a panic was reported by its hook.
                    if let Ok((path, result)) = result {
                        self.connected(path, result);
                    }
                }
                Some(uplink) = forces.recv() => self.machine.force(Instant::now(), uplink),
                () = at(deadline) => self.machine.tick(Instant::now()),
            }
        }
    }

    fn driver_event(&mut self, event: DriverEvent) {
        let now = Instant::now();
        match event {
            DriverEvent::Session(Event::PathReady { path, resumed }) => {
                tracing::debug!(%path, resumed, "path ready");
                self.machine.path_ready(now, path);
                if let Some(active) = self.machine.active().filter(|active| active.path == path) {
                    self.ledger.success(&active.uplink);
                    tracing::info!(uplink = active.uplink, local = %active.local, resumed, "path active");
                }
            }
            DriverEvent::Session(Event::Activated { path, replayed, .. }) => {
                self.machine.activated(path, replayed);
            }
            DriverEvent::Session(Event::Config(config)) => {
                self.assigned.send_if_modified(|known| {
                    let new = known.as_ref() != Some(&config);
                    *known = Some(config);
                    new
                });
            }
            DriverEvent::Session(Event::PathClosed { path, code }) => {
                let failure = Failure::closed(code, self.dialer.own_key());
                self.path_gone(path, Cause::RelayClosed, now, failure);
            }
            DriverEvent::Session(Event::PathSuspect { path, silent_for }) => {
                let failure = Failure::timeout("the path has gone silent");
                self.driver.close_path(path, CloseCode::Timeout);
                self.path_gone(path, Cause::Silent, now.checked_sub(silent_for).unwrap_or(now), failure);
            }
            DriverEvent::PathError { path, cause, error } => {
                tracing::debug!(%path, error, "path failed");
                let failure = Failure::tls(&cause, self.dialer.own_key());
                self.path_gone(path, Cause::TransportFailed, now, failure);
            }
            DriverEvent::Session(Event::PathDoubted { .. } | Event::PathRecovered { .. })
            | DriverEvent::Stopped => {}
        }
    }

    /// A path that was open is not any more: an attempt that failed late, the active path, or one given up already.
    fn path_gone(&mut self, path: PathId, cause: Cause, began: Instant, failure: Failure) {
        let now = Instant::now();
        self.transports.remove(&path);
        if let Some(uplink) = self.machine.attempt_failed(now, path, failure.fault) {
            self.ledger.failure(&uplink, failure);
        } else if let Some(uplink) = self.machine.path_lost(now, path, cause, began) {
            if failure.fault == Fault::Identity {
                self.ledger.failure(&uplink, failure);
            } else {
                tracing::warn!(uplink, cause = failure.problem.cause, "path lost");
            }
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
            Err(failure) => {
                if let Some(uplink) = self.machine.attempt_failed(now, path, failure.fault) {
                    self.ledger.failure(&uplink, failure);
                }
            }
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
                Action::Activate { path } => self.driver.activate(path, vec![path]),
                Action::TimedOut { uplink, opened } => {
                    let stage =
                        if opened { "it did not welcome us" } else { "it did not accept the connection" };
                    self.ledger.failure(&uplink, Failure::timeout(stage));
                }
                Action::Report(handover) => self.ledger.handover(Instant::now(), handover),
            }
        }
    }

    fn state(&self) -> State {
        let active = self.machine.active().and_then(|active| {
            let remote = self.transports.get(&active.path)?;
            Some((active.clone(), *remote))
        });
        State {
            active,
            outage_since: self.machine.outage_since(),
            connecting: self.machine.connecting().map(str::to_owned).collect(),
            uplinks: self.machine.uplinks().to_vec(),
            decision: self.machine.decision().clone(),
            forced: self.machine.forced().map(str::to_owned),
            ledger: self.ledger.clone(),
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
