//! The state that a session passes on to the session that replaces it. A restarted agent starts a
//! new session, and no packet that waits for the agent at the relay may be lost.

use std::time::Instant;

use super::Session;
use super::freeze::Freeze;
use super::sender::{self, Sender};
use crate::queue::{PacketClass, Record};
use crate::{Limits, MAX_PACKET, PacketBuf, Stats};

/// The packets that a session passes on to its successor: those that the peer has not acknowledged,
/// then those not sent yet, in order.
///
/// Includes the state of the inner TCP flows, which live on, and the sequence ranges of their
/// segments.
#[derive(Debug, Default)]
pub struct Unacknowledged {
    records: Vec<Record>,
    freeze: Freeze,
}

impl Unacknowledged {
    /// Creates the collection from packets whose flows are not tracked.
    #[must_use]
    pub fn new(now: Instant, packets: Vec<PacketBuf>) -> Self {
        // The session that takes over the packet classifies it.
        let record = |packet: PacketBuf| {
            Record::new(packet.bytes.into_vec(), packet.offload, now, None, PacketClass::default())
        };
        Self { records: packets.into_iter().map(record).collect(), freeze: Freeze::default() }
    }

    /// Returns the number of packets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether there are no packets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the packets, in order.
    pub fn into_packets(self) -> impl Iterator<Item = PacketBuf> {
        self.records.into_iter().map(Record::into_packet)
    }
}

impl Session {
    /// Returns the packets that the peer has not acknowledged, then those not sent yet, in order,
    /// for a session that replaces this one.
    #[must_use]
    pub fn into_unacknowledged(self) -> Unacknowledged {
        let Sender { replay, queue, freeze, .. } = self.sender;
        Unacknowledged { records: replay.into_records().chain(queue.into_records()).collect(), freeze }
    }

    /// Takes over the packets of another session, ahead of the packets that this session has not
    /// sent yet.
    ///
    /// As many packets as the replay buffer has room for are treated as sent: they are never
    /// dropped to make room, and are sent before all others. The rest is queued. Packets that the
    /// queue cannot hold either are dropped, the newest first, and counted.
    pub fn requeue(&mut self, left: Unacknowledged) {
        self.sender.requeue(left, &self.limits, &mut self.stats);
    }
}

impl Sender {
    fn requeue(&mut self, left: Unacknowledged, limits: &Limits, stats: &mut Stats) {
        let Unacknowledged { records, freeze } = left;
        let known = self.freeze.take_over(freeze);
        let mut rest = Vec::new();
        for mut record in records {
            if record.packet.is_empty() || record.packet.len() > MAX_PACKET {
                stats.dropped_bad_length += 1;
                continue;
            }
            sender::count_enqueued(&record, stats);
            let packet = record.packet().into();
            let class = self.queue.classify(&packet);
            let range = if known { record.range } else { self.freeze.track_packet(&packet) };
            (record.range, record.class) = (range, class);
            if rest.is_empty() && self.replay.cost() + record.cost() <= limits.replay_bytes {
                self.replay.push_unsent(record);
            } else {
                rest.push(record);
            }
        }
        rest.into_iter().rev().for_each(|record| self.queue.push_front(record));
        while self.queue.cost() > limits.queue_bytes {
            stats.dropped_queue_full += u64::from(self.queue.pop_newest().is_some());
        }
    }
}
