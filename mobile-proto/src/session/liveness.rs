//! Actions that follow from the health of the paths: events, requests for samples, and PINGs.

use std::time::{Duration, Instant};

use super::{Event, Role, Session};
use crate::path::Path;
use crate::{PathId, PathStats, TransportSample};

/// Minimum time between two DOUBT frames (the relay gets no answers) on which a client acts. Each
/// makes the client send at most [ten PINGs](crate::health::MAX_PINGS).
const MIN_DOUBT_INTERVAL: Duration = Duration::from_millis(250);

impl Session {
    /// Returns whether a [`TransportSample`] of a path is needed now. To be called after each call
    /// of another method and when [`Self::poll_timeout`] is due, before [`Self::handle_timeout`].
    #[must_use]
    pub fn wants_sample(&self, now: Instant, path: PathId) -> bool {
        self.find(path).is_some_and(|index| {
            let path = &self.paths[index];
            path.sample_due
                || (self.is_monitored(path) && path.health.wants_sample(now, self.health_context(path)))
        })
    }

    /// Passes in a sample of a path's transport. Without samples, a path is judged only by its
    /// silence.
    pub fn transport_sample(&mut self, now: Instant, path: PathId, sample: TransportSample) {
        let Some(index) = self.find(path) else { return };
        let path = &mut self.paths[index];
        path.sample_due = false;
        if path.health.on_sample(now, sample) {
            self.events.push(Event::PathRecovered { path: path.id });
        }
    }

    /// Client: sends a PING on every path and judges the path by the answer. To be called after an
    /// event that no path can detect, such as a suspension of the host.
    pub fn probe(&mut self, now: Instant) {
        if self.role == Role::Client {
            self.ping_each(now, Path::is_ready);
        }
    }

    /// Returns the counters and the state of a path.
    #[must_use]
    pub fn path_stats(&self, path: PathId) -> Option<PathStats> {
        let path = &self.paths[self.find(path)?];
        let transport = path.health.latest_sample();
        let share = |sample: &TransportSample| {
            (sample.segs_out > 0).then(|| f64::from(sample.retransmitted) / f64::from(sample.segs_out))
        };
        Some(PathStats {
            ready: path.is_ready(),
            active: self.active == Some(path.id),
            unresponsive: path.health.is_unresponsive(),
            srtt: transport.map(|sample| sample.srtt).or(path.stats.srtt),
            rttvar: transport.map(|sample| sample.rttvar),
            loss: transport.and_then(share),
            ..path.stats.clone()
        })
    }

    /// Records that something sent on a path was answered.
    pub(super) fn on_progress(&mut self, now: Instant, index: usize) {
        let path = &mut self.paths[index];
        if path.health.on_progress(now) {
            self.events.push(Event::PathRecovered { path: path.id });
        }
    }

    /// Returns when the health of a path has to be checked.
    pub(super) fn health_deadline(&self, path: &Path) -> Option<Instant> {
        if self.is_monitored(path) { path.health.deadline(self.health_context(path)) } else { None }
    }

    /// Checks the health of a path.
    pub(super) fn check_health(&mut self, now: Instant, index: usize) {
        let path = &self.paths[index];
        if !self.is_monitored(path) {
            return;
        }
        let (unanswered, active) = (self.is_unanswered(path), self.active == Some(path.id));
        let path = &mut self.paths[index];
        let context = path.health_context(&self.limits, unanswered, active);
        let update = path.health.on_timeout(now, context);
        if update.send_ping && path.is_ready() {
            path.request_ping(now, unanswered);
        }
        let id = path.id;
        if update.probing {
            self.stats.liveness_probes += 1;
            self.events.push(Event::PathProbing { path: id });
            self.ping_others(now, id);
        }
        if let Some(silent_for) = update.unresponsive {
            self.stats.unresponsive += 1;
            self.events.push(Event::PathUnresponsive { path: id, silent_for });
        }
        if self.role == Role::Server && (update.probing || update.unresponsive.is_some()) {
            self.send_doubt();
        }
    }

    /// Client: handles DOUBT, which means that the relay gets no answers on the active path. The
    /// client judges the path by its own evidence, so the only effect is that it probes the path.
    pub(super) fn handle_doubt(&mut self, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) < MIN_DOUBT_INTERVAL;
        if self.last_doubt.is_some_and(recent) {
            return;
        }
        let Some(index) = self.active.and_then(|active| self.find(active)) else { return };
        let active = &self.paths[index];
        if !active.is_ready() || active.health.is_unresponsive() {
            // Probing shows nothing new about an unresponsive path.
            return;
        }
        self.last_doubt = Some(now);
        self.request_ping(now, index);
        let active = &mut self.paths[index];
        if active.health.start_probing(now) {
            let id = active.id;
            self.stats.liveness_probes += 1;
            self.events.push(Event::PathProbing { path: id });
            self.ping_others(now, id);
        }
    }

    /// Returns whether the health of the path is judged. A client judges all its paths. A relay
    /// judges only the active one; the client judges the others.
    fn is_monitored(&self, path: &Path) -> bool {
        self.role == Role::Client || self.active == Some(path.id)
    }

    fn health_context(&self, path: &Path) -> crate::health::PathContext<'_> {
        path.health_context(&self.limits, self.is_unanswered(path), self.active == Some(path.id))
    }

    /// Client: sends a PING on the other paths to find out which of them can replace the path
    /// `probing`, which may be dead.
    fn ping_others(&mut self, now: Instant, probing: PathId) {
        if self.role == Role::Client {
            self.ping_each(now, |path| path.id != probing && path.is_ready() && path.pings.needs_rtt(now));
        }
    }

    /// Sends a PING on each path for which `chosen` returns true.
    fn ping_each(&mut self, now: Instant, chosen: impl Fn(&Path) -> bool) {
        for index in 0..self.paths.len() {
            if chosen(&self.paths[index]) {
                self.request_ping(now, index);
            }
        }
    }

    /// Relay: queues DOUBT on the other paths, which tells the client that no answers arrive on the
    /// active path. Only the client may switch, and it may have sent nothing that could go
    /// unanswered.
    fn send_doubt(&mut self) {
        let others = self.paths.iter_mut().filter(|path| self.active != Some(path.id));
        for path in others {
            let is_ready = path.is_ready();
            if let Some(relay) = path.side.relay_mut() {
                relay.doubt_due = is_ready;
            }
        }
    }
}
