//! Actions that follow from the health of the paths: events, requests for samples, and PINGs.

use std::time::Instant;

use super::{Event, Session};
use crate::path::Path;
use crate::{PathId, PathStats, TransportSample};

impl Session {
    /// Returns whether a [`TransportSample`] of a path is needed now. To be called after each call
    /// of another method and when [`Self::poll_timeout`] is due, before [`Self::handle_timeout`].
    #[must_use]
    pub fn wants_sample(&self, now: Instant, path: PathId) -> bool {
        self.paths.find(path).is_some_and(|index| {
            let path = &self.paths[index];
            path.sample_due
                || (self.is_monitored(path) && path.health.wants_sample(now, self.health_context(path)))
        })
    }

    /// Passes in a sample of a path's transport. Without samples, a path is judged only by its
    /// silence.
    pub fn transport_sample(&mut self, now: Instant, path: PathId, sample: TransportSample) {
        let Some(index) = self.paths.find(path) else { return };
        let path = &mut self.paths[index];
        path.sample_due = false;
        if path.health.on_sample(now, sample) {
            self.events.push(Event::PathRecovered { path: path.id });
        }
    }

    /// Returns the counters and the state of a path.
    #[must_use]
    pub fn path_stats(&self, path: PathId) -> Option<PathStats> {
        let path = &self.paths[self.paths.find(path)?];
        let transport = path.health.latest_sample();
        let share = |sample: &TransportSample| {
            (sample.segs_out > 0).then(|| f64::from(sample.retransmitted) / f64::from(sample.segs_out))
        };
        Some(PathStats {
            ready: path.is_ready(),
            active: self.paths.is_active(path.id),
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
        let (unanswered, active) = (self.is_unanswered(path), self.paths.is_active(path.id));
        let path = &mut self.paths[index];
        let context = path.health_context(&self.limits, unanswered, active);
        let update = path.health.on_timeout(now, context);
        if update.send_ping && path.is_ready() {
            path.request_ping(now, unanswered);
        }
        let id = path.id;
        if update.probing {
            self.on_probing(now, id);
        }
        if let Some(silent_for) = update.unresponsive {
            self.stats.unresponsive += 1;
            self.events.push(Event::PathUnresponsive { path: id, silent_for });
        }
        if !self.side.is_client() && (update.probing || update.unresponsive.is_some()) {
            self.send_doubt();
        }
    }

    /// Returns whether the health of the path is judged. A client judges all its paths. A relay
    /// judges only the active one; the client judges the others.
    fn is_monitored(&self, path: &Path) -> bool {
        self.side.is_client() || self.paths.is_active(path.id)
    }

    fn health_context(&self, path: &Path) -> crate::health::PathContext<'_> {
        path.health_context(&self.limits, self.is_unanswered(path), self.paths.is_active(path.id))
    }

    /// Returns whether something sent on a path still has to be answered.
    pub(super) fn is_unanswered(&self, path: &Path) -> bool {
        path.is_unanswered() || (self.paths.is_active(path.id) && self.sender.replay.in_flight())
    }

    /// Requests that a PING is sent on a path.
    pub(super) fn request_ping(&mut self, now: Instant, index: usize) {
        let unanswered = self.is_unanswered(&self.paths[index]);
        self.paths[index].request_ping(now, unanswered);
    }
}
