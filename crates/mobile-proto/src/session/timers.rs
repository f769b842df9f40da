//! Timers of a session: when the next action is due, and the actions.

use std::collections::HashSet;
use std::time::Instant;

use super::Session;
use super::sender::Sender;
use super::side::Side;
use crate::path::Path;
use crate::queue::{Record, SegmentRange};
use crate::{CloseCode, Limits, PathId, Stats};

impl Session {
    /// Returns when [`Self::handle_timeout`] has to be called, unless another method is called
    /// before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let paths = self.paths.iter().filter_map(|path| self.path_deadline(path));
        paths.chain(self.ack_deadline()).chain(self.age_deadline()).chain(self.thin_deadline()).min()
    }

    /// Takes the actions that are due, such as acknowledgements, PINGs and the expiry of packets. A
    /// call that is early or late is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if is_due(self.ack_deadline(), now) {
            self.receiver.ack.send_now();
        }
        for index in 0..self.paths.len() {
            self.check_path(now, index);
        }
        self.paths.remove_unclosable(now);
        let idle = |path: &&Path| is_due(path.idle_at(&self.limits), now);
        let idle: Vec<PathId> = self.paths.iter().filter(idle).map(|path| path.id).collect();
        idle.into_iter().for_each(|path| self.close_and_report(path, CloseCode::Timeout));
        // This comes last, because the active path may just have been removed.
        if self.paths.active_id().is_none() {
            self.sender.give_up_aged(now, &self.limits, &mut self.stats);
        }
        self.update_outage(now);
        if is_due(self.thin_deadline(), now) {
            self.sender.thin(now, &self.limits, &mut self.stats);
        }
    }

    fn path_deadline(&self, path: &Path) -> Option<Instant> {
        let quiet = path.ping_at(&self.limits).into_iter().chain(path.idle_at(&self.limits));
        quiet.chain(self.health_deadline(path)).chain(path.forget_at()).min()
    }

    fn check_path(&mut self, now: Instant, index: usize) {
        self.check_health(now, index);
        if is_due(self.paths[index].ping_at(&self.limits), now) {
            self.request_ping(now, index);
            self.paths[index].trim();
            self.sender.trim_if_idle();
        }
    }

    /// Returns when an acknowledgement has to be sent, which needs an active path.
    fn ack_deadline(&self) -> Option<Instant> {
        self.paths.active_id().and(self.receiver.ack.deadline())
    }

    /// Returns when the oldest packet expires. Packets expire only while no active path can carry
    /// them.
    fn age_deadline(&self) -> Option<Instant> {
        match self.paths.active_id() {
            Some(_) => None,
            None => self.sender.age_deadline(&self.limits),
        }
    }

    /// Returns when a relay thins the packets held for a client that stays away. A client drops
    /// none, because an agent has one session and its own memory.
    fn thin_deadline(&self) -> Option<Instant> {
        match self.side {
            Side::Relay(_) if self.paths.active_id().is_none() => self.sender.thin_deadline(),
            _ => None,
        }
    }
}

impl Sender {
    /// Returns when the oldest packet expires if no path becomes active.
    fn age_deadline(&self, limits: &Limits) -> Option<Instant> {
        let oldest = self.replay.oldest_expirable().into_iter().chain(self.queue.oldest_untracked()).min()?;
        oldest.checked_add(limits.max_age)
    }

    /// Gives up the packets that are too old, except for segments of tracked TCP flows.
    fn give_up_aged(&mut self, now: Instant, limits: &Limits, stats: &mut Stats) {
        let Some(limit) = now.checked_sub(limits.max_age) else { return };
        self.replay.give_up_older(limit, |packet| {
            stats.given_up += 1;
            self.buffers.recycle(packet);
        });
        while self.queue.oldest_untracked().is_some_and(|since| since <= limit) {
            let Some(record) = self.queue.pop_oldest_untracked() else { break };
            stats.dropped_aged += 1;
            self.buffers.recycle(record.packet);
        }
        // Unless segments of tracked flows are held, nothing remains of the last burst.
        self.trim_if_idle();
    }

    /// Returns when to [thin](Self::thin) the held packets, if any are held in an outage.
    fn thin_deadline(&self) -> Option<Instant> {
        let holds = !self.replay.is_empty() || !self.queue.is_empty();
        self.freeze.thin_at().filter(|_| holds)
    }

    /// Drops held segments that have waited for too long, but keeps of each TCP flow the oldest
    /// data, which is enough to resume at once, and the first segment without data, which elicits
    /// an answer. The senders still have the rest and send it again.
    fn thin(&mut self, now: Instant, limits: &Limits, stats: &mut Stats) {
        self.freeze.on_thinned(now, limits);
        let Some(limit) = now.checked_sub(limits.thin_after) else { return };
        let mut kept = HashSet::new();
        let mut doomed = |record: &Record| {
            let key = record.range.map(|SegmentRange { flow, length, .. }| (flow, length > 0));
            key.is_some_and(|key| !kept.insert(key)) && record.received_at <= limit
        };
        // The buffers are freed instead of being kept for later packets.
        self.replay.give_up(&mut doomed, |_| stats.given_up += 1);
        self.queue.give_up(&mut doomed, |_| stats.dropped_aged += 1);
        self.trim();
    }
}

fn is_due(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}
