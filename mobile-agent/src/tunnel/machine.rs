//! Which paths to make, to use, to keep and to give up: decisions only. Events and time come in, actions come out.
//!
//! Here is what may happen; what follows from it is decided in one place, `reconcile`, whatever it was that happened.

mod candidate;
mod damping;
mod reconcile;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use globset::GlobMatcher;
use mobile_proto::PathId;

use super::cause::{Fault, HandoverCause};
use crate::uplinks::policy::{Decision, Families, Uplink};
use candidate::{CandidatePath, Stage};
use damping::Damping;

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Connect to the relay over this uplink, and report with [`Machine::transport_ready`] or [`Machine::path_lost`].
    Connect { path: PathId, uplink: String, families: Families, timeout: Duration },
    /// Stop connecting.
    Abort { path: PathId },
    /// Close an open path.
    Close { path: PathId },
    /// Ask every path for a sign of life: one of them may be on another network than before.
    Probe,
    /// Move the session to this path, and let the relay keep these.
    Activate { path: PathId, keep: Vec<PathId> },
    /// An attempt took too long. It is aborted or closed already.
    TimedOut { uplink: String, opened: bool },
    /// A handover is complete.
    RecordHandover(Handover),
}

/// A completed handover.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Handover {
    /// Why.
    pub(crate) cause: HandoverCause,
    /// The uplink it left.
    pub(crate) from: String,
    /// The uplink it went to.
    pub(crate) to: String,
    /// From the end of the old path, as far as it is known, until the relay answered on the new one.
    pub(crate) blackout: Duration,
    /// Records sent again.
    pub(crate) replayed: u64,
    /// Packets dropped here since the handover before.
    pub(crate) dropped: u64,
}

/// The path in use.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ActivePath {
    /// Its name.
    pub(crate) path: PathId,
    /// The uplink it is bound to.
    pub(crate) uplink: String,
    /// Since when it is in use.
    pub(crate) since: Instant,
}

/// A path that was open or being made and is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostPath {
    /// The uplink it was on.
    pub(crate) uplink: String,
    /// What it role.
    pub(crate) role: PathRole,
}

/// What a lost path role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathRole {
    /// Not welcomed by the relay yet.
    Attempt,
    /// Welcomed, and waiting for its turn.
    Standby,
    /// In use.
    Active,
}

/// What the agent's configuration says about paths.
#[derive(Debug)]
pub(crate) struct Preferences {
    /// `[uplink] prefer`, the most wanted first.
    pub(crate) prefer: Vec<GlobMatcher>,
    /// `[uplink] exclude`: uplinks that never carry the tunnel.
    pub(crate) exclude: Vec<GlobMatcher>,
    /// `[uplink] standby`: uplinks that hold a path while another one carries the tunnel.
    pub(crate) standby: Vec<GlobMatcher>,
}

/// The path that carries the session.
#[derive(Debug)]
struct CurrentPath {
    path: PathId,
    since: Instant,
    /// The relay has answered on it since.
    confirmed: bool,
    replayed: u64,
}

/// No path works.
#[derive(Debug, Clone)]
struct Outage {
    cause: HandoverCause,
    from: String,
    since: Instant,
}

/// The decisions. Call [`Machine::poll_action`] until it is empty after every event.
#[derive(Debug)]
pub(crate) struct Machine {
    preferences: Preferences,
    families: Families,
    /// A random number in 0..1: retries of many agents must not come in step.
    jitter: fn() -> f64,
    uplinks: Vec<Uplink>,
    forced: Option<String>,
    decision: Decision,
    /// At most one trusted path an uplink, and the ones under suspicion.
    paths: Vec<CandidatePath>,
    current: Option<CurrentPath>,
    /// Until the relay has answered on another path.
    outage: Option<Outage>,
    /// A handover away from a path that works: its cause, and the uplink it leaves.
    planned_handover: Option<(HandoverCause, String)>,
    /// What went wrong on the network that each uplink is on.
    damping: BTreeMap<String, Damping>,
    /// Uplinks whose link comes and goes: whatever network it comes back to.
    flapping: BTreeMap<String, Damping>,
    /// Packets dropped since the last handover.
    dropped: u64,
    next_path: u32,
    wake: Option<Instant>,
    actions: VecDeque<Action>,
}

impl Machine {
    /// Knows no uplinks yet.
    pub(crate) fn new(preferences: Preferences, families: Families, jitter: fn() -> f64) -> Self {
        Self {
            preferences,
            families,
            jitter,
            uplinks: Vec::new(),
            forced: None,
            decision: Decision::default(),
            paths: Vec::new(),
            current: None,
            outage: None,
            planned_handover: None,
            damping: BTreeMap::new(),
            flapping: BTreeMap::new(),
            dropped: 0,
            next_path: 1,
            wake: None,
            actions: VecDeque::new(),
        }
    }

    /// What is known of the uplinks has changed.
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
        // What failed on another network says nothing about this one.
        self.damping.retain(|name, _| !changed.contains(name));
        self.flapping.retain(|_, damping| !damping.is_expired(now));
        self.close_where(|candidate| {
            candidate.stage == Stage::Dialing && changed.contains(&candidate.uplink)
        });
        self.reconcile(now);
        // The address may be the same, and the network behind it, or its NAT, another.
        if self.paths.iter().any(|candidate| candidate.is_ready() && changed.contains(&candidate.uplink)) {
            self.actions.push_back(Action::Probe);
        }
    }

    /// The relay's addresses have become known.
    pub(crate) fn set_families(&mut self, now: Instant, families: Families) {
        if self.families != families {
            self.families = families;
            self.reconcile(now);
        }
    }

    /// `mobile use`.
    pub(crate) fn force(&mut self, now: Instant, uplink: Option<String>) {
        if let Some(name) = &uplink {
            self.damping.remove(name);
            self.flapping.remove(name);
        }
        self.forced = uplink;
        self.reconcile(now);
    }

    /// TCP and TLS are up. False: the attempt was given up meanwhile, drop the connection; otherwise open the path, then
    /// see to the actions.
    pub(crate) fn transport_ready(&mut self, now: Instant, path: PathId, local: IpAddr) -> bool {
        let Some(candidate) = self.paths.iter_mut().find(|candidate| candidate.path == path) else {
            return false;
        };
        candidate.stage = Stage::Greeting(local);
        self.reconcile(now);
        true
    }

    /// The relay has welcomed us on this path.
    pub(crate) fn path_ready(&mut self, now: Instant, path: PathId) {
        let Some(candidate) = self.paths.iter_mut().find(|candidate| candidate.path == path) else { return };
        let Some(local) = candidate.local() else { return };
        candidate.stage = Stage::Ready(local);
        (candidate.unresponsive_since, candidate.healthy_since) = (None, Some(now));
        self.reconcile(now);
    }

    /// The session has moved to this path.
    pub(crate) fn activated(&mut self, path: PathId, replayed: u64, dropped: u64) {
        // What was dropped on the way to a path that then failed was dropped too.
        self.dropped += dropped;
        if let Some(current) = self.current.as_mut().filter(|current| current.path == path) {
            current.replayed = replayed;
        }
    }

    /// The relay has answered on the path in use.
    pub(crate) fn confirmed(&mut self, now: Instant, path: PathId) {
        let Some(current) = self.current.as_mut().filter(|it| it.path == path && !it.confirmed) else {
            return;
        };
        current.confirmed = true;
        let (replayed, dropped) = (current.replayed, std::mem::take(&mut self.dropped));
        let left = match (self.outage.take(), self.planned_handover.take()) {
            (Some(outage), _) => {
                Some((outage.cause, outage.from, now.saturating_duration_since(outage.since)))
            }
            (None, Some((cause, from))) => Some((cause, from, Duration::ZERO)),
            // The first path of this run: nothing was interrupted.
            (None, None) => None,
        };
        if let Some((cause, from, blackout)) = left
            && let Some(to) = self.candidate(path).map(|candidate| candidate.uplink.clone())
        {
            let handover = Handover { cause, from, to, blackout, replayed, dropped };
            self.actions.push_back(Action::RecordHandover(handover));
        }
        self.reconcile(now);
    }

    /// Nothing that should be answered on this path is, since `began`: it may be dead. It stays open, and is used again
    /// if it comes back to life.
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
            reset_damping_if_healthy(&mut self.damping, now, &mut self.paths[index]);
            self.damping.entry(lost.uplink.clone()).or_default().record_silence(now);
        }
        if lost.role == PathRole::Active {
            self.begin_outage(HandoverCause::Silent, &lost.uplink, began);
        }
        self.reconcile(now);
        Some(lost)
    }

    /// Something was heard on a path under suspicion.
    pub(crate) fn recovered(&mut self, now: Instant, path: PathId) {
        let Some(candidate) = self.paths.iter_mut().find(|candidate| candidate.path == path) else { return };
        (candidate.unresponsive_since, candidate.healthy_since) = (None, Some(now));
        if self.current.as_ref().is_some_and(|current| current.path == path && current.confirmed) {
            // It never was one: the path was slow.
            self.outage = None;
        }
        self.reconcile(now);
    }

    /// The path is dead, or the attempt failed, and `began` is when. `None` if it was given up before.
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
        let good = lost.role != PathRole::Attempt
            && reset_damping_if_healthy(&mut self.damping, now, &mut candidate);
        self.current.take_if(|current| current.path == path);
        if lost.role == PathRole::Active {
            self.begin_outage(cause, &lost.uplink, began);
        }
        // Whatever ended a good path (a relay that restarts, mostly), the first attempt after it is made at once. One that
        // was silent before has been blamed for that.
        if !good && candidate.unresponsive_since.is_none() {
            let jitter = (self.jitter)();
            self.damping.entry(lost.uplink.clone()).or_default().record_failure(now, fault, jitter);
        }
        self.reconcile(now);
        Some(lost)
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.reconcile(now);
    }

    /// When to call [`Machine::tick`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.wake
    }

    /// The next thing to do.
    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The path in use, unless the relay is still to answer on it, or does not any more.
    pub(crate) fn active(&self) -> Option<ActivePath> {
        let CurrentPath { path, since, confirmed, .. } = *self.current.as_ref()?;
        let works = self.outage.is_none() && (confirmed || self.planned_handover.is_some());
        let uplink = self.candidate(path).filter(|_| works)?.uplink.clone();
        Some(ActivePath { path, uplink, since })
    }

    /// Since when no path works, if one did before.
    pub(crate) fn outage_since(&self) -> Option<Instant> {
        self.outage.as_ref().map(|outage| outage.since)
    }

    /// The uplinks being tried.
    pub(crate) fn connecting(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().filter(|candidate| !candidate.is_ready()).map(|candidate| candidate.uplink.as_str())
    }

    /// Whether this path carries the session, or is to.
    pub(crate) fn is_current(&self, path: PathId) -> bool {
        self.current.as_ref().is_some_and(|current| current.path == path)
    }

    /// The paths that the relay has welcomed, each with its uplink.
    pub(crate) fn ready(&self) -> impl Iterator<Item = (PathId, &str)> {
        self.paths
            .iter()
            .filter(|candidate| candidate.is_ready())
            .map(|candidate| (candidate.path, candidate.uplink.as_str()))
    }

    /// What is known of the uplinks.
    pub(crate) fn uplinks(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// The policy's choice.
    pub(crate) fn decision(&self) -> &Decision {
        &self.decision
    }

    /// The uplink `mobile use` named.
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

    /// An outage that goes on keeps its first cause.
    fn begin_outage(&mut self, cause: HandoverCause, from: &str, since: Instant) {
        self.planned_handover = None;
        self.outage.get_or_insert_with(|| Outage { cause, from: from.to_owned(), since });
    }
}

/// True if the path lived well, which makes up for what its uplink did before. A life is judged once.
fn reset_damping_if_healthy(
    record: &mut BTreeMap<String, Damping>,
    now: Instant,
    candidate: &mut CandidatePath,
) -> bool {
    let Some(since) = candidate.healthy_since.take() else { return false };
    let life = now.saturating_duration_since(since);
    let good = record.entry(candidate.uplink.clone()).or_default().is_reset_by(life);
    if good {
        record.remove(&candidate.uplink);
    }
    good
}

#[cfg(test)]
mod tests;
