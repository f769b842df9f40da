//! What follows from a path's health: what is told to the shell, asked of it, and sent.

use std::time::{Duration, Instant};

use super::{Event, Role, Session};
use crate::health::RELAY_PINGS;
use crate::path::Path;
use crate::{PathId, PathStats, TransportSample};

/// A client listens to the relay's doubt at most this often: each makes it send
/// [ten PINGs](crate::health::PINGS) at most.
const NUDGE_INTERVAL: Duration = Duration::from_millis(250);

impl Session {
    /// Whether a [`TransportSample`] of a path would help now. Asked after each call and when
    /// [`Self::poll_timeout`] is due, before [`Self::handle_timeout`].
    #[must_use]
    pub fn wants_sample(&self, now: Instant, path: PathId) -> bool {
        self.find(path).is_some_and(|index| {
            let path = &self.paths[index];
            path.sample_due || (self.is_judged(path) && path.health.wants_sample(now, self.outlook(path)))
        })
    }

    /// Takes what the transport of a path knows. A shell that has nothing to give never calls this:
    /// then only silence counts.
    pub fn transport_sample(&mut self, now: Instant, path: PathId, sample: TransportSample) {
        let Some(index) = self.find(path) else { return };
        let path = &mut self.paths[index];
        path.sample_due = false;
        if path.health.sample(now, sample) {
            self.events.push(Event::PathRecovered { path: path.id });
        }
    }

    /// Client: something has happened of which no path can tell (the host was suspended): every path
    /// is asked for a sign of life, and judged by it.
    pub fn probe(&mut self, now: Instant) {
        if self.role == Role::Client {
            self.ask_each(now, Path::is_ready);
        }
    }

    /// The counters and the state of a path.
    #[must_use]
    pub fn path_stats(&self, path: PathId) -> Option<PathStats> {
        let path = &self.paths[self.find(path)?];
        let transport = path.health.latest();
        let share = |sample: &TransportSample| {
            (sample.segs_out > 0).then(|| f64::from(sample.retransmitted) / f64::from(sample.segs_out))
        };
        Some(PathStats {
            ready: path.is_ready(),
            active: self.active == Some(path.id),
            unresponsive: path.health.is_suspect(),
            srtt: transport.map(|sample| sample.srtt).or(path.stats.srtt),
            rttvar: transport.map(|sample| sample.rttvar),
            loss: transport.and_then(share),
            ..path.stats.clone()
        })
    }

    /// Something of ours was answered on a path.
    pub(super) fn progress(&mut self, now: Instant, path: &mut Path) {
        if path.health.progress(now) {
            self.events.push(Event::PathRecovered { path: path.id });
        }
    }

    /// When the health of a path has to be looked at.
    pub(super) fn health_deadline(&self, path: &Path) -> Option<Instant> {
        if self.is_judged(path) { path.health.deadline(self.outlook(path)) } else { None }
    }

    /// Looks at the health of a path.
    pub(super) fn check_health(&mut self, now: Instant, index: usize) {
        let path = &self.paths[index];
        if !self.is_judged(path) {
            return;
        }
        let (unanswered, active) = (self.is_unanswered(path), self.active == Some(path.id));
        let path = &mut self.paths[index];
        let mut outlook = path.outlook(&self.limits, unanswered, active);
        if self.role == Role::Server {
            outlook.pings = RELAY_PINGS;
        }
        let verdict = path.health.tick(now, outlook);
        if verdict.ping && path.is_ready() {
            path.ask(now, unanswered);
        }
        let id = path.id;
        if verdict.doubted {
            self.stats.liveness_probes += 1;
            self.events.push(Event::PathProbing { path: id });
            self.try_others(now, id);
        }
        if let Some(silent_for) = verdict.suspect {
            self.stats.unresponsive += 1;
            self.events.push(Event::PathUnresponsive { path: id, silent_for });
        }
        if self.role == Role::Server && (verdict.doubted || verdict.suspect.is_some()) {
            self.nudge_client();
        }
    }

    /// Client: the relay doubts the active path. It cannot know better than this end, so all it
    /// brings about is that the path is tried.
    pub(super) fn nudged(&mut self, now: Instant, from: &mut Path) {
        let recent = |at: Instant| now.saturating_duration_since(at) < NUDGE_INTERVAL;
        if self.nudged.is_some_and(recent) {
            return;
        }
        let index = self.active.and_then(|active| self.find(active));
        let unanswered = self.is_unanswered(index.map_or(&*from, |index| &self.paths[index]));
        let active = match index {
            Some(index) => Some(&mut self.paths[index]),
            None => Some(&mut *from).filter(|from| self.active == Some(from.id)),
        };
        // Of a path that is suspect there is nothing new to learn.
        let worth = |active: &&mut Path| active.is_ready() && !active.health.is_suspect();
        let Some(active) = active.filter(worth) else { return };
        self.nudged = Some(now);
        active.ask(now, unanswered);
        let (id, doubted) = (active.id, active.health.nudge(now));
        if doubted {
            self.stats.liveness_probes += 1;
            self.events.push(Event::PathProbing { path: id });
            self.try_others(now, id);
            // It is out of the list while its input is read.
            if from.id != id && from.is_ready() && from.wants_rtt(now) {
                let unanswered = self.is_unanswered(from);
                from.ask(now, unanswered);
            }
        }
    }

    /// A client judges all its paths; a relay the one that it uses, the others are the client's care.
    fn is_judged(&self, path: &Path) -> bool {
        self.role == Role::Client || self.active == Some(path.id)
    }

    fn outlook(&self, path: &Path) -> crate::health::Outlook<'_> {
        path.outlook(&self.limits, self.is_unanswered(path), self.active == Some(path.id))
    }

    /// Client: a path may be lost. Which of the others would do?
    fn try_others(&mut self, now: Instant, doubted: PathId) {
        if self.role == Role::Client {
            self.ask_each(now, |path| path.id != doubted && path.is_ready() && path.wants_rtt(now));
        }
    }

    /// Sends a PING on each path that is `chosen`.
    fn ask_each(&mut self, now: Instant, chosen: impl Fn(&Path) -> bool) {
        for index in 0..self.paths.len() {
            let unanswered = self.is_unanswered(&self.paths[index]);
            let path = &mut self.paths[index];
            if chosen(path) {
                path.ask(now, unanswered);
            }
        }
    }

    /// Relay: only the client may switch, and it may have sent nothing that could go unanswered.
    fn nudge_client(&mut self) {
        let others = self.paths.iter_mut().filter(|path| self.active != Some(path.id));
        others.for_each(|path| path.doubt_due = path.is_ready());
    }
}
