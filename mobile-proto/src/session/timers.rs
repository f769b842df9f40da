//! Timers of a session: when the next action is due, and the actions.

use std::collections::HashSet;
use std::time::Instant;

use super::{Role, Session};
use crate::inner_flow::FlowState;
use crate::path::Path;
use crate::queue::{Record, SegmentRange};
use crate::{CloseCode, PathId};

impl Session {
    /// Returns when [`Self::handle_timeout`] has to be called, unless another method is called
    /// before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let paths = (0..self.paths.len()).filter_map(|index| self.path_deadline(index));
        paths.chain(self.ack_deadline()).chain(self.age_deadline()).chain(self.thin_deadline()).min()
    }

    /// Takes the actions that are due, such as acknowledgements, PINGs and the expiry of packets. A
    /// call that is early or late is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if is_due(self.ack_deadline(), now) {
            self.ack.send_now();
        }
        for index in 0..self.paths.len() {
            self.check_path(now, index);
        }
        self.paths.retain(|path| !is_due(path.forget_at(), now));
        let idle = |path: &Path| is_due(path.idle_at(&self.limits), now);
        let idle: Vec<PathId> = self.paths.iter().filter(|path| idle(path)).map(|path| path.id).collect();
        idle.into_iter().for_each(|path| self.close_and_report(path, CloseCode::Timeout));
        // This comes last, because the active path may just have been removed.
        self.give_up_aged(now);
        self.update_outage(now);
        if is_due(self.thin_deadline(), now) {
            self.thin(now);
        }
    }

    fn path_deadline(&self, index: usize) -> Option<Instant> {
        let path = &self.paths[index];
        let quiet = path.ping_at(&self.limits).into_iter().chain(path.idle_at(&self.limits));
        quiet.chain(self.health_deadline(path)).chain(path.forget_at()).min()
    }

    fn check_path(&mut self, now: Instant, index: usize) {
        self.check_health(now, index);
        if is_due(self.paths[index].ping_at(&self.limits), now) {
            self.request_ping(now, index);
            self.paths[index].trim();
            self.trim_if_idle();
        }
    }

    /// Returns when an acknowledgement has to be sent, which needs an active path.
    fn ack_deadline(&self) -> Option<Instant> {
        self.active.and(self.ack.deadline())
    }

    /// Returns when the oldest packet expires. Packets expire only while no active path can carry
    /// them.
    fn age_deadline(&self) -> Option<Instant> {
        if self.active.is_some() {
            return None;
        }
        let oldest = self.replay.oldest_expirable().into_iter().chain(self.queue.oldest_untracked()).min()?;
        oldest.checked_add(self.limits.max_age)
    }

    fn give_up_aged(&mut self, now: Instant) {
        let Some(limit) = now.checked_sub(self.limits.max_age).filter(|_| self.active.is_none()) else {
            return;
        };
        let (buffers, stats) = (&mut self.buffers, &mut self.stats);
        self.replay.give_up_older(limit, |packet| {
            stats.given_up += 1;
            buffers.recycle(packet);
        });
        while self.queue.oldest_untracked().is_some_and(|since| since <= limit) {
            let Some(record) = self.queue.pop_oldest_untracked() else { break };
            self.stats.dropped_aged += 1;
            self.buffers.recycle(record.packet);
        }
        // Unless segments of tracked flows are held, nothing remains of the last burst.
        self.trim_if_idle();
    }

    /// Relay: returns when to [thin](Self::thin) the packets held for a client that stays away.
    fn thin_deadline(&self) -> Option<Instant> {
        let holds = !self.replay.is_empty() || !self.queue.is_empty();
        self.freeze.thin_at.filter(|_| self.role == Role::Server && self.active.is_none() && holds)
    }

    /// Drops held segments that have waited for too long, but keeps of each TCP flow the oldest
    /// data, which is enough to resume at once, and the first segment without data, which elicits
    /// an answer. The senders still have the rest and send it again.
    fn thin(&mut self, now: Instant) {
        self.freeze.thin_at = now.checked_add(self.limits.thin_after);
        self.freeze.flows.iter_mut().for_each(FlowState::forget_probe);
        let Some(limit) = now.checked_sub(self.limits.thin_after) else { return };
        let mut kept = HashSet::new();
        let mut doomed = |record: &Record| {
            let key = record.range.map(|SegmentRange { flow, length, .. }| (flow, length > 0));
            key.is_some_and(|key| !kept.insert(key)) && record.received_at <= limit
        };
        // The buffers are freed instead of being kept for later packets.
        let stats = &mut self.stats;
        self.replay.give_up(&mut doomed, |_| stats.given_up += 1);
        self.queue.give_up(&mut doomed, |_| stats.dropped_aged += 1);
        self.buffers.clear();
        self.replay.trim();
        self.queue.trim();
    }

    /// Frees the memory left over from a burst once no packet is held, because a relay has many
    /// idle sessions.
    pub(super) fn trim_if_idle(&mut self) {
        if self.replay.is_empty() && self.queue.is_empty() {
            self.buffers.clear();
            self.replay.trim();
            self.queue.trim();
        }
    }
}

fn is_due(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}
