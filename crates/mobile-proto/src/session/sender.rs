//! The sending direction of a session: packets are queued, numbered as records, and kept until they
//! are acknowledged.
//!
//! Further methods of [`Sender`] are in the modules of what they do: `transmit`, `freeze`, `timers`
//! and `takeover`.

use std::time::Instant;

use super::freeze::Freeze;
use crate::buffer_pool::BufferPool;
use crate::compression::Heuristic;
use crate::queue::{PacketClass, Record, SegmentRange, SendQueue};
use crate::replay::ReplayBuffer;
use crate::{Limits, MAX_PACKET, ProtocolError, SessionId, Stats};

/// The result of [`Session::enqueue`](super::Session::enqueue).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Enqueue {
    /// The packet was accepted and will be sent.
    Queued,
    /// The packet was dropped and counted.
    Dropped(DropReason),
}

/// The reason why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The queue has no room.
    QueueFull,
    /// In an outage, an earlier packet with the same TCP data is already held; the new packet may
    /// have replaced it.
    Duplicate,
    /// The packet is empty or longer than [`MAX_PACKET`].
    BadLength,
}

/// The decision whether a packet from the TUN is queued, or the reason why it was dropped and
/// counted.
pub(super) type Admission = Result<Admitted, DropReason>;

/// The properties of a packet that is to be queued.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admitted {
    /// The sequence range if the packet is a segment of a tracked TCP flow.
    pub(super) range: Option<SegmentRange>,
    pub(super) class: PacketClass,
}

/// The packets that a session sends, on whichever path is active.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) buffers: BufferPool,
    pub(super) queue: SendQueue,
    pub(super) replay: ReplayBuffer,
    pub(super) freeze: Freeze,
    pub(super) heuristic: Heuristic,
    /// The value of [`Stats::dropped`] when transmission last moved to another path.
    dropped_before: u64,
}

impl Sender {
    /// Creates a sender that holds nothing.
    pub(super) fn new(id: SessionId, limits: &Limits) -> Self {
        let queue = if limits.fair { SendQueue::fair(id.0, limits.target_delay) } else { SendQueue::fifo() };
        Self {
            buffers: BufferPool::default(),
            queue,
            replay: ReplayBuffer::default(),
            freeze: Freeze::default(),
            heuristic: Heuristic::default(),
            dropped_before: 0,
        }
    }

    /// Queues a packet that was [admitted](Self::admit).
    pub(super) fn push(&mut self, mut record: Record, stats: &mut Stats) -> Enqueue {
        count_enqueued(&record, stats);
        match self.queue.supersede(&mut record) {
            Some(needless) => {
                stats.thinned += 1;
                self.buffers.recycle(needless);
            }
            None => self.queue.push(record),
        }
        Enqueue::Queued
    }

    /// Begins an outage if nothing has got through since `cut_off_since`, or ends it.
    pub(super) fn update_outage(&mut self, now: Instant, cut_off_since: Option<Instant>, limits: &Limits) {
        if self.freeze.update_outage(now, cut_off_since, limits) {
            self.queue.exempt_waiting(now);
        }
    }

    /// Returns whether the queue has room for another packet from the TUN while a path delivers.
    pub(super) fn has_room(&self, limits: &Limits) -> bool {
        let spare = limits.queue_bytes.saturating_sub(MAX_PACKET + size_of::<Record>());
        self.queue.is_empty()
            || self.queue.cost()
                < if self.queue.is_delayed() { spare } else { limits.active_queue_bytes.min(spare) }
    }

    /// Handles an acknowledgement of all records before `upto`.
    ///
    /// # Errors
    /// If `upto` was never sent.
    pub(super) fn acknowledge(&mut self, upto: u64, stats: &mut Stats) -> Result<(), ProtocolError> {
        self.replay.acknowledge(upto, |record| {
            stats.acked_packets += 1;
            self.buffers.recycle(record.packet);
        })
    }

    /// Starts over on another path, with the oldest unacknowledged record. Returns the number of
    /// records that are sent again, and the number of packets dropped since the last such change.
    pub(super) fn rewind(&mut self, stats: &Stats) -> (u64, u64) {
        let dropped = stats.dropped();
        let before = std::mem::replace(&mut self.dropped_before, dropped);
        (self.replay.rewind(), dropped - before)
    }

    /// Frees the memory left over from a burst once no packet is held, because a relay has many
    /// idle sessions.
    pub(super) fn trim_if_idle(&mut self) {
        if self.replay.is_empty() && self.queue.is_empty() {
            self.trim();
        }
    }

    /// Frees the memory left over from a burst.
    pub(super) fn trim(&mut self) {
        self.buffers.clear();
        self.replay.trim();
        self.queue.trim();
    }
}

/// Counts a packet that was accepted to be sent.
pub(super) fn count_enqueued(record: &Record, stats: &mut Stats) {
    stats.enqueued_packets += 1;
    stats.enqueued_bytes += record.packet.len() as u64;
}
