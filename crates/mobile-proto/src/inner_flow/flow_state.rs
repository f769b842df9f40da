//! The state of one inner TCP flow.

use std::time::Instant;

use super::acceptance::{Acceptance, MAX_DISTANCE, ReceiveWindow};
use crate::segment::{ACK, FIN, FlowKey, SYN, Segment, before};

/// Maximum distance of a trusted reset, within the window, from the sequence number that the local
/// end expects. Some large packets may have been delivered since the local end last sent that
/// number. The local end itself demands the exact number (RFC 5961, 3.2).
pub(super) const MAX_RESET_DISTANCE: u32 = 1 << 20;

/// The largest TCP window (RFC 7323, 2.3), and so the maximum of unacknowledged data.
pub(super) const MAX_WINDOW: u32 = 1 << 30;

/// Bits that record which ends have sent FIN.
const FIN_LOCAL: u8 = 1;
const FIN_REMOTE: u8 = 2;

/// The last acknowledgement with a zero window that was sent to the local end during an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrozenAck {
    /// The sequence number that the local end expects.
    pub(crate) seq: u32,
    pub(crate) timestamps: Option<(u32, u32)>,
}

/// The packets of a flow that are held (queued) during one outage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeldPackets {
    /// The number of the outage in the session.
    outage: u32,
    /// Memory that the packets hold, in bytes.
    pub(crate) cost: usize,
    /// Whether data of the flow is held, sent before the outage or in it; `None` until the session
    /// has searched for it.
    pub(crate) data: Option<bool>,
    /// The sequence number of a held probe: a segment without data that the local end sends to
    /// elicit an acknowledgement.
    pub(crate) probe: Option<u32>,
}

/// An acknowledgement that the local end has not processed, because it refused the segment that
/// carried it.
#[derive(Clone, Copy, Debug)]
struct RefusedAck {
    ack: u32,
    window: u16,
    /// The sequence number after the refused segment.
    end: u32,
}

/// The state of a flow's freeze: the acknowledgement sent to its local end, and whether data is
/// held.
#[derive(Debug, Default)]
pub(crate) struct FlowFreeze {
    /// The acknowledgement with a zero window that the local end received last, until it receives
    /// another window.
    pub(crate) shown: Option<FrozenAck>,
    /// The time by which the flow's searches of the held records are paid for (see `RECORD_PRICE`
    /// in `session::admission`); if it is too far in the future, the session does not search for
    /// the flow.
    pub(crate) search_paid_until: Option<Instant>,
    held: HeldPackets,
}

/// The state of one inner TCP flow.
#[derive(Debug)]
pub(crate) struct FlowState {
    pub(crate) key: FlowKey,
    /// The flow's id in queued records; not reused before 2^32 further flows.
    pub(crate) id: u32,
    /// The last acknowledgement of the other end that was delivered to the local end.
    pub(crate) acked: u32,
    /// The unscaled window in that acknowledgement; `None` if a SYN carried the acknowledgement,
    /// because its window is never scaled.
    pub(crate) window: Option<u16>,
    pub(crate) freeze: FlowFreeze,
    /// The sequence number of the other end's segment that carried `window`.
    window_seq: u32,
    /// The sequence number after the other end's segment that carried `acked`.
    acked_end: u32,
    /// The sequence number after all data that the local end was seen to send.
    pub(super) end: u32,
    /// The receive window of the local end; `None` while the flow is unconfirmed.
    pub(super) receive_window: Option<ReceiveWindow>,
    refused_ack: Option<RefusedAck>,
    fins: u8,
    pub(super) last_used: u64,
}

impl FlowState {
    /// Creates an unconfirmed flow from a segment that is delivered to its local end.
    pub(super) fn new(key: FlowKey, segment: &Segment) -> Self {
        Self {
            key,
            id: 0,
            acked: segment.ack,
            window: None,
            freeze: FlowFreeze::default(),
            window_seq: segment.seq,
            acked_end: segment.end(),
            end: segment.ack,
            receive_window: None,
            refused_ack: None,
            fins: 0,
            last_used: 0,
        }
    }

    /// Returns whether all data of the local end is acknowledged.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.acked == self.end
    }

    /// Returns whether the local end has sent nothing beyond this sequence number.
    pub(crate) fn ends_at(&self, seq: u32) -> bool {
        self.end == seq
    }

    /// Returns whether the sender of the segment waits for an answer: the segment has data, or is a
    /// probe of a closed window or of TCP keepalive, which repeats the last acknowledged sequence
    /// number.
    pub(crate) fn elicits_ack(&self, segment: &Segment) -> bool {
        segment.length() > 0 || self.is_probe(segment)
    }

    /// Returns whether the segment of the local end is a probe without data, which repeats the last
    /// acknowledged sequence number.
    pub(crate) fn is_probe(&self, segment: &Segment) -> bool {
        segment.length() == 0 && segment.seq == self.acked.wrapping_sub(1)
    }

    /// Returns the other end's acknowledgement and window if the local end's segment shows that the
    /// local end does not know them: it refused the segment that carried them as old, and then
    /// ignores the acknowledgement (RFC 9293, 3.10.7.4). The window is `None` if it is unknown.
    ///
    /// The situation arises if both ends were shown a closed window in an outage and then never
    /// received the acknowledgements of each other's progress, for instance because both programs
    /// of the tunnel were killed. While the window is closed, a sender can send only its oldest
    /// sequence numbers (`tcp_acceptable_seq()`), so each end refuses the other's segments, and
    /// neither learns of the open window.
    pub(crate) fn missed_ack(&self, segment: &Segment) -> Option<(u32, Option<u16>)> {
        let is_missed = |ack: u32, end: u32| {
            let behind_expected = segment.ack.wrapping_sub(end);
            let unknown = ack.wrapping_sub(segment.seq);
            // A probe repeats a byte that its sender knows to be acknowledged.
            (2..=MAX_DISTANCE).contains(&unknown) && (1..=MAX_DISTANCE).contains(&behind_expected)
        };
        match self.refused_ack {
            Some(RefusedAck { ack, window, end }) if is_missed(ack, end) => Some((ack, Some(window))),
            _ => is_missed(self.acked, self.acked_end).then_some((self.acked, self.window)),
        }
    }

    /// Records that the missed acknowledgement was sent to the local end again, in a segment that
    /// it accepts.
    pub(crate) fn ack_repeated(&mut self, ack: u32, window: u16) {
        if let Some(refused_ack) = self.refused_ack.take_if(|refused_ack| refused_ack.ack == ack) {
            (self.acked, self.window, self.acked_end) = (ack, Some(window), refused_ack.end);
        }
    }

    /// Returns whether the segment has data or FIN, and nothing beyond what was sent before.
    pub(crate) fn is_retransmission(&self, segment: &Segment) -> bool {
        segment.length() > 0 && !before(self.end, segment.end())
    }

    /// Returns the packets that the flow has queued during the outage with this number; none yet if
    /// the outage is new.
    pub(crate) fn held(&mut self, outage: u32) -> &mut HeldPackets {
        let held = &mut self.freeze.held;
        if held.outage != outage {
            *held = HeldPackets { outage, ..HeldPackets::default() };
        }
        held
    }

    /// Returns whether the local end's first segment agrees with the state of an unconfirmed flow:
    /// by its numbers, the local end accepts the recorded segment, or has refused it without
    /// processing its acknowledgement.
    pub(super) fn agrees_with(&self, segment: &Segment, receive_window: &ReceiveWindow) -> bool {
        let missed = self.missed_ack(segment).is_some();
        // The segment may also answer a probe, which repeats the byte before the next (RFC 9293,
        // 3.8.4).
        let accepted = [0, 1].into_iter().any(|probe| {
            let [seq, end] = [self.window_seq, self.acked_end].map(|number| number.wrapping_add(probe));
            receive_window.judge(seq, end) == Acceptance::Current
        });
        // The local end does not repeat what it knows to be acknowledged, except for the byte of a
        // probe.
        (missed || (accepted && !before(segment.end().wrapping_add(1), self.acked)))
            && (before(segment.seq, self.acked) || segment.seq.wrapping_sub(self.acked) <= MAX_WINDOW)
    }

    /// Forgets the held probe, because it may have been dropped.
    pub(crate) fn forget_probe(&mut self) {
        self.freeze.held.probe = None;
    }

    /// Judges a delivered segment as the local end does. In an unconfirmed flow every segment is
    /// accepted.
    pub(super) fn judge(&self, segment: &Segment) -> Acceptance {
        let judged = |receive_window: &ReceiveWindow| receive_window.judge(segment.seq, segment.end());
        self.receive_window.as_ref().map_or(Acceptance::Current, judged)
    }

    /// Returns whether a delivered reset is to be trusted: the local end accepts it, and its number
    /// is near the expected one.
    pub(super) fn is_reset_by(&self, segment: &Segment) -> bool {
        let near = |receive_window: &ReceiveWindow| {
            segment.seq.wrapping_sub(receive_window.next()) <= MAX_RESET_DISTANCE
        };
        self.judge(segment) == Acceptance::Current && self.receive_window.as_ref().is_none_or(near)
    }

    /// Updates the flow from a segment of the other end that the local end accepts.
    pub(super) fn on_remote_segment(&mut self, segment: &Segment) {
        let unsent = before(self.end, segment.ack);
        let ancient = before(segment.ack, self.acked.wrapping_sub(MAX_DISTANCE));
        if unsent || ancient {
            // The local end drops such a segment as a whole (RFC 5961, 5.2).
            return;
        }
        let newer = before(self.acked, segment.ack);
        if newer || (self.acked == segment.ack && !before(segment.seq, self.window_seq)) {
            // An acknowledgement repeated in a segment that is not refused is known to the local
            // end.
            if newer || before(self.acked_end, segment.end()) {
                self.acked_end = segment.end();
            }
            self.acked = segment.ack;
            self.window_seq = segment.seq;
            // The window of a SYN is not scaled; later windows may be (RFC 7323, 2.2).
            self.window = (!segment.has(SYN)).then_some(segment.window);
            self.refused_ack.take_if(|refused_ack| !before(segment.ack, refused_ack.ack));
        }
        let fin = segment.end().wrapping_sub(1);
        if segment.has(FIN)
            && self.receive_window.as_ref().is_none_or(|receive_window| receive_window.contains(fin))
        {
            self.fins |= FIN_REMOTE;
        }
    }

    /// Remembers the acknowledgement number of a segment that the acceptance check refuses. The
    /// number counts only if a later segment of the local end shows that the check was wrong, and
    /// that this state [missed](Self::missed_ack) the number.
    pub(super) fn on_refused_segment(&mut self, segment: &Segment) {
        let newer = before(self.acked, segment.ack) && !before(self.end, segment.ack);
        let last = self.refused_ack.is_none_or(|refused_ack| {
            before(refused_ack.ack, segment.ack)
                || (refused_ack.ack == segment.ack && !before(segment.end(), refused_ack.end))
        });
        if newer && last {
            self.refused_ack =
                Some(RefusedAck { ack: segment.ack, window: segment.window, end: segment.end() });
        }
    }

    /// Updates the flow from a segment of the local end.
    pub(super) fn on_local_segment(&mut self, segment: &Segment) {
        if before(self.end, segment.end()) {
            self.end = segment.end();
        }
        if segment.has(ACK) {
            match &mut self.receive_window {
                Some(receive_window) => receive_window.update(segment),
                None => self.receive_window = Some(ReceiveWindow::from_segment(segment, None)),
            }
        }
        if segment.has(FIN) {
            self.fins |= FIN_LOCAL;
        }
    }

    /// Returns whether the connection is over: both ends have sent FIN, and the local end's is
    /// acknowledged.
    pub(super) fn is_over(&self) -> bool {
        self.fins == FIN_LOCAL | FIN_REMOTE && self.is_acknowledged()
    }
}
