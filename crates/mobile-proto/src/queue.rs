//! The queue of packets that wait to be sent for the first time.
//!
//! The queue is FQ-CoDel (RFC 8290): fair between flows and without a standing delay, so that a
//! keystroke overtakes a bulk transfer, and the bulk transfer's sender learns the rate of the path.
//! Flows take turns by bytes (deficit round robin). A flow whose packet arrives when it has nothing
//! else queued precedes the other flows for one turn. The order within a flow never changes.
//!
//! Packets are dropped for their delay only while a path delivers, never in an outage. Segments of
//! tracked TCP flows are kept apart from all other packets, because in an outage the segments let a
//! flow resume, while other packets grow stale.
//!
//! All records are in one slab and linked into two lists each: the list of their flow, and the list
//! of their lane (tracked segments, or all other packets) in order of arrival.

mod codel;
mod flow_queue;
mod record;
mod slab;
#[cfg(test)]
mod tests;
mod thinning;
mod turns;

use std::time::{Duration, Instant};

pub(crate) use record::{PacketClass, Record, SegmentRange};
use slab::{List, ListKind, Slab};
use turns::Turns;

use crate::Offload;
use crate::packet::InnerPacket;

/// Maximum number of bytes queued behind a packet at which its flow has no standing queue
/// (MAXPACKET in RFC 8289, 4.4).
const MIN_QUEUE_BYTES: usize = 1514;

/// The packets that wait to be sent for the first time.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    /// The secret key of the hash that assigns packets to flow queues; `None` for a FIFO without
    /// flows.
    seed: Option<[u8; 16]>,
    /// The delay above which a flow's queue counts as standing.
    target_delay: Duration,
    slab: Slab,
    /// The queued segments of tracked TCP flows.
    tracked: Lane,
    /// All queued packets that are no segments of tracked TCP flows.
    untracked: Lane,
    /// The flow queues, and the order of their turns.
    turns: Turns,
    /// The arrival number of the oldest packet.
    first_arrival: i64,
    /// The arrival number that the next packet gets.
    next_arrival: i64,
    /// Packets received up to this time are not dropped for their delay.
    exempt_until: Option<Instant>,
    /// Whether the path's rate is growing; while it is, no packet is dropped for its delay.
    path_growing: bool,
    last_was_delayed: bool,
}

/// A list of records in order of arrival, with their total memory and length.
#[derive(Debug, Default)]
struct Lane {
    list: List,
    cost: usize,
    bytes: usize,
}

impl SendQueue {
    /// Creates an empty queue that is fair between flows. The hash is keyed with `seed`, so that
    /// nobody who does not know it can aim packets at the queue of another flow.
    pub(crate) fn fair(seed: [u8; 16], target_delay: Duration) -> Self {
        Self { seed: Some(seed), target_delay, ..Self::default() }
    }

    /// Creates an empty queue that treats all packets as one flow and drops none for its delay.
    pub(crate) fn fifo() -> Self {
        Self { target_delay: Duration::MAX, ..Self::default() }
    }

    /// Returns the class of a packet, read from its headers. Call this once for each packet,
    /// because it computes a hash.
    pub(crate) fn classify(&self, packet: &InnerPacket<'_>) -> PacketClass {
        let bucket = self.seed.as_ref().map_or(0, |seed| flow_queue::bucket_of(seed, packet.flow()));
        PacketClass { bucket, bare_ack: thinning::bare_ack_header(packet) }
    }

    /// Appends a packet as the newest one.
    pub(crate) fn push(&mut self, mut record: Record) {
        record.arrival = self.next_arrival;
        self.next_arrival += 1;
        self.insert(record, Slab::push_back);
    }

    /// Replaces the newest packet of a flow with `record` if both are bare TCP acknowledgements and
    /// the new one makes the old one redundant. Returns the replaced packet.
    pub(crate) fn supersede(&mut self, record: &mut Record) -> Option<Vec<u8>> {
        let at = self.superseded(record)?;
        self.replace(at, std::mem::take(&mut record.packet), record.offload, record.class)
    }

    fn superseded(&self, record: &Record) -> Option<usize> {
        let range = record.range.filter(|range| range.length == 0)?;
        let header = record.class.bare_ack?;
        let last_at = self.turns.last(record.bucket())?;
        let last = self.slab.get(last_at)?;
        let same_flow = last.range.is_some_and(|last| last.flow == range.flow);
        let both_bare = same_flow && last.class.bare_ack == Some(header);
        (both_bare && thinning::supersedes(header, &record.packet, &last.packet)).then_some(last_at)
    }

    /// Adds a packet before all others, as the oldest one and the first of its flow.
    pub(crate) fn push_front(&mut self, mut record: Record) {
        self.first_arrival -= 1;
        record.arrival = self.first_arrival;
        self.insert(record, Slab::push_front);
    }

    /// Removes and returns the packet to send next, if its [cost](Self::next_cost) is at most
    /// `room`. Packets that precede it but are dropped, because their flow has a standing queue,
    /// are passed to `dropped`.
    pub(crate) fn pop(
        &mut self,
        now: Instant,
        room: usize,
        mut dropped: impl FnMut(Record),
    ) -> Option<Record> {
        loop {
            let next = self.next()?;
            let record = self.slab.get(next)?;
            if record.cost() > room {
                return None;
            }
            let bucket = record.bucket();
            let delay = now.saturating_duration_since(record.received_at);
            if self.should_drop(now, next, delay, room) {
                self.take(next).into_iter().for_each(&mut dropped);
                continue;
            }
            let record = self.take(next)?;
            self.turns.on_sent(bucket, record.packet.len());
            self.last_was_delayed = delay > self.target_delay;
            return Some(record);
        }
    }

    /// Exempts the packets received up to `now` from drops for their delay, because they waited for
    /// a path, and their delay says nothing about the rate of the next path.
    pub(crate) fn exempt_waiting(&mut self, now: Instant) {
        self.exempt_until = Some(now);
    }

    /// Sets whether the path's rate is growing. Meanwhile no packet is dropped for its delay,
    /// because the delay says nothing about the rate to come.
    pub(crate) fn set_growing(&mut self, growing: bool) {
        self.path_growing = growing;
    }

    /// Returns whether the packet sent last had waited for longer than the target delay. In this
    /// case new packets should be read into this queue rather than wait in the TUN's queue, from
    /// which the newest packet would come last.
    pub(crate) fn is_delayed(&self) -> bool {
        self.last_was_delayed
    }

    /// Returns whether the packet sent last ended the turn of a flow that had nothing queued
    /// before, and the next packet belongs to another flow, which has a backlog.
    pub(crate) fn is_turn_over(&self) -> bool {
        self.turns.is_over()
    }

    /// Removes the newest packet.
    pub(crate) fn pop_newest(&mut self) -> Option<Record> {
        let arrival = |lane: &Lane| Some(self.slab.get(lane.list.last()?)?.arrival);
        let tracked_is_newer = arrival(&self.tracked) > arrival(&self.untracked);
        let lane = if tracked_is_newer { &self.tracked } else { &self.untracked };
        self.remove(lane.list.last()?)
    }

    /// Removes the newest packet of the flow that has the most bytes queued. Returns `None` if that
    /// is the flow of a packet of `class` and `length`, or if no flow has more bytes queued than
    /// this packet has.
    pub(crate) fn pop_from_longest_flow(&mut self, class: PacketClass, length: usize) -> Option<Record> {
        self.remove(self.turns.longest_but(class.bucket, length)?.last()?)
    }

    /// Removes the oldest packet that is no segment of a tracked TCP flow.
    pub(crate) fn pop_oldest_untracked(&mut self) -> Option<Record> {
        self.remove(self.untracked.list.first()?)
    }

    /// Returns the memory that the packet to send next holds, in bytes.
    pub(crate) fn next_cost(&self) -> Option<usize> {
        self.slab.get(self.next()?).map(Record::cost)
    }

    /// Returns when the oldest packet was received, without segments of tracked TCP flows.
    pub(crate) fn oldest_untracked(&self) -> Option<Instant> {
        self.slab.get(self.untracked.list.first()?).map(|record| record.received_at)
    }

    /// Removes the segments of tracked TCP flows for which `doomed` returns true, the oldest first,
    /// and passes them to `done`.
    pub(crate) fn give_up(&mut self, mut doomed: impl FnMut(&Record) -> bool, mut done: impl FnMut(Record)) {
        let mut next = self.tracked.list.first();
        while let Some(at) = next {
            next = self.slab.next(ListKind::Lane, at);
            if self.slab.get(at).is_some_and(&mut doomed) {
                self.remove(at).into_iter().for_each(&mut done);
            }
        }
    }

    /// Returns the index of the oldest queued segment whose sequence range satisfies `wanted`. The
    /// index is valid until a packet is removed.
    pub(crate) fn find(&self, wanted: impl Fn(&SegmentRange) -> bool) -> Option<usize> {
        let next = |at: &usize| self.slab.next(ListKind::Lane, *at);
        std::iter::successors(self.tracked.list.first(), next)
            .find(|&at| self.range(at).is_some_and(|range| wanted(&range)))
    }

    /// Returns the sequence range of the queued segment with this index.
    pub(crate) fn range(&self, at: usize) -> Option<SegmentRange> {
        self.slab.get(at)?.range
    }

    /// Replaces the packet of the queued segment with this index, in its position, by one of the
    /// same flow, and returns the old packet.
    pub(crate) fn replace(
        &mut self,
        at: usize,
        packet: Vec<u8>,
        offload: Offload,
        class: PacketClass,
    ) -> Option<Vec<u8>> {
        let record = self.slab.get_mut(at)?;
        record.class.bare_ack = class.bare_ack;
        let old_cost = record.cost();
        let old = std::mem::replace(&mut record.packet, packet);
        record.offload = offload;
        self.tracked.cost = self.tracked.cost - old_cost + record.cost();
        self.tracked.bytes = self.tracked.bytes - old.len() + record.packet.len();
        let flow = self.turns.flow_mut(record.bucket());
        flow.bytes = flow.bytes - old.len() + record.packet.len();
        Some(old)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tracked.list.first().is_none() && self.untracked.list.first().is_none()
    }

    /// Returns the memory that the queue holds, in bytes.
    pub(crate) fn cost(&self) -> usize {
        self.tracked.cost + self.untracked.cost
    }

    /// Returns the memory that segments of tracked TCP flows hold, in bytes.
    pub(crate) fn tracked_cost(&self) -> usize {
        self.tracked.cost
    }

    /// Returns the total length of the queued packets, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.tracked.bytes + self.untracked.bytes
    }

    /// Returns all records in order of arrival.
    pub(crate) fn into_records(mut self) -> impl Iterator<Item = Record> {
        std::iter::from_fn(move || {
            let arrival =
                |lane: &Lane| lane.list.first().and_then(|at| self.slab.get(at)).map(|it| it.arrival);
            let (tracked, untracked) = (arrival(&self.tracked), arrival(&self.untracked));
            let first = if untracked.is_none() || tracked.is_some_and(|tracked| Some(tracked) < untracked) {
                &self.tracked
            } else {
                &self.untracked
            };
            self.remove(first.list.first()?)
        })
    }

    /// Frees the memory left over from a burst of packets if the queue is empty.
    pub(crate) fn trim(&mut self) {
        if self.is_empty() {
            let Self { seed, target_delay, first_arrival, next_arrival, exempt_until, path_growing, .. } =
                *self;
            *self = Self {
                seed,
                target_delay,
                first_arrival,
                next_arrival,
                exempt_until,
                path_growing,
                ..Self::default()
            };
        }
    }

    /// Returns the index of the packet to send next.
    fn next(&self) -> Option<usize> {
        self.turns.next()?.first()
    }

    /// Returns whether a packet has to be dropped because its flow has a standing queue. A packet
    /// whose successor does not fit into `room` is never dropped, because the successor could not
    /// be sent in its place.
    fn should_drop(&mut self, now: Instant, at: usize, delay: Duration, room: usize) -> bool {
        let Some(record) = self.slab.get(at) else { return false };
        let successor = self.slab.next(ListKind::Flow, at).and_then(|next| self.slab.get(next));
        if successor.is_some_and(|successor| successor.cost() > room) {
            return false;
        }
        let flow = self.turns.flow_mut(record.bucket());
        let length = record.packet.len();
        let queued = flow.bytes - length >= MIN_QUEUE_BYTES.max(length);
        let exempt = self.path_growing || self.exempt_until.is_some_and(|until| record.received_at <= until);
        flow.codel.should_drop(now, delay > self.target_delay && queued && !exempt)
    }

    fn insert(&mut self, record: Record, push: fn(&mut Slab, ListKind, &mut List, usize)) {
        let (bucket, length) = (record.bucket(), record.packet.len());
        let lane = if record.range.is_some() { &mut self.tracked } else { &mut self.untracked };
        lane.cost += record.cost();
        lane.bytes += length;
        let at = self.slab.insert(record);
        push(&mut self.slab, ListKind::Lane, &mut lane.list, at);
        self.turns.add(bucket, length, |list| push(&mut self.slab, ListKind::Flow, list, at));
    }

    /// Removes the packet in the slot `at`, wherever it is in its flow, and restores the order of
    /// turns.
    fn remove(&mut self, at: usize) -> Option<Record> {
        let record = self.take(at);
        self.turns.schedule();
        record
    }

    fn take(&mut self, at: usize) -> Option<Record> {
        let (is_tracked, bucket) =
            self.slab.get(at).map(|record| (record.range.is_some(), record.bucket()))?;
        let lane = if is_tracked { &mut self.tracked } else { &mut self.untracked };
        self.slab.unlink(ListKind::Lane, &mut lane.list, at);
        let flow = self.turns.flow_mut(bucket);
        self.slab.unlink(ListKind::Flow, &mut flow.list, at);
        let record = self.slab.remove(at)?;
        lane.cost -= record.cost();
        lane.bytes -= record.packet.len();
        flow.bytes -= record.packet.len();
        Some(record)
    }
}
