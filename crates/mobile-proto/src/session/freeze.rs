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

use std::time::Instant;

use super::Session;
use crate::inner_flow::{FlowState, FlowTable, FrozenAck};
use crate::packet::InnerPacket;
use crate::queue::SegmentRange;
use crate::segment::{self, AckPacket, BareAck, Segment};
use crate::{Limits, Stats};

/// Maximum number of acknowledgements that wait for [`Session::poll_local`]. More are not needed,
/// because the caller polls after every few packets, and a sender that gets no answer sends again.
const MAX_ANSWERS: usize = 128;

/// The state of the inner TCP flows and of the current outage.
#[derive(Debug, Default)]
pub(super) struct Freeze {
    pub(super) flows: FlowTable,
    /// The current outage; `None` without one.
    pub(super) outage: Option<Outage>,
    /// The number of outages so far.
    pub(super) outage_number: u32,
    acks: Vec<AckPacket>,
    /// Whether an outage has ended and frozen flows may need a window update.
    window_updates_due: bool,
    /// The time by which the searches of all flows are paid for.
    pub(super) search_paid_until: Option<Instant>,
}

/// A period in which nothing gets through to the other end.
#[derive(Debug)]
pub(super) struct Outage {
    pub(super) since: Instant,
    /// When the held packets are thinned next, because the outage lasts long: see
    /// [`Limits::thin_after`].
    thin_at: Option<Instant>,
}

impl Session {
    /// Passes packets for the TUN that the session generated itself to `deliver`. These are
    /// acknowledgements for inner TCP senders in the name of the other end during an outage, and
    /// window updates after it. To be called after packets were [enqueued](Self::enqueue) and after
    /// [transmission](Self::poll_transmit).
    pub fn poll_local(&mut self, now: Instant, deliver: &mut dyn FnMut(InnerPacket<'_>)) {
        self.update_outage(now);
        self.sender.freeze.poll_local(deliver, &mut self.stats);
    }

    /// Records whether an outage has begun or ended.
    pub(super) fn update_outage(&mut self, now: Instant) {
        self.sender.update_outage(now, self.paths.cut_off_since(now), &self.limits);
    }
}

impl Freeze {
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

    /// Updates the inner TCP flows with a packet of the peer that is delivered to the TUN.
    pub(super) fn note_delivered(&mut self, packet: &InnerPacket<'_>) {
        if let Some(segment) = Segment::of(packet) {
            self.flows.on_delivered(&segment);
        }
    }

    /// Updates the inner TCP flow of a packet from the TUN. Returns the sequence range of a segment
    /// of a tracked flow.
    pub(super) fn track_packet(&mut self, packet: &InnerPacket<'_>) -> Option<SegmentRange> {
        let segment = Segment::of(packet)?;
        let at = self.flows.on_sending(&segment)?;
        Some(self.track(at, &segment))
    }

    /// Returns when the held packets are thinned next.
    pub(super) fn thin_at(&self) -> Option<Instant> {
        self.outage.as_ref()?.thin_at
    }

    /// Records that the held packets are thinned now.
    pub(super) fn on_thinned(&mut self, now: Instant, limits: &Limits) {
        if let Some(outage) = &mut self.outage {
            outage.thin_at = now.checked_add(limits.thin_after);
        }
        self.flows.iter_mut().for_each(FlowState::forget_probe);
    }

    /// Updates the inner TCP flow of a packet that the local end has sent just now, and repeats an
    /// acknowledgement of the other end that the packet shows to be missed. Returns the sequence
    /// range of a segment of a tracked flow.
    pub(super) fn track_and_repair(
        &mut self,
        packet: &InnerPacket<'_>,
        stats: &mut Stats,
    ) -> Option<SegmentRange> {
        let segment = Segment::of(packet)?;
        let at = self.flows.on_sending(&segment)?;
        if let Some((ack, Some(window))) = self.flows.get(at).missed_ack(&segment) {
            self.repeat_ack(at, &segment, packet, (ack, window), stats);
        }
        Some(self.track(at, &segment))
    }

    fn track(&mut self, at: usize, segment: &Segment) -> SegmentRange {
        self.flows.on_sent(at, segment);
        SegmentRange { flow: self.flows.get(at).id, seq: segment.seq, length: segment.length() }
    }

    /// Queues for the local end a copy of the other end's acknowledgement, which the local end had
    /// refused, with the sequence number that the local end expects.
    fn repeat_ack(
        &mut self,
        at: usize,
        segment: &Segment,
        packet: &InnerPacket<'_>,
        (ack, window): (u32, u16),
        stats: &mut Stats,
    ) {
        if self.acks.len() >= MAX_ANSWERS {
            return;
        }
        // As in `send_zero_window`: not older than any timestamp that the sender has.
        let timestamps = segment::timestamps(*packet).map(|(value, echo)| (echo, value));
        let flow = self.flows.get_mut(at);
        flow.ack_repeated(ack, window);
        let again = BareAck { to: flow.key, seq: segment.ack, ack, window, timestamps };
        self.acks.push(again.packet());
        stats.local_answers += 1;
    }

    /// Queues for the local end an acknowledgement in the name of the other end: no new data has
    /// arrived, and the window is zero.
    pub(super) fn send_zero_window(
        &mut self,
        at: usize,
        segment: &Segment,
        packet: &InnerPacket<'_>,
        stats: &mut Stats,
    ) {
        if self.acks.len() >= MAX_ANSWERS {
            return;
        }
        // The timestamp that the sender echoes is the last one it received. It is not older than
        // any it has, so it is not refused as old (PAWS, RFC 7323, 5).
        let timestamps = segment::timestamps(*packet).map(|(value, echo)| (echo, value));
        let flow = self.flows.get_mut(at);
        flow.freeze.shown = Some(FrozenAck { seq: segment.ack, timestamps });
        let answer = BareAck { to: flow.key, seq: segment.ack, ack: flow.acked, window: 0, timestamps };
        self.acks.push(answer.packet());
        stats.local_answers += 1;
    }

    /// Begins an outage if nothing has got through since `cut_off_since`, or ends it. Returns
    /// whether an outage lasts, or lasted until now.
    pub(super) fn update_outage(
        &mut self,
        now: Instant,
        cut_off_since: Option<Instant>,
        limits: &Limits,
    ) -> bool {
        match (cut_off_since, &self.outage) {
            (None, None) => return false,
            (Some(since), None) => {
                self.outage = Some(Outage { since, thin_at: now.checked_add(limits.thin_after) });
                self.outage_number = self.outage_number.wrapping_add(1);
            }
            (None, Some(_)) => {
                self.outage = None;
                self.window_updates_due = true;
                // The other end itself answers what was sent last.
                self.acks.clear();
            }
            (Some(_), Some(_)) => {}
        }
        true
    }

    fn poll_local(&mut self, deliver: &mut dyn FnMut(InnerPacket<'_>), stats: &mut Stats) {
        for answer in self.acks.drain(..) {
            deliver(answer.bytes().into());
        }
        if !std::mem::take(&mut self.window_updates_due) {
            return;
        }
        for flow in self.flows.iter_mut() {
            let Some(FrozenAck { seq, timestamps }) = flow.freeze.shown.take() else { continue };
            if let Some(window) = flow.window.filter(|&window| window > 0 && flow.is_acknowledged()) {
                stats.local_answers += 1;
                let update = BareAck { to: flow.key, seq, ack: flow.acked, window, timestamps };
                deliver(update.packet().bytes().into());
            }
        }
    }
}

#[cfg(test)]
mod tests;
