//! Decides which paths of the tunnel to open, use, keep and close, without performing I/O.
//!
//! Events and the current time come in through methods of [`Machine`]; [`Action`]s come out through
//! [`Machine::poll_action`]. This file records the events. `reconcile` derives every consequence in
//! one place, whatever the event was. `track_record` holds what happened on each uplink before, and
//! `damping` decides by it when a failing uplink is tried again. `transition` measures outages and
//! handovers.

mod action;
mod candidate;
mod configure;
mod damping;
mod reconcile;
mod track_record;
mod transition;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use globset::GlobMatcher;
use mobile_proto::PathId;

use super::cause::{Fault, HandoverCause};
use crate::uplinks::policy::{Decision, Families, Uplink};
pub(crate) use action::{Action, Handover};
use candidate::{CandidatePath, Stage};
use track_record::TrackRecord;
use transition::Transition;

/// The path in use.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ActivePath {
    /// The number of the path.
    pub(crate) path: PathId,
    /// The uplink that the path is bound to.
    pub(crate) uplink: String,
    /// When the session moved to the path.
    pub(crate) since: Instant,
}

/// A path that was open or being opened and is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostPath {
    /// The uplink of the path.
    pub(crate) uplink: String,
    /// The role of the path before the loss.
    pub(crate) role: PathRole,
}

/// The role that a path had before it was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathRole {
    /// The relay had not accepted the path by WELCOME yet.
    Attempt,
    /// The relay had accepted the path by WELCOME, and another path was in use.
    Standby,
    /// The path was in use.
    Active,
}

/// The `[uplink]` settings that concern paths.
#[derive(Debug)]
pub(crate) struct Preferences {
    /// The globs of `[uplink] prefer`, most preferred first.
    pub(crate) prefer: Vec<GlobMatcher>,
    /// The globs of `[uplink] exclude`: uplinks that never carry the tunnel.
    pub(crate) exclude: Vec<GlobMatcher>,
    /// The globs of `[uplink] standby`: uplinks that hold a standby path while another uplink
    /// carries the tunnel.
    pub(crate) standby: Vec<GlobMatcher>,
}

/// The path that carries the session.
#[derive(Debug)]
struct CurrentPath {
    path: PathId,
    since: Instant,
    /// Whether the relay has answered on the path since the session moved to it.
    confirmed: bool,
    replayed: u64,
}

/// The state machine that decides which paths the tunnel opens, uses and closes.
///
/// After every event, call [`Machine::poll_action`] until it returns `None`.
#[derive(Debug)]
pub(crate) struct Machine {
    preferences: Preferences,
    families: Families,
    uplinks: Vec<Uplink>,
    forced: Option<String>,
    decision: Decision,
    /// The paths: at most one responsive path on each uplink, and any number of unresponsive ones.
    paths: Vec<CandidatePath>,
    current: Option<CurrentPath>,
    transition: Transition,
    record: TrackRecord,
    next_path: u32,
    wake: Option<Instant>,
    actions: VecDeque<Action>,
}

impl Machine {
    /// Creates a machine that knows no uplinks; `families` are those in which the relay has an
    /// address.
    pub(crate) fn new(preferences: Preferences, families: Families, jitter: fn() -> f64) -> Self {
        Self {
            preferences,
            families,
            uplinks: Vec::new(),
            forced: None,
            decision: Decision::default(),
            paths: Vec::new(),
            current: None,
            transition: Transition::default(),
            record: TrackRecord::new(jitter),
            next_path: 1,
            wake: None,
            actions: VecDeque::new(),
        }
    }

    /// Replaces the known uplinks and their properties.
    pub(crate) fn set_uplinks(&mut self, now: Instant, uplinks: Vec<Uplink>) {
        let before = |name: &str| self.uplinks.iter().find(|uplink| uplink.name == name);
        let mut changed: BTreeSet<String> = uplinks
            .iter()
            .filter(|now| before(&now.name).is_none_or(|before| now.is_different_network(before)))
            .map(|uplink| uplink.name.clone())
            .collect();
        let gone = self.uplinks.iter().filter(|old| uplinks.iter().all(|new| new.name != old.name));
        changed.extend(gone.map(|uplink| uplink.name.clone()));
        self.uplinks = uplinks;
        self.record.networks_changed(now, &changed);
        self.close_where(|candidate| {
            candidate.stage == Stage::Dialing && changed.contains(&candidate.uplink)
        });
        self.reconcile(now);
        // The address may be the same although the network or its NAT is another.
        if self.paths.iter().any(|candidate| candidate.is_ready() && changed.contains(&candidate.uplink)) {
            self.actions.push_back(Action::Probe);
        }
    }

    /// Sets the address families in which the relay has an address.
    pub(crate) fn set_families(&mut self, now: Instant, families: Families) {
        if self.families != families {
            self.families = families;
            self.reconcile(now);
        }
    }

    /// Forces the session onto an uplink (`mobile use`); `None` restores automatic choice.
    pub(crate) fn force(&mut self, now: Instant, uplink: Option<String>) {
        if let Some(name) = &uplink {
            self.record.forget(name);
        }
        self.forced = uplink;
        self.reconcile(now);
    }

    /// Records that TCP and TLS are established on a path.
    ///
    /// Returns false if the attempt was closed meanwhile; the caller then drops the connection.
    /// Otherwise the caller opens the path and then polls the actions.
    pub(crate) fn transport_ready(&mut self, now: Instant, path: PathId, local: IpAddr) -> bool {
        let Some(candidate) = self.paths.iter_mut().find(|candidate| candidate.path == path) else {
            return false;
        };
        candidate.stage = Stage::Greeting(local);
        self.reconcile(now);
        true
    }

    /// Records that the relay has accepted a path by WELCOME.
    pub(crate) fn path_ready(&mut self, now: Instant, path: PathId) {
        let Some(candidate) = self.paths.iter_mut().find(|candidate| candidate.path == path) else { return };
        let Some(local) = candidate.local() else { return };
        candidate.stage = Stage::Ready(local);
        (candidate.unresponsive_since, candidate.healthy_since) = (None, Some(now));
        self.reconcile(now);
    }

    /// Records that the session has moved to a path.
    pub(crate) fn activated(&mut self, path: PathId, replayed: u64, dropped: u64) {
        // Count packets that were dropped before the move even if this path fails too.
        self.transition.count_dropped(dropped);
        if let Some(current) = self.current.as_mut().filter(|current| current.path == path) {
            current.replayed = replayed;
        }
    }

    /// Records that the relay has answered on the path in use.
    pub(crate) fn confirmed(&mut self, now: Instant, path: PathId) {
        let Some(current) = self.current.as_mut().filter(|it| it.path == path && !it.confirmed) else {
            return;
        };
        current.confirmed = true;
        let replayed = current.replayed;
        let to = self.candidate(path).map(|candidate| candidate.uplink.clone());
        let completed = self.transition.complete(now, to, replayed);
        self.actions.extend(completed.map(Action::RecordHandover));
        self.reconcile(now);
    }

    /// Marks a path as unresponsive: expected answers are missing since `began`.
    ///
    /// The path stays open and is used again if the relay answers on it. Returns the uplink and
    /// role of the path, or `None` if it is unknown or marked already.
    pub(crate) fn mark_unresponsive(
        &mut self,
        now: Instant,
        path: PathId,
        began: Instant,
    ) -> Option<LostPath> {
        let index = self
            .paths
            .iter()
            .position(|candidate| candidate.path == path && candidate.unresponsive_since.is_none())?;
        self.paths[index].unresponsive_since = Some(now);
        let lost = self.lost(index);
        if lost.role != PathRole::Attempt {
            self.record.clear_failures_if_healthy(now, &mut self.paths[index]);
            self.record.silence(now, &lost.uplink);
        }
        if lost.role == PathRole::Active {
            self.transition.begin_outage(HandoverCause::Silent, &lost.uplink, began);
        }
        self.reconcile(now);
        Some(lost)
    }

    /// Records that the relay answered on an unresponsive path.
    pub(crate) fn recovered(&mut self, now: Instant, path: PathId) {
        let Some(candidate) = self.paths.iter_mut().find(|candidate| candidate.path == path) else { return };
        (candidate.unresponsive_since, candidate.healthy_since) = (None, Some(now));
        if self.current.as_ref().is_some_and(|current| current.path == path && current.confirmed) {
            // The path was only slow, so there was no outage.
            self.transition.outage = None;
        }
        self.reconcile(now);
    }

    /// Records that a path died, or that a connection attempt failed, at `began`. Returns the lost
    /// path, or `None` if it was closed before.
    pub(crate) fn path_lost(
        &mut self,
        now: Instant,
        path: PathId,
        cause: HandoverCause,
        fault: Fault,
        began: Instant,
    ) -> Option<LostPath> {
        let index = self.paths.iter().position(|candidate| candidate.path == path)?;
        let lost = self.lost(index);
        let mut candidate = self.paths.swap_remove(index);
        let good =
            lost.role != PathRole::Attempt && self.record.clear_failures_if_healthy(now, &mut candidate);
        self.current.take_if(|current| current.path == path);
        if lost.role == PathRole::Active {
            self.transition.begin_outage(cause, &lost.uplink, began);
        }
        // After a healthy path ended (usually because the relay restarts), the first new attempt
        // starts at once. An unresponsive path has a failure on record already.
        if !good && candidate.unresponsive_since.is_none() {
            self.record.failure(now, &lost.uplink, fault);
        }
        self.reconcile(now);
        Some(lost)
    }

    /// Re-evaluates all decisions because time has passed.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.reconcile(now);
    }

    /// Returns when to call [`Machine::tick`] next; `None` if only an event can change a decision.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.wake
    }

    /// Returns the next action to carry out.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns the path in use. Returns `None` during an outage, and before the relay has answered
    /// on the first path.
    pub(crate) fn active(&self) -> Option<ActivePath> {
        let CurrentPath { path, since, confirmed, .. } = *self.current.as_ref()?;
        let works = self.transition.outage.is_none() && (confirmed || self.transition.planned.is_some());
        let uplink = self.candidate(path).filter(|_| works)?.uplink.clone();
        Some(ActivePath { path, uplink, since })
    }

    /// Returns when the current outage began; `None` if there is none.
    pub(crate) fn outage_since(&self) -> Option<Instant> {
        self.transition.outage.as_ref().map(|outage| outage.since)
    }

    /// Returns the uplinks with a connection attempt in progress.
    pub(crate) fn connecting(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().filter(|candidate| !candidate.is_ready()).map(|candidate| candidate.uplink.as_str())
    }

    /// Returns whether the session is on this path or moving to it.
    pub(crate) fn is_current(&self, path: PathId) -> bool {
        self.current.as_ref().is_some_and(|current| current.path == path)
    }

    /// Returns the paths that the relay has accepted by WELCOME, each with its uplink.
    pub(crate) fn ready(&self) -> impl Iterator<Item = (PathId, &str)> {
        self.paths
            .iter()
            .filter(|candidate| candidate.is_ready())
            .map(|candidate| (candidate.path, candidate.uplink.as_str()))
    }

    /// Returns the known uplinks.
    pub(crate) fn uplinks(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// Returns the policy's ranking of the uplinks.
    pub(crate) fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Returns the uplink that `mobile use` named.
    pub(crate) fn forced(&self) -> Option<&str> {
        self.forced.as_deref()
    }

    fn candidate(&self, path: PathId) -> Option<&CandidatePath> {
        self.paths.iter().find(|candidate| candidate.path == path)
    }

    fn lost(&self, index: usize) -> LostPath {
        let candidate = &self.paths[index];
        let active = self.current.as_ref().is_some_and(|current| current.path == candidate.path);
        let role = match (active, candidate.is_ready()) {
            (_, false) => PathRole::Attempt,
            (true, true) => PathRole::Active,
            (false, true) => PathRole::Standby,
        };
        LostPath { uplink: candidate.uplink.clone(), role }
    }
}

#[cfg(test)]
mod tests;
