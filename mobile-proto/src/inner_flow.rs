//! The inner TCP flows of a session: how far the other end has acknowledged, since nothing beyond
//! that may be said in its name.
//!
//! Anybody on the Internet can send a segment to the local end in another's name. So a flow is
//! trusted only by the local end's own segments. Until the local end has sent one, the flow is a
//! *stranger*: there are few of these, and they displace only each other. After that, the
//! acknowledgement, window, FIN or RST of a delivered segment is learnt only if the local end takes
//! the segment by its own numbers; [`acceptance`] is that one test.

mod acceptance;

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use acceptance::{Acceptance, MAX_DISTANCE, ReceiveWindow};

use crate::segment::{ACK, FIN, FlowKey, RST, SYN, Segment, before};

/// The most flows that are known: a laptop has dozens and a busy one hundreds. A full table takes
/// at most 270 KiB, an empty one nothing.
const MAX_FLOWS: usize = 1024;

/// The local end of a flow that lives answers within microseconds; few are strangers at a time. They are searched one by one.
const MAX_UNCONFIRMED: usize = 64;

/// Of this many, taken in turn, the least recently used flow makes room for a new one: a search of all for each new flow
/// would be work that strangers can cause.
const EVICTION_CANDIDATES: usize = 16;

/// The most handshakes whose window shift is remembered until the flow is known.
const MAX_HANDSHAKES: usize = 64;

/// Within the window, the greatest distance of a believed reset from what the local end expects. A
/// few of the largest packets may have been delivered since the local end last said so; the local
/// end itself demands the exact number (RFC 5961, 3.2).
const MAX_RESET_DISTANCE: u32 = 1 << 20;

/// The largest window that TCP has (RFC 7323, 2.3): no more than this can be sent and not acknowledged.
const MAX_WINDOW: u32 = 1 << 30;

/// Which ends have sent FIN.
const FIN_LOCAL: u8 = 1;
const FIN_REMOTE: u8 = 2;

/// What was said to the local end in the name of the other one during an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrozenAck {
    /// The sequence number that the local end expects.
    pub(crate) seq: u32,
    pub(crate) timestamps: Option<(u32, u32)>,
}

/// What a flow has handed in during one outage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeldPackets {
    /// The number of the outage.
    outage: u32,
    /// Memory of the packets.
    pub(crate) cost: usize,
    /// Whether any of its data is held, from before the outage or since; `None` while nobody has looked.
    pub(crate) data: Option<bool>,
    /// The sequence number of a probe that is held.
    pub(crate) probe: Option<u32>,
}

/// An acknowledgement that the local end has not heard, because it refused the segment.
#[derive(Clone, Copy, Debug)]
struct RefusedAck {
    ack: u32,
    window: u16,
    /// The end of the refused segment.
    by: u32,
}

/// One flow.
#[derive(Debug)]
pub(crate) struct FlowState {
    pub(crate) key: FlowKey,
    /// Its name in queued records; never given twice.
    pub(crate) id: u32,
    /// The last acknowledgement that was delivered to the local end.
    pub(crate) acked: u32,
    /// The window that came with it, not scaled; `None` if that is not known in the flow's scale.
    pub(crate) window: Option<u16>,
    pub(crate) frozen: Option<FrozenAck>,
    /// Until when its searches in what is held are paid for.
    pub(crate) search_paid_until: Option<Instant>,
    held: HeldPackets,
    /// The sequence number of the segment that brought `window`.
    window_seq: u32,
    /// The end of the segment that brought `acked`.
    acked_end: u32,
    /// The end of all that the local end has sent, as far as it was seen.
    end: u32,
    /// The receive window of the local end; unknown for a stranger.
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

    /// Everything that the local end has sent is acknowledged.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.acked == self.end
    }

    /// Whether nothing was sent behind this sequence number.
    pub(crate) fn ends_at(&self, seq: u32) -> bool {
        self.end == seq
    }

    /// A segment that its sender does not let rest without an answer: data, or a probe with the number before the
    /// next (of a closed window, or to keep the connection alive).
    pub(crate) fn elicits_ack(&self, segment: &Segment) -> bool {
        segment.length() > 0 || self.is_probe(segment)
    }

    /// A probe without data.
    pub(crate) fn is_probe(&self, segment: &Segment) -> bool {
        segment.length() == 0 && segment.seq == self.acked.wrapping_sub(1)
    }

    /// Returns the other end's acknowledgement and window, if the local end's segment shows that
    /// the local end does not know them. It refused the segment that carried them as old, and
    /// ignores the acknowledgement in such a segment (RFC 9293, 3.10.7.4).
    ///
    /// Two ends come to this if both were shown a closed window in an outage and then never heard
    /// the acknowledgements of what each had got, as when both programs of the tunnel are killed.
    /// With the window closed, a sender can send nothing but its oldest numbers
    /// (`tcp_acceptable_seq()`); each end refuses the other's for that reason, and so neither
    /// learns of the open window.
    pub(crate) fn missed_ack(&self, segment: &Segment) -> Option<(u32, Option<u16>)> {
        let missed_ack = |ack: u32, by: u32| {
            let refused = segment.ack.wrapping_sub(by);
            let refused_ack = ack.wrapping_sub(segment.seq);
            // A probe repeats a byte that is known to be acknowledged.
            (2..=MAX_DISTANCE).contains(&refused_ack) && (1..=MAX_DISTANCE).contains(&refused)
        };
        match self.refused_ack {
            Some(RefusedAck { ack, window, by }) if missed_ack(ack, by) => Some((ack, Some(window))),
            _ => missed_ack(self.acked, self.acked_end).then_some((self.acked, self.window)),
        }
    }

    /// Records that the local end was told again what it had missed, in a segment that it takes.
    pub(crate) fn ack_repeated(&mut self, ack: u32, window: u16) {
        if let Some(refused_ack) = self.refused_ack.take_if(|refused_ack| refused_ack.ack == ack) {
            (self.acked, self.window, self.acked_end) = (ack, Some(window), refused_ack.by);
        }
    }

    /// Data, or FIN, and nothing that goes beyond what was sent before.
    pub(crate) fn is_retransmission(&self, segment: &Segment) -> bool {
        segment.length() > 0 && !before(self.end, segment.end())
    }

    /// What it has handed in during the outage of that number.
    pub(crate) fn held(&mut self, outage: u32) -> &mut HeldPackets {
        if self.held.outage != outage {
            self.held = HeldPackets { outage, ..HeldPackets::default() };
        }
        &mut self.held
    }

    /// Returns whether the local end's first segment belongs to what was learnt of a stranger:
    /// numbers that the local end takes now, or refused without hearing what they acknowledge.
    fn agrees_with(&self, segment: &Segment, receive_window: &ReceiveWindow) -> bool {
        let missed_ack = self.missed_ack(segment).is_some();
        // The segment may also answer a probe, which repeats the octet before the next (RFC 9293,
        // 3.8.4).
        let taken = [0, 1].into_iter().any(|probe| {
            let [seq, end] = [self.window_seq, self.acked_end].map(|number| number.wrapping_add(probe));
            receive_window.judge(seq, end) == Acceptance::Current
        });
        // It does not repeat what it knows to be acknowledged, but for the byte of a probe.
        (missed_ack || (taken && !before(segment.end().wrapping_add(1), self.acked)))
            && (before(segment.seq, self.acked) || segment.seq.wrapping_sub(self.acked) <= MAX_WINDOW)
    }

    /// A probe may be held no more.
    pub(crate) fn forget_probe(&mut self) {
        self.held.probe = None;
    }

    /// Judges a delivered segment as the local end does; a stranger's flow takes any segment.
    fn judge(&self, segment: &Segment) -> Acceptance {
        let judged = |receive_window: &ReceiveWindow| receive_window.judge(segment.seq, segment.end());
        self.receive_window.as_ref().map_or(Acceptance::Current, judged)
    }

    /// Returns whether a reset that the local end takes may be the other end's.
    fn is_reset_by(&self, segment: &Segment) -> bool {
        let near = |receive_window: &ReceiveWindow| {
            segment.seq.wrapping_sub(receive_window.next()) <= MAX_RESET_DISTANCE
        };
        self.judge(segment) == Acceptance::Current && self.receive_window.as_ref().is_none_or(near)
    }

    /// Learns from a segment that the local end takes.
    fn on_remote_segment(&mut self, segment: &Segment) {
        let unsent = before(self.end, segment.ack);
        let ancient = before(segment.ack, self.acked.wrapping_sub(MAX_DISTANCE));
        if unsent || ancient {
            // The local end drops such a segment whole (RFC 5961, 5.2).
            return;
        }
        let newer = before(self.acked, segment.ack);
        if newer || (self.acked == segment.ack && !before(segment.seq, self.window_seq)) {
            // The same in a segment that is not refused is known.
            if newer || before(self.acked_end, segment.end()) {
                self.acked_end = segment.end();
            }
            self.acked = segment.ack;
            self.window_seq = segment.seq;
            // The window of a SYN is not scaled, those after it may be (RFC 7323, 2.2).
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

    /// Keeps the acknowledgement of a segment that the local end refuses. It has no effect before
    /// the local end shows that it has [missed](Self::missed) it.
    fn on_refused_segment(&mut self, segment: &Segment) {
        let newer = before(self.acked, segment.ack) && !before(self.end, segment.ack);
        let last = self.refused_ack.is_none_or(|refused_ack| {
            before(refused_ack.ack, segment.ack)
                || (refused_ack.ack == segment.ack && !before(segment.end(), refused_ack.by))
        });
        if newer && last {
            self.refused_ack =
                Some(RefusedAck { ack: segment.ack, window: segment.window, by: segment.end() });
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

    /// Both ends are done, and the local one knows.
    fn is_over(&self) -> bool {
        self.fins == FIN_LOCAL | FIN_REMOTE && self.is_acknowledged()
    }
}

/// The flows.
#[derive(Debug, Default)]
pub(crate) struct FlowTable {
    index: HashMap<FlowKey, usize>,
    flows: Vec<FlowState>,
    /// Flows of which no segment of the local end was seen, the oldest first.
    unconfirmed: VecDeque<FlowState>,
    /// The window shifts in the local ends' SYNs, the oldest first.
    handshakes: VecDeque<(FlowKey, u8)>,
    clock: u64,
    next_id: u32,
    /// Where the next candidates to make room are.
    eviction_hand: usize,
}

impl FlowTable {
    /// A segment was delivered to the local end. It alone makes a flow known: what comes from the TUN may be
    /// anybody's attempt.
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
        // If a SYN begins another flow, the local end says so by its own.
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
            // The end of a flow, or the beginning of another one in its place.
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

    /// The local end has sent a segment. Returns its flow as it was before, for [`Self::sent`] to go on with.
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
        // What was told in another's name is forgotten; the next delivery begins anew.
        if over || !segment.has(ACK) || !flow.agrees_with(segment, &receive_window) {
            return None;
        }
        flow.receive_window = Some(receive_window);
        self.handshakes.retain(|(key, _)| *key != segment.key);
        Some(self.insert(flow))
    }

    /// Remembers the window shift in a local end's SYN. An end that offers no shift has windows
    /// without one; if the peer refuses the option, the windows are smaller than assumed.
    fn remember_handshake(&mut self, segment: &Segment) {
        self.handshakes.retain(|(key, _)| *key != segment.key);
        if self.handshakes.len() >= MAX_HANDSHAKES {
            self.handshakes.pop_front();
        }
        self.handshakes.push_back((segment.key, segment.shift));
    }

    /// Learns from the segment that [`Self::sending`] was asked about.
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
