//! The receiving direction of a session: records are delivered in order, once each, and
//! acknowledged.

use std::time::Instant;

use crate::segment_budget::SegmentBudget;
use crate::{Limits, Packet, PathStats, Stats, frame};

/// The records that a session receives, on whichever path they arrive.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// The number of the next record to deliver.
    next: u64,
    pub(super) ack: AckState,
    segment_budget: SegmentBudget,
}

impl Receiver {
    /// Returns the number of the next record to deliver, which acknowledges all records before it.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Handles a received record. Returns whether its packet is to be delivered.
    pub(super) fn accept(
        &mut self,
        now: Instant,
        number: u64,
        packet: Packet<'_>,
        limits: &Limits,
        path_stats: &mut PathStats,
        stats: &mut Stats,
    ) -> bool {
        self.ack.received(now, packet.len(), limits);
        // The numbers of a path continue from a SEQ, and `next` is never behind that: so `number`
        // is never beyond it.
        if number != self.next {
            stats.duplicates += 1;
            path_stats.duplicates += 1;
            return false;
        }
        self.next += 1;
        if !self.segment_budget.admit(now, packet) {
            stats.dropped_segments += 1;
            return false;
        }
        stats.rx_packets += 1;
        stats.rx_bytes += packet.len() as u64;
        path_stats.rx_packets += 1;
        true
    }

    /// Handles SEQ with the number of the next record on a path. If it is beyond the expected
    /// number, the sender has given up all records between.
    pub(super) fn skip_to(&mut self, now: Instant, number: u64, limits: &Limits, stats: &mut Stats) {
        if number > self.next {
            stats.lost = stats.lost.saturating_add(number - self.next);
            self.next = number;
            self.ack.schedule(now, limits);
        }
    }

    /// Starts over in another epoch of the relay, in which the peer numbers its records from 0.
    pub(super) fn restart(&mut self) {
        self.next = 0;
        self.ack.reset();
    }

    /// Appends ACK, if one has to be sent now. An ACK that can wait is sent too if
    /// `others_are_sent`, that is, together with other frames.
    pub(super) fn put_ack(&mut self, others_are_sent: bool, out: &mut Vec<u8>, stats: &mut Stats) {
        if self.ack.pending && (self.ack.now || others_are_sent) {
            frame::put_number(out, frame::ACK, self.next);
            stats.acks_sent += 1;
            self.ack.reset();
        }
    }
}

/// State of the acknowledgement of received records. The acknowledgement is sent along with
/// anything else that is sent. Alone it is sent only after `ack_bytes` (so that the sender's replay
/// buffer drains during a bulk transfer) or after `ack_delay` (so that the last records of a burst
/// do not linger there).
#[derive(Debug, Default)]
pub(super) struct AckState {
    /// Whether anything was received since the last acknowledgement.
    pending: bool,
    /// Whether the acknowledgement has to be sent at once.
    now: bool,
    bytes: usize,
    due: Option<Instant>,
}

impl AckState {
    /// Records that a record of `bytes` was received.
    pub(super) fn received(&mut self, now: Instant, bytes: usize, limits: &Limits) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.now |= self.bytes >= limits.ack_bytes;
        self.schedule(now, limits);
    }

    /// Schedules an acknowledgement, which is also a sign of life, within [`Limits::ack_delay`].
    pub(super) fn schedule(&mut self, now: Instant, limits: &Limits) {
        self.pending = true;
        if self.due.is_none() {
            self.due = now.checked_add(limits.ack_delay);
        }
    }

    /// Requests that the acknowledgement is sent at once, because the peer waits for it.
    pub(super) fn send_now(&mut self) {
        (self.pending, self.now) = (true, true);
    }

    /// Records that the acknowledgement was sent.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Returns when the acknowledgement has to be sent; `None` if there is none to send or if it
    /// has to be sent at once.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.now { None } else { self.due }
    }

    /// Returns whether the acknowledgement has to be sent at once.
    pub(super) fn is_due(&self) -> bool {
        self.pending && self.now
    }
}
