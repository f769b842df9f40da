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
mod flow_state;

use std::collections::{HashMap, VecDeque};

use acceptance::{Acceptance, ReceiveWindow};
pub(crate) use flow_state::{FlowState, FrozenAck};

use crate::segment::{ACK, FlowKey, RST, SYN, Segment, before};

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
    eviction_hand: u32,
    /// The index of the flow that was found last: most segments belong to the same flow as the one
    /// before them, and comparing two keys takes a tenth of the time of a hash.
    found_last: u32,
}

impl FlowTable {
    /// Updates the table with a segment that is delivered to the local end. Only such a segment
    /// creates a flow, because a segment from the TUN alone may be anybody's attempt to connect.
    pub(crate) fn on_delivered(&mut self, segment: &Segment) {
        let key = segment.key.reversed();
        match self.find(&key) {
            Some(at) => self.delivered_tracked(at, segment),
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
        let known = self.find(&segment.key);
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

    fn find(&mut self, key: &FlowKey) -> Option<usize> {
        let last = self.found_last as usize;
        if self.flows.get(last).is_some_and(|flow| flow.key == *key) {
            return Some(last);
        }
        let at = *self.index.get(key)?;
        // The table has at most `MAX_FLOWS` entries.
        self.found_last = at as u32;
        Some(at)
    }

    fn insert(&mut self, mut flow: FlowState) -> usize {
        if self.flows.len() >= MAX_FLOWS {
            let hand = self.eviction_hand as usize;
            let candidates = (hand..hand + EVICTION_CANDIDATES).map(|at| &self.flows[at % MAX_FLOWS]);
            let oldest = candidates.min_by_key(|flow| flow.last_used).map(|flow| flow.key);
            self.eviction_hand = ((hand + EVICTION_CANDIDATES) % MAX_FLOWS) as u32;
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
