//! State of the inner TCP flows of a session: how much data of the *local end*, on this side of the
//! tunnel, the *other end*, beyond the tunnel, has acknowledged. In the name of the other end, the
//! session may acknowledge no more than that.
//!
//! Anybody on the Internet can send a segment to the local end in the name of another host. For
//! this reason a flow is trusted only after the local end itself has sent a segment of it. Until
//! then the flow is *unconfirmed*: there are few unconfirmed flows, and they displace only each
//! other. After that, the acknowledgement, window, FIN or RST of a delivered segment is used only
//! if the local end accepts the segment by its own sequence numbers; [`acceptance`] decides this.

mod acceptance;

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use acceptance::{Acceptance, MAX_DISTANCE, ReceiveWindow};

use crate::segment::{ACK, FIN, FlowKey, RST, SYN, Segment, before};

/// Maximum number of tracked flows: a laptop has dozens, a busy one hundreds. A full table takes at
/// most 270 KiB, an empty one nothing.
const MAX_FLOWS: usize = 1024;

/// Maximum number of unconfirmed flows, of which no segment of the local end was seen. The local
/// end of a live flow answers within microseconds, so few flows are unconfirmed at a time. The list
/// is searched linearly.
const MAX_UNCONFIRMED: usize = 64;

/// Number of flows that are compared when a flow has to be evicted for a new one: the least
/// recently used of them goes, and the next eviction compares the next ones. A search of the whole
/// table for each new flow would be work that anybody could cause.
const EVICTION_CANDIDATES: usize = 16;

/// Maximum number of handshakes whose window scale is remembered until the flow is tracked.
const MAX_HANDSHAKES: usize = 64;

/// Maximum distance of a trusted reset, within the window, from the sequence number that the local
/// end expects. Some large packets may have been delivered since the local end last sent that
/// number. The local end itself demands the exact number (RFC 5961, 3.2).
const MAX_RESET_DISTANCE: u32 = 1 << 20;

/// The largest TCP window (RFC 7323, 2.3), and so the maximum of unacknowledged data.
const MAX_WINDOW: u32 = 1 << 30;

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
    pub(crate) frozen: Option<FrozenAck>,
    /// The time by which the flow's searches of the held records are paid for (see `RECORD_PRICE`
    /// in `session::freeze`); if it is too far in the future, the session does not search for the
    /// flow.
    pub(crate) search_paid_until: Option<Instant>,
    held: HeldPackets,
    /// The sequence number of the other end's segment that carried `window`.
    window_seq: u32,
    /// The sequence number after the other end's segment that carried `acked`.
    acked_end: u32,
    /// The sequence number after all data that the local end was seen to send.
    end: u32,
    /// The receive window of the local end; `None` while the flow is unconfirmed.
    receive_window: Option<ReceiveWindow>,
    refused_ack: Option<RefusedAck>,
    fins: u8,
    last_used: u64,
}

impl FlowState {
    fn new(key: FlowKey, segment: &Segment) -> Self {
        Self {
            key,
            id: 0,
            acked: segment.ack,
            window: None,
            frozen: None,
            search_paid_until: None,
            held: HeldPackets::default(),
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
        if self.held.outage != outage {
            self.held = HeldPackets { outage, ..HeldPackets::default() };
        }
        &mut self.held
    }

    /// Returns whether the local end's first segment agrees with the state of an unconfirmed flow:
    /// by its numbers, the local end accepts the recorded segment, or has refused it without
    /// processing its acknowledgement.
    fn agrees_with(&self, segment: &Segment, receive_window: &ReceiveWindow) -> bool {
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
        self.held.probe = None;
    }

    /// Judges a delivered segment as the local end does. In an unconfirmed flow every segment is
    /// accepted.
    fn judge(&self, segment: &Segment) -> Acceptance {
        let judged = |receive_window: &ReceiveWindow| receive_window.judge(segment.seq, segment.end());
        self.receive_window.as_ref().map_or(Acceptance::Current, judged)
    }

    /// Returns whether a delivered reset is to be trusted: the local end accepts it, and its number
    /// is near the expected one.
    fn is_reset_by(&self, segment: &Segment) -> bool {
        let near = |receive_window: &ReceiveWindow| {
            segment.seq.wrapping_sub(receive_window.next()) <= MAX_RESET_DISTANCE
        };
        self.judge(segment) == Acceptance::Current && self.receive_window.as_ref().is_none_or(near)
    }

    /// Updates the flow from a segment of the other end that the local end accepts.
    fn on_remote_segment(&mut self, segment: &Segment) {
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
    fn on_refused_segment(&mut self, segment: &Segment) {
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

    fn on_local_segment(&mut self, segment: &Segment) {
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
    fn is_over(&self) -> bool {
        self.fins == FIN_LOCAL | FIN_REMOTE && self.is_acknowledged()
    }
}

/// The inner TCP flows of a session.
#[derive(Debug, Default)]
pub(crate) struct FlowTable {
    index: HashMap<FlowKey, usize>,
    flows: Vec<FlowState>,
    /// Flows of which no segment of the local end was seen, the oldest first.
    unconfirmed: VecDeque<FlowState>,
    /// The window scales in the SYNs of the local ends, the oldest first.
    handshakes: VecDeque<(FlowKey, u8)>,
    clock: u64,
    next_id: u32,
    /// The index of the flow that the next eviction compares first.
    eviction_hand: usize,
}

impl FlowTable {
    /// Updates the table with a segment that is delivered to the local end. Only such a segment
    /// creates a flow, because a segment from the TUN alone may be anybody's attempt to connect.
    pub(crate) fn on_delivered(&mut self, segment: &Segment) {
        let key = segment.key.reversed();
        match self.index.get(&key) {
            Some(&at) => self.delivered_tracked(at, segment),
            None => self.delivered_unconfirmed(key, segment),
        }
    }

    fn delivered_tracked(&mut self, at: usize, segment: &Segment) {
        let flow = &mut self.flows[at];
        let key = flow.key;
        if segment.has(RST) {
            if flow.is_reset_by(segment) {
                self.remove(key);
            }
            return;
        }
        // A SYN that starts another flow is confirmed by the local end's own SYN.
        if segment.has(SYN) || !segment.has(ACK) {
            return;
        }
        match flow.judge(segment) {
            Acceptance::Current => {
                self.clock += 1;
                flow.last_used = self.clock;
                flow.on_remote_segment(segment);
                if flow.is_over() {
                    self.remove(key);
                }
            }
            Acceptance::Old => flow.on_refused_segment(segment),
            Acceptance::Outside => {}
        }
    }

    fn delivered_unconfirmed(&mut self, key: FlowKey, segment: &Segment) {
        let mut known = self.unconfirmed.iter().position(|flow| flow.key == key);
        if segment.has(RST) || !segment.has(ACK) || segment.has(SYN) {
            // The flow ends, or another one starts in its place.
            known.take().and_then(|at| self.unconfirmed.remove(at));
        }
        if segment.has(RST) || !segment.has(ACK) {
            return;
        }
        let at = known.unwrap_or_else(|| {
            if self.unconfirmed.len() >= MAX_UNCONFIRMED {
                self.unconfirmed.pop_front();
            }
            self.unconfirmed.push_back(FlowState::new(key, segment));
            self.unconfirmed.len() - 1
        });
        let flow = &mut self.unconfirmed[at];
        if before(flow.end, segment.ack) {
            flow.end = segment.ack;
        }
        flow.on_remote_segment(segment);
    }

    /// Returns the index of the flow of a segment that the local end sends, if the flow is tracked.
    /// Such a segment confirms an unconfirmed flow. The sequence numbers of the flow are not
    /// updated yet: the caller then continues with [`Self::on_sent`].
    pub(crate) fn on_sending(&mut self, segment: &Segment) -> Option<usize> {
        let known = self.index.get(&segment.key).copied();
        let over = segment.has(RST) || segment.has(SYN);
        if known.is_some() && !over {
            return known;
        }
        self.remove(segment.key);
        if segment.has(SYN) {
            self.remember_handshake(segment);
        }
        let at = self.unconfirmed.iter().position(|flow| flow.key == segment.key)?;
        let mut flow = self.unconfirmed.remove(at)?;
        let handshake = self.handshakes.iter().find(|(key, _)| *key == segment.key);
        let receive_window = ReceiveWindow::from_segment(segment, handshake.map(|&(_, shift)| shift));
        // Numbers sent in the name of another host are forgotten; the next delivery starts anew.
        if over || !segment.has(ACK) || !flow.agrees_with(segment, &receive_window) {
            return None;
        }
        flow.receive_window = Some(receive_window);
        self.handshakes.retain(|(key, _)| *key != segment.key);
        Some(self.insert(flow))
    }

    /// Remembers the window scale in a local end's SYN. An end that offers none has unscaled
    /// windows. If the peer refuses the option, the windows are smaller than assumed.
    fn remember_handshake(&mut self, segment: &Segment) {
        self.handshakes.retain(|(key, _)| *key != segment.key);
        if self.handshakes.len() >= MAX_HANDSHAKES {
            self.handshakes.pop_front();
        }
        self.handshakes.push_back((segment.key, segment.shift));
    }

    /// Updates the flow from the segment that was passed to [`Self::on_sending`].
    pub(crate) fn on_sent(&mut self, at: usize, segment: &Segment) {
        self.clock += 1;
        self.flows[at].last_used = self.clock;
        self.flows[at].on_local_segment(segment);
    }

    pub(crate) fn get(&self, at: usize) -> &FlowState {
        &self.flows[at]
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> &mut FlowState {
        &mut self.flows[at]
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut FlowState> {
        self.flows.iter_mut()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    fn insert(&mut self, mut flow: FlowState) -> usize {
        if self.flows.len() >= MAX_FLOWS {
            let candidates = (self.eviction_hand..self.eviction_hand + EVICTION_CANDIDATES)
                .map(|at| &self.flows[at % MAX_FLOWS]);
            let oldest = candidates.min_by_key(|flow| flow.last_used).map(|flow| flow.key);
            self.eviction_hand = (self.eviction_hand + EVICTION_CANDIDATES) % MAX_FLOWS;
            oldest.into_iter().for_each(|key| self.remove(key));
        }
        self.next_id = self.next_id.wrapping_add(1);
        flow.id = self.next_id;
        let at = self.flows.len();
        self.index.insert(flow.key, at);
        self.flows.push(flow);
        at
    }

    fn remove(&mut self, key: FlowKey) {
        if let Some(at) = self.index.remove(&key) {
            self.flows.swap_remove(at);
            if let Some(moved) = self.flows.get(at) {
                self.index.insert(moved.key, at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
