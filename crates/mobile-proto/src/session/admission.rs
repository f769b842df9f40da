//! The decision whether a packet from the TUN is queued, and what an outage changes about it: data
//! that is held already is not queued again, and flows share the memory of the queue.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::sender::{Admission, Admitted, DropReason, Sender};
use crate::packet::InnerPacket;
use crate::queue::{PacketClass, Record, SegmentRange};
use crate::segment::Segment;
use crate::{Limits, Stats};

/// Time without searches that pays for each held record that a search has read. Reading one takes
/// at most a tenth of this.
///
/// Honest senders retransmit a few times a second. Others must not make the session read all held
/// records for each packet.
const RECORD_PRICE: Duration = Duration::from_nanos(50);
/// Factor by which a search costs its own flow more than the session as a whole, so that no flow
/// uses up the search time of all others.
const FLOW_SHARE: u32 = 16;
/// Maximum unpaid search time before further searches are refused. Senders retransmit at the same
/// time, and several segments each.
const SEARCH_CREDIT: Duration = Duration::from_millis(5);

/// The place where the session still stores a segment of an inner flow: its index in the replay
/// buffer (sent and not acknowledged) or in the queue (not sent yet).
enum HeldSegment {
    Sent(usize),
    Queued(usize),
}

impl Sender {
    /// Decides whether a packet from the TUN is queued. Updates the inner TCP flows, and answers
    /// the sender of the packet if an outage has lasted for long enough. If the packet replaces an
    /// older copy in the queue, one of the two counts as dropped.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        packet: &InnerPacket<'_>,
        limits: &Limits,
        stats: &mut Stats,
    ) -> Admission {
        let cost = self.buffers.capacity_for(packet.len()) + size_of::<Record>();
        let class = self.queue.classify(packet);
        let Some(outage) = &self.freeze.outage else {
            let range = self.freeze.track_and_repair(packet, stats);
            let has_room = self.make_room_fairly(class, packet.len(), cost, limits, stats);
            return if has_room { Ok(Admitted { range, class }) } else { reject(stats) };
        };
        let frozen = now.saturating_duration_since(outage.since) >= limits.freeze_grace;
        let flows = &mut self.freeze.flows;
        let segment = Segment::of(packet);
        let tracked = segment.and_then(|segment| Some((flows.on_sending(&segment)?, segment)));
        let Some((at, segment)) = tracked else { return self.admit_untracked(class, cost, limits, stats) };
        let flow = flows.get(at);
        let range = SegmentRange { flow: flow.id, seq: segment.seq, length: segment.length() };
        let (repeats, probes) = (flow.is_retransmission(&segment), flow.is_probe(&segment));
        if frozen && flow.elicits_ack(&segment) {
            self.freeze.send_zero_window(at, &segment, packet, stats);
        }
        self.freeze.flows.on_sent(at, &segment);
        if (repeats && self.is_held(now, at, range, packet, class))
            || (probes && self.is_probe_held(now, at, range, packet, class))
        {
            stats.dropped_duplicate += 1;
            return Err(DropReason::Duplicate);
        }
        if self.count_held(at, range, cost, probes, limits) && self.make_room(cost, limits, stats) {
            Ok(Admitted { range: Some(range), class })
        } else {
            reject(stats)
        }
    }

    /// Returns whether the data of a retransmitted segment is already held, in the replay buffer or
    /// in the queue.
    ///
    /// If the flow has sent nothing after the segment, the fresh copy replaces the old one, because
    /// its timestamp lets the sender measure a round trip instead of the outage. (Otherwise the
    /// newer timestamp would make the segments after it look old to the receiver, which would
    /// refuse them.)
    fn is_held(
        &mut self,
        now: Instant,
        at: usize,
        range: SegmentRange,
        packet: &InnerPacket<'_>,
        class: PacketClass,
    ) -> bool {
        let last = self.freeze.flows.get(at).ends_at(range.seq.wrapping_add(range.length));
        let covers = |held: &SegmentRange| held.length > 0 && held.covers(&range);
        match self.search(now, at, covers).flatten() {
            Some(HeldSegment::Sent(at)) if last && self.replay.range(at) == Some(range) => {
                let old = self.replay.replace(at, self.buffers.copy(packet.bytes), packet.offload);
                old.into_iter().for_each(|old| self.buffers.recycle(old));
            }
            Some(HeldSegment::Queued(at)) if last && self.queue.range(at) == Some(range) => {
                self.replace_queued(at, packet, class);
            }
            Some(_) => {}
            None => return false,
        }
        true
    }

    /// Returns whether a probe need not be queued: the flow has data held, whose answer serves the
    /// probe, too, or an older probe, which the new one replaces.
    fn is_probe_held(
        &mut self,
        now: Instant,
        at: usize,
        range: SegmentRange,
        packet: &InnerPacket<'_>,
        class: PacketClass,
    ) -> bool {
        let outage_number = self.freeze.outage_number;
        let mut held = *self.freeze.flows.get_mut(at).held(outage_number);
        if held.data.is_none() {
            // The lookup happens once an outage; what is queued later is known.
            let has_data = |held: &SegmentRange| held.flow == range.flow && held.length > 0;
            held.data = self.search(now, at, has_data).map(|found| found.is_some());
            self.freeze.flows.get_mut(at).held(outage_number).data = held.data;
        }
        if held.data == Some(true) {
            return true;
        }
        if held.probe != Some(range.seq) {
            return false;
        }
        if let Some(Some(HeldSegment::Queued(at))) = self.search(now, at, |held| *held == range) {
            self.replace_queued(at, packet, class);
        }
        true
    }

    /// Searches the held records for a segment whose sequence range satisfies `wanted`. Returns
    /// `Some(None)` if there is none, and `None` if the flow or the session has used up its search
    /// time.
    fn search(
        &mut self,
        now: Instant,
        at: usize,
        wanted: impl Fn(&SegmentRange) -> bool,
    ) -> Option<Option<HeldSegment>> {
        let flow = self.freeze.flows.get_mut(at);
        let limit = now + SEARCH_CREDIT;
        if [flow.freeze.search_paid_until, self.freeze.search_paid_until]
            .iter()
            .flatten()
            .any(|paid| *paid > limit)
        {
            return None;
        }
        let searched = Cell::new(0);
        let count_and_match = |range: &SegmentRange| {
            searched.update(|count| count + 1);
            wanted(range)
        };
        let mut found = self.replay.find(&wanted).map(HeldSegment::Sent);
        searched.set(match found {
            Some(HeldSegment::Sent(at)) => at + 1,
            _ => self.replay.len(),
        });
        if found.is_none() {
            found = self.queue.find(count_and_match).map(HeldSegment::Queued);
        }
        let price = RECORD_PRICE.saturating_mul(u32::try_from(searched.get()).unwrap_or(u32::MAX));
        let pay = |paid: &mut Option<Instant>, price| *paid = paid.unwrap_or(now).max(now).checked_add(price);
        pay(&mut flow.freeze.search_paid_until, price.saturating_mul(FLOW_SHARE));
        pay(&mut self.freeze.search_paid_until, price);
        Some(found)
    }

    fn replace_queued(&mut self, at: usize, packet: &InnerPacket<'_>, class: PacketClass) {
        let old = self.queue.replace(at, self.buffers.copy(packet.bytes), packet.offload, class);
        old.into_iter().for_each(|old| self.buffers.recycle(old));
    }

    /// Counts a segment of a tracked TCP flow among those that the flow holds in the outage. A flow
    /// needs its oldest segments to go on, so returns false if the flow has queued a quarter of the
    /// queue, or if all flows hold three quarters. Otherwise other packets are dropped to make
    /// room.
    fn count_held(
        &mut self,
        at: usize,
        range: SegmentRange,
        cost: usize,
        probe: bool,
        limits: &Limits,
    ) -> bool {
        let quarter = limits.queue_bytes / 4;
        let held = self.freeze.flows.get_mut(at).held(self.freeze.outage_number);
        if held.cost + cost > quarter || self.queue.tracked_cost() + cost > quarter * 3 {
            return false;
        }
        held.cost += cost;
        if range.length > 0 {
            held.data = Some(true);
        }
        if probe {
            held.probe = Some(range.seq);
        }
        true
    }

    /// Decides whether to queue a packet that belongs to no tracked TCP flow during an outage. The
    /// newest of these matter, so the oldest are dropped to make room. A quarter of the queue is
    /// always left to such packets.
    fn admit_untracked(
        &mut self,
        class: PacketClass,
        cost: usize,
        limits: &Limits,
        stats: &mut Stats,
    ) -> Admission {
        if self.make_room(cost, limits, stats) { Ok(Admitted { range: None, class }) } else { reject(stats) }
    }

    /// Makes room for a packet while no outage lasts, at the cost of the flow with the most bytes
    /// queued. Its newest packets are dropped, because its oldest segment unblocks an inner TCP
    /// flow. Returns false if the packet, of `class` and `length`, is itself the one to drop.
    fn make_room_fairly(
        &mut self,
        class: PacketClass,
        length: usize,
        cost: usize,
        limits: &Limits,
        stats: &mut Stats,
    ) -> bool {
        while self.queue.cost() + cost > limits.queue_bytes {
            let Some(record) = self.queue.pop_from_longest_flow(class, length) else { return false };
            stats.dropped_queue_full += 1;
            self.buffers.recycle(record.packet);
        }
        true
    }

    fn make_room(&mut self, cost: usize, limits: &Limits, stats: &mut Stats) -> bool {
        while self.queue.cost() + cost > limits.queue_bytes {
            let Some(record) = self.queue.pop_oldest_untracked() else { return false };
            stats.dropped_displaced += 1;
            self.buffers.recycle(record.packet);
        }
        true
    }
}

fn reject(stats: &mut Stats) -> Admission {
    stats.dropped_queue_full += 1;
    Err(DropReason::QueueFull)
}
