//! Which path to make, to use and to give up: decisions only. Events and time come in, actions come out.
//!
//! While a path is active, at most one better uplink is tried beside it (make before break). While none is, every
//! usable uplink is tried, the best first and the next a moment later, and the first that is ready wins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use globset::GlobMatcher;
use mobile_proto::PathId;

use super::cause::{Cause, Fault};
use crate::uplinks::policy::{self, Decision, Families, Obstacle, Uplink, Wishes};

/// The head start of the better uplink when none is active: several usual round-trip times, less than a person notices.
const STAGGER: Duration = Duration::from_millis(250);
/// An attempt's patience: two of TCP's SYN retransmissions; doubled while it keeps failing, for slow links.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most patience: a link this slow carries no session.
const MAX_PATIENCE: Duration = Duration::from_secs(12);
/// The pause after the first failure, doubled with each: a relay that restarts is back within tens of milliseconds.
const RETRY: Duration = Duration::from_millis(50);
/// The longest pause: mobile processes are waiting.
const MAX_RETRY: Duration = Duration::from_secs(1);
/// The longest pause when a key is refused: a person has to act first, and then waits for us.
const MAX_RETRY_IDENTITY: Duration = Duration::from_secs(5);
/// How long an uplink that failed comes after the others, doubled with each failure, so that a flapping one is damped.
const AVOID: Duration = Duration::from_secs(1);
/// The longest: it may have recovered without any sign.
const MAX_AVOID: Duration = Duration::from_secs(60);
/// A path that lived this long was good: what comes after it is a new failure, not one more.
const GOOD_LIFE: Duration = Duration::from_secs(10);

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Connect to the relay over this uplink, and report with [`Machine::transport_ready`] or [`Machine::attempt_failed`].
    Connect { path: PathId, uplink: String, families: Families, patience: Duration },
    /// Stop connecting.
    Abort { path: PathId },
    /// Close an open path.
    Close { path: PathId },
    /// Move the session to this path.
    Activate { path: PathId },
    /// An attempt took too long. It is aborted or closed already.
    TimedOut { uplink: String, opened: bool },
    /// A handover is complete.
    Report(Handover),
}

/// A completed handover.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Handover {
    /// Why.
    pub(crate) cause: Cause,
    /// The uplink it left.
    pub(crate) from: String,
    /// The uplink it went to.
    pub(crate) to: String,
    /// How long no path was active.
    pub(crate) blackout: Duration,
    /// Records sent again.
    pub(crate) replayed: u64,
}

/// The path in use.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Active {
    /// Its name.
    pub(crate) path: PathId,
    /// The uplink it is bound to.
    pub(crate) uplink: String,
    /// The address it is bound to.
    pub(crate) local: IpAddr,
    /// Since when it is active.
    pub(crate) since: Instant,
}

#[derive(Debug)]
struct Attempt {
    path: PathId,
    uplink: String,
    started: Instant,
    deadline: Instant,
    /// Set once TLS is up and the session's greeting is under way.
    local: Option<IpAddr>,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    retry_at: Option<Instant>,
    avoid_until: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Outage {
    cause: Cause,
    from: String,
    since: Instant,
}

/// The decisions. Call [`Machine::poll_action`] until it is empty after every event.
#[derive(Debug)]
pub(crate) struct Machine {
    prefer: Vec<GlobMatcher>,
    exclude: Vec<GlobMatcher>,
    families: Families,
    /// A random number in 0..1: retries of many agents must not come in step.
    jitter: fn() -> f64,
    uplinks: Vec<Uplink>,
    forced: Option<String>,
    decision: Decision,
    active: Option<Active>,
    outage: Option<Outage>,
    attempts: Vec<Attempt>,
    health: BTreeMap<String, Health>,
    switching: Option<(PathId, Handover)>,
    next_path: u32,
    wake: Option<Instant>,
    actions: VecDeque<Action>,
}

impl Machine {
    /// Knows no uplinks yet.
    pub(crate) fn new(
        prefer: Vec<GlobMatcher>,
        exclude: Vec<GlobMatcher>,
        families: Families,
        jitter: fn() -> f64,
    ) -> Self {
        Self {
            prefer,
            exclude,
            families,
            jitter,
            uplinks: Vec::new(),
            forced: None,
            decision: Decision::default(),
            active: None,
            outage: None,
            attempts: Vec::new(),
            health: BTreeMap::new(),
            switching: None,
            next_path: 1,
            wake: None,
            actions: VecDeque::new(),
        }
    }

    /// What is known of the uplinks has changed.
    pub(crate) fn set_uplinks(&mut self, now: Instant, uplinks: Vec<Uplink>) {
        let changed: BTreeSet<String> = self
            .uplinks
            .iter()
            .filter(|old| !uplinks.contains(old))
            .chain(uplinks.iter().filter(|new| !self.uplinks.contains(new)))
            .map(|uplink| uplink.name.clone())
            .collect();
        self.uplinks = uplinks;
        // What failed on another network says nothing about this one.
        self.health.retain(|name, _| !changed.contains(name));
        self.abandon(|attempt| attempt.local.is_none() && changed.contains(&attempt.uplink));
        self.reconcile(now);
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
            self.health.remove(name);
        }
        self.forced = uplink;
        self.reconcile(now);
    }

    /// TCP and TLS are up. False: the attempt was given up meanwhile, drop the connection.
    pub(crate) fn transport_ready(&mut self, now: Instant, path: PathId, local: IpAddr) -> bool {
        let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.path == path) else {
            return false;
        };
        attempt.local = Some(local);
        self.reconcile(now);
        self.attempts.iter().any(|attempt| attempt.path == path)
    }

    /// The attempt failed, before or after [`Machine::transport_ready`]. Gives the uplink it was on.
    pub(crate) fn attempt_failed(&mut self, now: Instant, path: PathId, fault: Fault) -> Option<String> {
        let index = self.attempts.iter().position(|attempt| attempt.path == path)?;
        let attempt = self.attempts.swap_remove(index);
        self.blame(now, &attempt.uplink, fault);
        self.reconcile(now);
        Some(attempt.uplink)
    }

    /// The relay has welcomed us on this path.
    pub(crate) fn path_ready(&mut self, now: Instant, path: PathId) {
        let Some(index) = self.attempts.iter().position(|attempt| attempt.path == path) else { return };
        let attempt = self.attempts.swap_remove(index);
        let Some(local) = attempt.local else { return };
        let to = attempt.uplink;
        self.actions.push_back(Action::Activate { path });
        let previous = self.active.replace(Active { path, uplink: to.clone(), local, since: now });
        let handover =
            |cause, from, blackout| Handover { cause, from, to: to.clone(), blackout, replayed: 0 };
        self.switching = match (self.outage.take(), previous) {
            (Some(Outage { cause, from, since }), _) => {
                Some((path, handover(cause, from, now.saturating_duration_since(since))))
            }
            (None, Some(previous)) => {
                self.actions.push_back(Action::Close { path: previous.path });
                let forced = self.forced.as_deref() == Some(to.as_str());
                let cause = if forced { Cause::Forced } else { Cause::BetterUplink };
                Some((path, handover(cause, previous.uplink, Duration::ZERO)))
            }
            // The first path of this run: nothing was interrupted.
            (None, None) => None,
        };
        self.reconcile(now);
    }

    /// The session has moved to this path.
    pub(crate) fn activated(&mut self, path: PathId, replayed: u64) {
        if let Some((_, handover)) = self.switching.take_if(|(switching, _)| *switching == path) {
            self.actions.push_back(Action::Report(Handover { replayed, ..handover }));
        }
    }

    /// A path that was ready is dead, since `began`. Gives the uplink if it was the active one.
    pub(crate) fn path_lost(
        &mut self,
        now: Instant,
        path: PathId,
        cause: Cause,
        began: Instant,
    ) -> Option<String> {
        let active = self.active.take_if(|active| active.path == path)?;
        if now.saturating_duration_since(active.since) >= GOOD_LIFE {
            self.health.remove(&active.uplink);
            if cause == Cause::Silent {
                self.blame(now, &active.uplink, Fault::Uplink);
                // Damped in order, not in time: it may be the only one.
                self.health.entry(active.uplink.clone()).or_default().retry_at = None;
            }
        } else {
            let fault = if cause == Cause::Silent { Fault::Uplink } else { Fault::Relay };
            self.blame(now, &active.uplink, fault);
        }
        self.outage.get_or_insert(Outage { cause, from: active.uplink.clone(), since: began });
        self.reconcile(now);
        Some(active.uplink)
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant) {
        let late: Vec<PathId> = self
            .attempts
            .iter()
            .filter(|attempt| attempt.deadline <= now)
            .map(|attempt| attempt.path)
            .collect();
        for path in late {
            self.abandon_with(
                |attempt| attempt.path == path,
                |machine, attempt| {
                    machine.blame(now, &attempt.uplink, Fault::Uplink);
                    machine.actions.push_back(Action::TimedOut {
                        uplink: attempt.uplink,
                        opened: attempt.local.is_some(),
                    });
                },
            );
        }
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

    /// The path in use.
    pub(crate) fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    /// Since when there is no path, if there was one.
    pub(crate) fn outage_since(&self) -> Option<Instant> {
        self.outage.as_ref().map(|outage| outage.since)
    }

    /// The uplinks being tried.
    pub(crate) fn connecting(&self) -> impl Iterator<Item = &str> {
        self.attempts.iter().map(|attempt| attempt.uplink.as_str())
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

    fn reconcile(&mut self, now: Instant) {
        self.decide(now);
        if let Some(cause) = self.obstacle_of_active() {
            if let Some(active) = self.active.take() {
                self.actions.push_back(Action::Close { path: active.path });
                self.outage.get_or_insert(Outage { cause, from: active.uplink, since: now });
            }
            self.decide(now);
        }
        let wanted = self.wanted();
        let uplinks = std::mem::take(&mut self.uplinks);
        self.abandon(|attempt| {
            let rebound = attempt.local.is_some_and(|local| {
                !uplinks
                    .iter()
                    .any(|uplink| uplink.name == attempt.uplink && uplink.addresses.contains(&local))
            });
            rebound || !wanted.contains(&attempt.uplink)
        });
        self.uplinks = uplinks;
        self.wake = None;
        self.start(now, &wanted);
        let deadlines = self.attempts.iter().map(|attempt| attempt.deadline);
        let avoided =
            self.health.values().filter_map(|health| health.avoid_until).filter(|until| *until > now);
        self.wake = self.wake.into_iter().chain(deadlines).chain(avoided).min();
    }

    fn decide(&mut self, now: Instant) {
        let current = self.active.as_ref().map(|active| active.uplink.as_str());
        let failing: BTreeSet<String> = self
            .health
            .iter()
            .filter(|(name, health)| {
                health.avoid_until.is_some_and(|until| until > now) && current != Some(name.as_str())
            })
            .map(|(name, _)| name.clone())
            .collect();
        self.decision = policy::decide(
            &self.uplinks,
            &Wishes {
                forced: self.forced.as_deref(),
                prefer: &self.prefer,
                exclude: &self.exclude,
                families: self.families,
                current,
                failing: &failing,
            },
        );
    }

    /// Why the active path cannot go on, judged by its uplink.
    fn obstacle_of_active(&self) -> Option<Cause> {
        let active = self.active.as_ref()?;
        let Some(uplink) = self.uplinks.iter().find(|uplink| uplink.name == active.uplink) else {
            return Some(Cause::LinkGone);
        };
        let verdict = self.decision.verdicts.iter().find(|verdict| verdict.name == active.uplink);
        let route = if active.local.is_ipv4() { uplink.ipv4_default } else { uplink.ipv6_default };
        match verdict.and_then(|verdict| verdict.obstacle) {
            Some(Obstacle::Excluded) => Some(Cause::LinkGone),
            Some(Obstacle::Down) => Some(Cause::LinkDown),
            Some(Obstacle::NoCarrier) => Some(Cause::CarrierLost),
            _ if !uplink.addresses.contains(&active.local) => Some(Cause::AddressLost),
            _ if route.is_none() => Some(Cause::RouteLost),
            _ => None,
        }
    }

    /// The uplinks worth an attempt now, the best first.
    fn wanted(&self) -> Vec<String> {
        match &self.active {
            None => self.decision.candidates.clone(),
            Some(active) => self
                .decision
                .candidates
                .first()
                .filter(|best| **best != active.uplink)
                .cloned()
                .into_iter()
                .collect(),
        }
    }

    fn start(&mut self, now: Instant, wanted: &[String]) {
        for name in wanted {
            if self.attempts.iter().any(|attempt| attempt.uplink == *name) {
                continue;
            }
            if let Some(retry_at) =
                self.health.get(name).and_then(|health| health.retry_at).filter(|at| *at > now)
            {
                self.wake = Some(self.wake.map_or(retry_at, |wake| wake.min(retry_at)));
                continue;
            }
            if let Some(last) = self.attempts.iter().map(|attempt| attempt.started).max()
                && now < last + STAGGER
            {
                let turn = last + STAGGER;
                self.wake = Some(self.wake.map_or(turn, |wake| wake.min(turn)));
                return;
            }
            self.connect(now, name);
        }
    }

    fn connect(&mut self, now: Instant, name: &str) {
        let Some(uplink) = self.uplinks.iter().find(|uplink| uplink.name == name) else { return };
        let families = policy::serves(uplink, self.families);
        let failures = self.health.get(name).map_or(0, |health| health.failures);
        let patience = doubled(PATIENCE, failures, MAX_PATIENCE);
        let path = PathId(self.next_path);
        // Four thousand million attempts outlast any session.
        self.next_path = self.next_path.wrapping_add(1);
        self.attempts.push(Attempt {
            path,
            uplink: name.to_owned(),
            started: now,
            deadline: now + patience,
            local: None,
        });
        self.actions.push_back(Action::Connect { path, uplink: name.to_owned(), families, patience });
    }

    fn blame(&mut self, now: Instant, uplink: &str, fault: Fault) {
        let longest = if fault == Fault::Identity { MAX_RETRY_IDENTITY } else { MAX_RETRY };
        let health = self.health.entry(uplink.to_owned()).or_default();
        // A quarter to either side.
        let pause = doubled(RETRY, health.failures, longest).mul_f64(0.75 + (self.jitter)() / 2.0);
        health.retry_at = Some(now + pause);
        health.avoid_until =
            (fault == Fault::Uplink).then(|| now + doubled(AVOID, health.failures, MAX_AVOID));
        health.failures = health.failures.saturating_add(1);
    }

    fn abandon(&mut self, which: impl Fn(&Attempt) -> bool) {
        self.abandon_with(which, |_, _| {});
    }

    fn abandon_with(&mut self, which: impl Fn(&Attempt) -> bool, mut then: impl FnMut(&mut Self, Attempt)) {
        let (gone, kept) = std::mem::take(&mut self.attempts).into_iter().partition(which);
        self.attempts = kept;
        for attempt in Vec::from_iter::<Vec<Attempt>>(gone) {
            let path = attempt.path;
            let opened = attempt.local.is_some();
            self.actions.push_back(if opened { Action::Close { path } } else { Action::Abort { path } });
            then(self, attempt);
        }
    }
}

/// `base` doubled `times` times, up to `most`.
fn doubled(base: Duration, times: u32, most: Duration) -> Duration {
    // Beyond 2^16 every base here has reached its most.
    base.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests;
