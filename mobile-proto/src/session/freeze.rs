//! The freeze of inner TCP during an outage: each local TCP sender is shown a receiver that has no
//! room for the moment (after Freeze-TCP and M-TCP, with a far end that needs no changes).
//!
//! A TCP sender that gets no answer retransmits at growing intervals, and gives up:
//! `tcp_write_timeout()` in Linux, after `tcp_retries2`. A sender whose window was closed waits for
//! ever instead. With data in flight, `tcp_retransmit_timer()` takes its "receiver dastardly
//! shrinks window" branch, in which `tcp_rtx_probe0_timed_out()` checks only when anything was last
//! received (two `TCP_RTO_MAX` ago). With nothing in flight, `tcp_probe_timer()` counts probes
//! without an answer, and `tcp_ack()` resets that count. So each end of the tunnel answers the
//! senders on its side with the last acknowledgement that was delivered to them and a zero window.
//! `tcp_may_update_window()` accepts a zero window at the same sequence number since Linux 6.6; an
//! older sender accepts it if the last segment it received carried data.
//!
//! Only segments that need an answer are answered, and only after a grace period. A zero window
//! costs its sender the ramp-up of a retransmission timeout, so an ordinary handover shows none,
//! and a flow that is silent during the outage needs none. An unsolicited answer would not speed up
//! the end either: the data in flight is held, and the other end's acknowledgement of it opens the
//! window.
//!
//! At the end of the outage, held segments are sent first. A window update is sent only to a frozen
//! flow that has nothing unacknowledged. With data in flight, the open window would lead
//! `tcp_retransmit_timer()` back to `tcp_write_timeout()`, which counts from the first
//! retransmission, and so the whole outage.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::Session;
use crate::inner_flow::{FlowTable, FrozenAck};
use crate::queue::SegmentRange;
use crate::segment::{self, AckPacket, BareAck, Segment};
use crate::{DropReason, Packet};

/// Maximum number of acknowledgements that wait for [`Session::poll_local`]. More are not needed,
/// because the caller polls after every few packets, and a sender that gets no answer sends again.
const MAX_ANSWERS: usize = 128;

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

/// The state of the inner TCP flows and of the current outage.
#[derive(Debug, Default)]
pub(super) struct Freeze {
    pub(super) flows: FlowTable,
    /// When the current outage began; `None` without one.
    outage_since: Option<Instant>,
    /// The number of outages so far.
    outage_number: u32,
    acks: Vec<AckPacket>,
    /// Whether an outage has ended and frozen flows may need a window update.
    window_updates_due: bool,
    /// When a relay thins the packets that it holds for its client, because an outage lasts long:
    /// see [`Limits::thin_after`](crate::Limits::thin_after).
    pub(super) thin_at: Option<Instant>,
    /// The time by which the searches of all flows are paid for: see [`RECORD_PRICE`].
    search_paid_until: Option<Instant>,
}

/// Where the session still stores a segment of an inner flow: its index in the replay buffer (sent
/// and not acknowledged) or in the queue (not sent yet).
enum HeldSegment {
    Sent(usize),
    Queued(usize),
}

impl Freeze {
    /// Updates the inner TCP flows with a packet of the peer that is delivered to the TUN.
    pub(super) fn note_delivered(&mut self, packet: &[u8]) {
        if let Some(segment) = Segment::parse(packet) {
            self.flows.on_delivered(&segment);
        }
    }

    /// Adopts the state of a former session, unless this session already tracks flows. Returns
    /// whether it did.
    pub(super) fn take_over(&mut self, former: Self) -> bool {
        let take = self.flows.is_empty();
        if take {
            // Frozen flows get their window update at the end of the outage, even if the former
            // session was about to do so.
            *self = Self { acks: Vec::new(), window_updates_due: false, ..former };
        }
        take
    }
}

/// The decision whether a packet from the TUN is queued.
pub(super) enum Admission {
    /// The packet is queued, with its sequence range if it is a segment of a tracked TCP flow.
    Queue(Option<SegmentRange>),
    /// The packet is dropped and was counted.
    Drop(DropReason),
}

impl Session {
    /// Passes packets for the TUN that the session generated itself to `deliver`. These are
    /// acknowledgements for inner TCP senders in the name of the other end during an outage, and
    /// window updates after it. To be called after packets were [enqueued](Self::enqueue) and after
    /// [transmission](Self::poll_transmit).
    pub fn poll_local(&mut self, now: Instant, deliver: &mut dyn FnMut(Packet<'_>)) {
        self.update_outage(now);
        for answer in self.freeze.acks.drain(..) {
            deliver(answer.bytes().into());
        }
        if !std::mem::take(&mut self.freeze.window_updates_due) {
            return;
        }
        for flow in self.freeze.flows.iter_mut() {
            let Some(FrozenAck { seq, timestamps }) = flow.frozen.take() else { continue };
            if let Some(window) = flow.window.filter(|&window| window > 0 && flow.is_acknowledged()) {
                self.stats.local_answers += 1;
                let update = BareAck { to: flow.key, seq, ack: flow.acked, window, timestamps };
                deliver(update.packet().bytes().into());
            }
        }
    }

    /// Returns whether nothing gets through: no path is active, or the active one is unresponsive.
    /// (A relay keeps a silent path for long, because the client is the one to act first.)
    pub(super) fn is_cut_off(&self) -> bool {
        match self.active.and_then(|path| self.find(path)) {
            Some(index) => self.paths[index].health.is_unresponsive(),
            None => true,
        }
    }

    /// Decides whether a packet from the TUN is queued. Updates the inner TCP flows, and answers
    /// the sender of the packet if an outage has lasted for long enough. A packet that replaces an
    /// older copy counts as dropped.
    pub(super) fn admit(&mut self, now: Instant, packet: Packet<'_>, cost: usize) -> Admission {
        self.update_outage(now);
        let Some(since) = self.freeze.outage_since else {
            let range = self.track_and_repair(packet.bytes);
            return if self.make_room_fairly(packet.bytes, cost) {
                Admission::Queue(range)
            } else {
                self.reject()
            };
        };
        let frozen = now.saturating_duration_since(since) >= self.limits.freeze_grace;
        let Some(segment) = Segment::parse(packet.bytes) else { return self.admit_untracked(cost) };
        let Some(at) = self.freeze.flows.on_sending(&segment) else { return self.admit_untracked(cost) };
        let flow = self.freeze.flows.get(at);
        let range = SegmentRange { flow: flow.id, seq: segment.seq, length: segment.length() };
        let (repeats, probes) = (flow.is_retransmission(&segment), flow.is_probe(&segment));
        if frozen && flow.elicits_ack(&segment) {
            self.send_zero_window(at, &segment, packet.bytes);
        }
        self.freeze.flows.on_sent(at, &segment);
        if (repeats && self.is_held(now, at, range, packet))
            || (probes && self.is_probe_held(now, at, range, packet))
        {
            self.stats.dropped_duplicate += 1;
            return Admission::Drop(DropReason::Duplicate);
        }
        self.admit_tracked(at, range, cost, probes)
    }

    /// Updates the inner TCP flow of a packet from the TUN. Returns the sequence range of a segment
    /// of a tracked flow.
    pub(super) fn track_packet(&mut self, packet: &[u8]) -> Option<SegmentRange> {
        let segment = Segment::parse(packet)?;
        let at = self.freeze.flows.on_sending(&segment)?;
        Some(self.track(at, &segment))
    }

    /// Updates the inner TCP flow of a packet that the local end has sent just now, and repeats an
    /// acknowledgement of the other end that the packet shows to be missed. Returns the sequence
    /// range of a segment of a tracked flow.
    fn track_and_repair(&mut self, packet: &[u8]) -> Option<SegmentRange> {
        let segment = Segment::parse(packet)?;
        let at = self.freeze.flows.on_sending(&segment)?;
        if let Some((ack, Some(window))) = self.freeze.flows.get(at).missed_ack(&segment) {
            self.repeat_ack(at, &segment, packet, (ack, window));
        }
        Some(self.track(at, &segment))
    }

    fn track(&mut self, at: usize, segment: &Segment) -> SegmentRange {
        let flows = &mut self.freeze.flows;
        flows.on_sent(at, segment);
        SegmentRange { flow: flows.get(at).id, seq: segment.seq, length: segment.length() }
    }

    /// Queues for the local end a copy of the other end's acknowledgement, which the local end had
    /// refused, with the sequence number that the local end expects.
    fn repeat_ack(&mut self, at: usize, segment: &Segment, packet: &[u8], (ack, window): (u32, u16)) {
        if self.freeze.acks.len() >= MAX_ANSWERS {
            return;
        }
        // As in `send_zero_window`: not older than any timestamp that the sender has.
        let timestamps = segment::timestamps(packet).map(|(value, echo)| (echo, value));
        let flow = self.freeze.flows.get_mut(at);
        flow.ack_repeated(ack, window);
        let again = BareAck { to: flow.key, seq: segment.ack, ack, window, timestamps };
        self.freeze.acks.push(again.packet());
        self.stats.local_answers += 1;
    }

    /// Queues for the local end an acknowledgement in the name of the other end: no new data has
    /// arrived, and the window is zero.
    fn send_zero_window(&mut self, at: usize, segment: &Segment, packet: &[u8]) {
        if self.freeze.acks.len() >= MAX_ANSWERS {
            return;
        }
        // The timestamp that the sender echoes is the last one it received. It is not older than
        // any it has, so it is not refused as old (PAWS, RFC 7323, 5).
        let timestamps = segment::timestamps(packet).map(|(value, echo)| (echo, value));
        let flow = self.freeze.flows.get_mut(at);
        flow.frozen = Some(FrozenAck { seq: segment.ack, timestamps });
        let answer = BareAck { to: flow.key, seq: segment.ack, ack: flow.acked, window: 0, timestamps };
        self.freeze.acks.push(answer.packet());
        self.stats.local_answers += 1;
    }

    /// Returns whether the data of a retransmitted segment is already held, in the replay buffer or
    /// in the queue.
    ///
    /// If the flow has sent nothing after the segment, the fresh copy replaces the old one, because
    /// its timestamp lets the sender measure a round trip instead of the outage. (Otherwise the
    /// newer timestamp would make the segments after it look old to the receiver, which would
    /// refuse them.)
    fn is_held(&mut self, now: Instant, at: usize, range: SegmentRange, packet: Packet<'_>) -> bool {
        let last = self.freeze.flows.get(at).ends_at(range.seq.wrapping_add(range.length));
        let covers = |held: &SegmentRange| held.length > 0 && held.covers(&range);
        match self.search(now, at, covers).flatten() {
            Some(HeldSegment::Sent(at)) if last && self.replay.range(at) == Some(range) => {
                let old = self.replay.replace(at, self.buffers.copy(packet.bytes), packet.offload);
                old.into_iter().for_each(|old| self.buffers.recycle(old));
            }
            Some(HeldSegment::Queued(at)) if last && self.queue.range(at) == Some(range) => {
                self.replace_queued(at, packet);
            }
            Some(_) => {}
            None => return false,
        }
        true
    }

    /// Returns whether a probe need not be queued: the flow has data held, whose answer serves the
    /// probe, too, or an older probe, which the new one replaces.
    fn is_probe_held(&mut self, now: Instant, at: usize, range: SegmentRange, packet: Packet<'_>) -> bool {
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
            self.replace_queued(at, packet);
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
        if [flow.search_paid_until, self.freeze.search_paid_until].iter().flatten().any(|paid| *paid > limit)
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
        pay(&mut flow.search_paid_until, price.saturating_mul(FLOW_SHARE));
        pay(&mut self.freeze.search_paid_until, price);
        Some(found)
    }

    fn replace_queued(&mut self, at: usize, packet: Packet<'_>) {
        let old = self.queue.replace(at, self.buffers.copy(packet.bytes), packet.offload);
        old.into_iter().for_each(|old| self.buffers.recycle(old));
    }

    /// Decides whether to queue a segment of a tracked TCP flow during an outage. A flow needs its
    /// oldest segments to go on, so the new segment is refused if the flow has queued a quarter of
    /// the queue, or if all flows hold three quarters. Otherwise other packets are dropped to make
    /// room.
    fn admit_tracked(&mut self, at: usize, range: SegmentRange, cost: usize, probe: bool) -> Admission {
        let (outage_number, queue_bytes) = (self.freeze.outage_number, self.limits.queue_bytes);
        let held = self.freeze.flows.get_mut(at).held(outage_number);
        if held.cost + cost > queue_bytes / 4 || self.queue.tracked_cost() + cost > queue_bytes / 4 * 3 {
            return self.reject();
        }
        held.cost += cost;
        if range.length > 0 {
            held.data = Some(true);
        }
        if probe {
            held.probe = Some(range.seq);
        }
        if self.make_room(cost) { Admission::Queue(Some(range)) } else { self.reject() }
    }

    /// Decides whether to queue a packet that belongs to no tracked TCP flow during an outage. The
    /// newest of these matter, so the oldest are dropped to make room. A quarter of the queue is
    /// always left to such packets.
    fn admit_untracked(&mut self, cost: usize) -> Admission {
        if self.make_room(cost) { Admission::Queue(None) } else { self.reject() }
    }

    /// Makes room for a packet while no outage lasts, at the cost of the flow with the most bytes
    /// queued. Its newest packets are dropped, because its oldest segment unblocks an inner TCP
    /// flow. Returns false if `packet` is itself the one to drop.
    fn make_room_fairly(&mut self, packet: &[u8], cost: usize) -> bool {
        while self.queue.cost() + cost > self.limits.queue_bytes {
            let Some(record) = self.queue.pop_from_longest_flow(packet) else { return false };
            self.stats.dropped_queue_full += 1;
            self.buffers.recycle(record.packet);
        }
        true
    }

    fn make_room(&mut self, cost: usize) -> bool {
        while self.queue.cost() + cost > self.limits.queue_bytes {
            let Some(record) = self.queue.pop_oldest_untracked() else { return false };
            self.stats.dropped_displaced += 1;
            self.buffers.recycle(record.packet);
        }
        true
    }

    fn reject(&mut self) -> Admission {
        self.stats.dropped_queue_full += 1;
        Admission::Drop(DropReason::QueueFull)
    }

    pub(super) fn update_outage(&mut self, now: Instant) {
        let cut_off = self.is_cut_off();
        if cut_off || self.freeze.outage_since.is_some() {
            self.queue.exempt_waiting(now);
        }
        match (cut_off, self.freeze.outage_since) {
            (true, None) => {
                // A path becomes unresponsive long after it fell silent.
                let active = self.active.and_then(|path| self.find(path));
                let silent = active.and_then(|at| self.paths[at].health.stalled_since());
                self.freeze.outage_since = Some(silent.unwrap_or(now));
                self.freeze.thin_at = now.checked_add(self.limits.thin_after);
                self.freeze.outage_number = self.freeze.outage_number.wrapping_add(1);
            }
            (false, Some(_)) => {
                (self.freeze.outage_since, self.freeze.thin_at) = (None, None);
                self.freeze.window_updates_due = true;
                // The other end itself answers what was sent last.
                self.freeze.acks.clear();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
