//! Derives the machine's next actions from the state of the uplinks and paths.
//!
//! - A path is closed when its link, address or route is gone.
//! - The session is on the best path that works. While that path works, the session moves only to a
//!   better uplink.
//! - While a path works, every uplink of `[uplink] standby` holds a standby path.
//! - While no path works, every usable uplink is tried, the best first and each further one
//!   [`UPLINK_STAGGER`] later. The first one over which the relay authenticates itself wins.
//! - When the path in use becomes unresponsive, the session leaves it at once. The path stays open
//!   for [`UNRESPONSIVE_TIMEOUT`], because it may only be slow.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mobile_proto::PathId;

use super::super::cause::{Fault, HandoverCause};
use super::action::Action;
use super::candidate::{CandidatePath, Stage};
use super::{CurrentPath, Machine};
use crate::uplinks::policy;

/// The delay between the starts of attempts over the best uplink and the next one while no path
/// works: several usual round-trip times, but less than a person notices.
pub(super) const UPLINK_STAGGER: Duration = Duration::from_millis(250);
/// The time limit of a connection attempt, long enough for two retransmissions of the SYN. Each
/// failure doubles the limit, for slow links.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest time limit of a connection attempt. A link that needs more cannot carry a session.
const MAX_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(12);
/// How long an unresponsive path stays open without an answer: long enough for four retransmissions
/// by the kernel.
pub(super) const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_secs(5);

impl Machine {
    pub(super) fn reconcile(&mut self, now: Instant) {
        self.wake = None;
        self.close_timed_out(now);
        self.decide(now);
        self.close_blocked(now);
        self.decide(now);
        self.choose_active(now);
        let wanted = self.wanted_uplinks();
        self.close_unwanted(now, &wanted);
        self.start_attempts(now, &wanted);
        let deadlines =
            self.paths.iter().filter(|candidate| !candidate.is_ready()).map(|candidate| candidate.deadline);
        let expiries = self
            .paths
            .iter()
            .filter_map(|candidate| Some(candidate.unresponsive_since? + UNRESPONSIVE_TIMEOUT));
        let due = deadlines.chain(expiries).chain(self.record.avoided_until()).filter(|at| *at > now);
        self.wake = self.wake.into_iter().chain(due).min();
    }

    /// Closes the paths for which `which` returns true, and returns them.
    pub(super) fn close_where(&mut self, which: impl Fn(&CandidatePath) -> bool) -> Vec<CandidatePath> {
        let (gone, kept): (Vec<_>, _) = std::mem::take(&mut self.paths).into_iter().partition(which);
        self.paths = kept;
        for CandidatePath { path, stage, .. } in &gone {
            let path = *path;
            let opened = *stage != Stage::Dialing;
            self.actions.push_back(if opened { Action::Close { path } } else { Action::Abort { path } });
            self.current.take_if(|current| current.path == path);
        }
        gone
    }

    /// Returns whether the path in use works: the relay has accepted it, and it is neither marked
    /// as unresponsive nor outdated.
    fn has_working_path(&self) -> bool {
        let current = self.current.as_ref().and_then(|current| self.candidate(current.path));
        current.is_some_and(|candidate| candidate.is_ready() && candidate.is_responsive())
    }

    fn decide(&mut self, now: Instant) {
        // The uplink in use is not demoted for past failures while its path responds.
        let current = self.current.as_ref().and_then(|current| self.candidate(current.path));
        let current =
            current.filter(|candidate| candidate.is_responsive()).map(|candidate| candidate.uplink.as_str());
        let failing: BTreeSet<String> =
            self.record.avoided(now).filter(|name| current != Some(name.as_str())).cloned().collect();
        self.decision = policy::decide(
            &self.uplinks,
            &policy::UplinkPreferences {
                forced: self.forced.as_deref(),
                prefer: &self.preferences.prefer,
                exclude: &self.preferences.exclude,
                families: self.families,
                current,
                failing: &failing,
            },
        );
    }

    /// Closes connection attempts that have exceeded their time limit.
    fn close_timed_out(&mut self, now: Instant) {
        for candidate in self.close_where(|candidate| !candidate.is_ready() && candidate.deadline <= now) {
            self.record.failure(now, &candidate.uplink, Fault::Uplink);
            let opened = candidate.local().is_some();
            self.actions.push_back(Action::TimedOut { uplink: candidate.uplink, opened });
        }
    }

    /// Closes paths that their uplink can no longer carry, for example because it has lost the
    /// address.
    fn close_blocked(&mut self, now: Instant) {
        let blocked: Vec<(PathId, HandoverCause)> = self
            .paths
            .iter()
            .filter_map(|candidate| {
                Some((candidate.path, candidate.obstacle(&self.uplinks, &self.decision)?))
            })
            .collect();
        for (path, cause) in blocked {
            let used = self.current.as_ref().is_some_and(|current| current.path == path);
            for mut candidate in self.close_where(|candidate| candidate.path == path) {
                // Before the welcome, the path carried nothing, so there is no outage.
                if !candidate.is_ready() {
                    continue;
                }
                if used {
                    self.transition.begin_outage(cause, &candidate.uplink, now);
                }
                let is_usable = self.decision.usable.contains(&candidate.uplink);
                if !self.record.clear_flaps_if_healthy(now, &mut candidate) && !is_usable {
                    self.record.flap(now, &candidate.uplink);
                }
            }
        }
    }

    /// Returns the position of an uplink in the policy's ranking; smaller is better.
    fn rank(&self, uplink: &str) -> usize {
        let usable = &self.decision.usable;
        usable.iter().position(|name| name == uplink).unwrap_or(usable.len())
    }

    /// Moves the session to the best path that works, unless the session is on it.
    fn choose_active(&mut self, now: Instant) {
        let current = self.current.as_ref().and_then(|current| self.candidate(current.path));
        let responsive = current.filter(|candidate| candidate.is_responsive());
        let others = || {
            let current = current.map(|candidate| candidate.path);
            self.paths
                .iter()
                .filter(move |candidate| Some(candidate.path) != current && candidate.is_responsive())
        };
        let ready = others()
            .filter(|candidate| candidate.is_ready())
            .min_by_key(|candidate| self.rank(&candidate.uplink));
        let greeting = || {
            others()
                .filter(|candidate| matches!(candidate.stage, Stage::Greeting(_)))
                .min_by_key(|candidate| self.rank(&candidate.uplink))
        };
        let next = match (responsive, ready) {
            // A path without an answer yet gives way to any ready path. A working one gives way
            // only to a better uplink.
            (Some(used), Some(ready)) => {
                (!used.is_ready() || self.rank(&ready.uplink) < self.rank(&used.uplink)).then_some(ready)
            }
            (Some(_), None) => None,
            (None, Some(ready)) => Some(ready),
            // The relay has authenticated itself in TLS, so do not wait for its welcome.
            (None, None) if current.is_some_and(CandidatePath::answers) => None,
            (None, None) => greeting(),
        };
        let Some((path, to)) = next.map(|candidate| (candidate.path, candidate.uplink.clone())) else {
            return;
        };
        if let Some(left) =
            current.filter(|candidate| self.transition.outage.is_none() && candidate.is_ready())
        {
            let forced = self.forced.as_deref() == Some(to.as_str());
            let cause = match forced {
                _ if left.is_outdated => HandoverCause::Reloaded,
                true => HandoverCause::Forced,
                false => HandoverCause::BetterUplink,
            };
            self.transition.planned = Some((cause, left.uplink.clone()));
        }
        let open =
            self.paths.iter().filter(|candidate| candidate.local().is_some() && candidate.path != path);
        let keep = open.map(|candidate| candidate.path).collect();
        self.actions.push_back(Action::Activate { path, keep });
        self.current = Some(CurrentPath { path, since: now, confirmed: false, replayed: 0 });
    }

    /// Returns the uplinks that should have a path beside the one in use, the best first; while no
    /// path works, these are all usable uplinks.
    fn wanted_uplinks(&self) -> Vec<String> {
        let usable = &self.decision.usable;
        let Some(current) = self.current.as_ref().filter(|_| self.has_working_path()) else {
            return usable.clone();
        };
        let used = self.candidate(current.path).map(|candidate| candidate.uplink.as_str());
        let standby = |name: &str| self.preferences.standby.iter().any(|glob| glob.is_match(name));
        usable
            .iter()
            .enumerate()
            .filter(|(place, name)| used != Some(name.as_str()) && (*place == 0 || standby(name)))
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// Closes paths on uplinks that are not in `wanted`, paths that were unresponsive for too long,
    /// and paths that duplicate another one on the same uplink.
    ///
    /// Other ready paths that respond stay open until the relay has answered on the path in use.
    fn close_unwanted(&mut self, now: Instant, wanted: &[String]) {
        let used = self.current.as_ref().map(|current| current.path);
        let confirmed = self.current.as_ref().is_none_or(|current| current.confirmed);
        let has_working_path = self.has_working_path();
        let order = |candidate: &CandidatePath| {
            (Some(candidate.path) != used, !candidate.is_ready(), candidate.started, candidate.path)
        };
        // An unresponsive path stays until its replacement is ready.
        let is_redundant = |candidate: &CandidatePath| {
            let better = |other: &&CandidatePath| {
                let comes_first = if candidate.is_responsive() {
                    order(other) < order(candidate)
                } else {
                    other.is_ready()
                };
                other.path != candidate.path
                    && other.uplink == candidate.uplink
                    && other.is_responsive()
                    && comes_first
            };
            self.paths.iter().find(better).is_some()
        };
        let is_unwanted = |candidate: &&CandidatePath| {
            let expired =
                candidate.unresponsive_since.is_some_and(|since| now >= since + UNRESPONSIVE_TIMEOUT);
            let surplus =
                is_redundant(candidate) || (!wanted.contains(&candidate.uplink) && candidate.is_responsive());
            // An outdated path may be the only one that the relay accepts.
            let surplus = if candidate.is_outdated { confirmed && has_working_path } else { surplus };
            Some(candidate.path) != used
                && (expired
                    || (surplus && (confirmed || !candidate.is_ready() || !candidate.is_responsive())))
        };
        let unwanted: Vec<PathId> =
            self.paths.iter().filter(is_unwanted).map(|candidate| candidate.path).collect();
        self.close_where(|candidate| unwanted.contains(&candidate.path));
    }

    fn start_attempts(&mut self, now: Instant, wanted: &[String]) {
        let has_working_path = self.has_working_path();
        for name in wanted {
            if self.paths.iter().any(|candidate| candidate.uplink == *name && candidate.is_responsive()) {
                continue;
            }
            let damping = self.record.failures(name);
            let pause = damping
                .and_then(|it| if has_working_path { it.background_retry_at() } else { it.retry_at() });
            if let Some(at) = pause.filter(|at| *at > now) {
                self.wake_by(at);
                continue;
            }
            let attempts = self.paths.iter().filter(|candidate| !candidate.is_ready());
            if let Some(turn) =
                attempts.map(|candidate| candidate.started + UPLINK_STAGGER).max().filter(|turn| *turn > now)
            {
                self.wake_by(turn);
                return;
            }
            self.start_attempt(now, name);
        }
    }

    fn wake_by(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    fn start_attempt(&mut self, now: Instant, name: &str) {
        let Some(uplink) = self.uplinks.iter().find(|uplink| uplink.name == name) else { return };
        let families = policy::reachable_families(uplink, self.families);
        let damping = self.record.failures(name);
        let timeout =
            damping.map_or(ATTEMPT_TIMEOUT, |damping| damping.timeout(ATTEMPT_TIMEOUT, MAX_ATTEMPT_TIMEOUT));
        let path = PathId(self.next_path);
        // Four thousand million attempts outlast any session.
        self.next_path = self.next_path.wrapping_add(1);
        self.paths.push(CandidatePath {
            path,
            uplink: name.to_owned(),
            stage: Stage::Dialing,
            started: now,
            deadline: now + timeout,
            unresponsive_since: None,
            is_outdated: false,
            healthy_since: None,
        });
        self.actions.push_back(Action::Connect { path, uplink: name.to_owned(), families, timeout });
    }
}
