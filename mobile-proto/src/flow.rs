//! The inner TCP flows of a session: how far the other end has acknowledged, which is all that may be said in its name.

use std::collections::HashMap;

use crate::segment::{ACK, FIN, FlowKey, RST, SYN, Segment, before};

/// A laptop has dozens of flows and a busy one hundreds. Full, the table takes about 200 KiB, empty nothing.
const MAX_FLOWS: usize = 1024;

/// Which ends have sent FIN.
const FIN_LOCAL: u8 = 1;
const FIN_REMOTE: u8 = 2;

/// What was said to the local end in the name of the other one during an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frozen {
    /// The sequence number that the local end expects.
    pub(crate) seq: u32,
    pub(crate) timestamps: Option<(u32, u32)>,
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    /// Its name in queued records; never given twice.
    pub(crate) id: u32,
    /// The last acknowledgement that was delivered to the local end.
    pub(crate) acked: u32,
    /// The window that came with it, not scaled; `None` if that is not known in the flow's scale.
    pub(crate) window: Option<u16>,
    pub(crate) frozen: Option<Frozen>,
    /// Memory of the packets that it has handed in during the outage of that number.
    pub(crate) held: (u32, usize),
    /// The sequence number of the segment that brought `window`.
    window_seq: u32,
    /// The end of all that the local end has sent, as far as it was seen.
    end: u32,
    /// Whether a segment of the local end was seen at all.
    heard_local: bool,
    fins: u8,
    used: u64,
}

impl Flow {
    fn new(key: FlowKey, id: u32, segment: &Segment) -> Self {
        Self {
            key,
            id,
            acked: segment.ack,
            window: None,
            frozen: None,
            held: (0, 0),
            window_seq: segment.seq,
            end: segment.ack,
            heard_local: false,
            fins: 0,
            used: 0,
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
    pub(crate) fn wants_answer(&self, segment: &Segment) -> bool {
        segment.length() > 0 || self.is_probe(segment)
    }

    /// A probe without data.
    pub(crate) fn is_probe(&self, segment: &Segment) -> bool {
        segment.length() == 0 && segment.seq == self.acked.wrapping_sub(1)
    }

    /// Nothing that goes beyond what was sent before.
    pub(crate) fn is_repetition(&self, segment: &Segment) -> bool {
        segment.data > 0 && !before(self.end, segment.end())
    }

    fn hear_remote(&mut self, segment: &Segment) {
        if before(self.end, segment.ack) {
            if self.heard_local {
                // Acknowledges what was never sent: the local end ignores it too.
                return;
            }
            self.end = segment.ack;
        }
        let newer = before(self.acked, segment.ack);
        if newer || (self.acked == segment.ack && !before(segment.seq, self.window_seq)) {
            self.acked = segment.ack;
            self.window_seq = segment.seq;
            // The window of a SYN is not scaled, those after it may be (RFC 7323, 2.2).
            self.window = (!segment.has(SYN)).then_some(segment.window);
        }
        if segment.has(FIN) {
            self.fins |= FIN_REMOTE;
        }
    }

    fn hear_local(&mut self, segment: &Segment) {
        if before(self.end, segment.end()) {
            self.end = segment.end();
        }
        self.heard_local = true;
        if segment.has(FIN) {
            self.fins |= FIN_LOCAL;
        }
    }

    /// Both ends are done, and the local one knows.
    fn is_over(&self) -> bool {
        self.fins == FIN_LOCAL | FIN_REMOTE && self.is_acknowledged()
    }
}

/// The flows, the least recently used of which makes room for a new one.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    index: HashMap<FlowKey, usize>,
    flows: Vec<Flow>,
    clock: u64,
    names: u32,
}

impl Flows {
    /// A segment was delivered to the local end. It alone makes a flow known: what comes from the TUN may be
    /// anybody's attempt, and must not push out the flows that live.
    pub(crate) fn delivered(&mut self, segment: &Segment) {
        let key = segment.key.reversed();
        if segment.has(RST) || !segment.has(ACK) || segment.has(SYN) {
            // The end of a flow, or the beginning of another one in its place.
            self.remove(key);
        }
        if segment.has(RST) || !segment.has(ACK) {
            return;
        }
        self.clock += 1;
        let at = match self.index.get(&key) {
            Some(&at) => at,
            None => self.insert(key, segment),
        };
        let flow = &mut self.flows[at];
        flow.used = self.clock;
        flow.hear_remote(segment);
        if flow.is_over() {
            self.remove(key);
        }
    }

    /// The local end has sent a segment. Returns its flow as it was before, for [`Self::sent`] to go on with.
    pub(crate) fn sending(&mut self, segment: &Segment) -> Option<usize> {
        if segment.has(RST) || segment.has(SYN) {
            self.remove(segment.key);
            return None;
        }
        self.index.get(&segment.key).copied()
    }

    /// Learns from the segment that [`Self::sending`] was asked about.
    pub(crate) fn sent(&mut self, at: usize, segment: &Segment) {
        self.clock += 1;
        self.flows[at].used = self.clock;
        self.flows[at].hear_local(segment);
    }

    pub(crate) fn get(&self, at: usize) -> &Flow {
        &self.flows[at]
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> &mut Flow {
        &mut self.flows[at]
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Flow> {
        self.flows.iter_mut()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    fn insert(&mut self, key: FlowKey, segment: &Segment) -> usize {
        if self.flows.len() >= MAX_FLOWS
            && let Some(oldest) = self.flows.iter().min_by_key(|flow| flow.used).map(|flow| flow.key)
        {
            self.remove(oldest);
        }
        self.names = self.names.wrapping_add(1);
        let at = self.flows.len();
        self.flows.push(Flow::new(key, self.names, segment));
        self.index.insert(key, at);
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
mod tests {
    use super::*;
    use crate::segment::tests::Sample;

    fn segment(sample: Sample) -> Segment {
        Segment::parse(&sample.packet()).unwrap()
    }

    fn inbound(ack: u32, window: u16) -> Segment {
        segment(Sample { inbound: true, seq: 5000, ack, window, ..Sample::default() })
    }

    fn send(flows: &mut Flows, sample: Sample) -> Option<usize> {
        let segment = segment(sample);
        let at = flows.sending(&segment)?;
        flows.sent(at, &segment);
        Some(at)
    }

    #[test]
    fn the_newest_acknowledgement_and_its_window_are_known() {
        let mut flows = Flows::default();
        assert_eq!(send(&mut flows, Sample::default()), None, "what is only sent makes no flow");
        flows.delivered(&inbound(1000, 500));
        let at = send(&mut flows, Sample { seq: 1000, data: 200, ..Sample::default() }).unwrap();
        assert!(!flows.get(at).is_acknowledged());
        flows.delivered(&inbound(1100, 400));
        flows.delivered(&inbound(1000, 900));
        assert_eq!(
            (flows.get(at).acked, flows.get(at).window),
            (1100, Some(400)),
            "an older one changes nothing"
        );
        flows.delivered(&inbound(1100, 800));
        flows.delivered(&inbound(1201, 77));
        assert_eq!(
            (flows.get(at).acked, flows.get(at).window),
            (1100, Some(800)),
            "nor one of what was not sent"
        );
        flows.delivered(&inbound(1200, 0));
        assert!(flows.get(at).is_acknowledged());
        assert_eq!(flows.get(at).window, Some(0));
    }

    #[test]
    fn the_window_of_a_handshake_is_not_in_the_flows_scale() {
        let mut flows = Flows::default();
        flows.delivered(&Segment { flags: SYN | ACK, ..inbound(1000, 65_535) });
        let at = send(&mut flows, Sample::default()).unwrap();
        assert_eq!(flows.get(at).window, None);
        flows.delivered(&inbound(1000, 12));
        assert_eq!(flows.get(at).window, Some(12));
    }

    #[test]
    fn what_wants_an_answer_is_data_or_a_probe() {
        let mut flows = Flows::default();
        flows.delivered(&inbound(1000, 500));
        let at = send(&mut flows, Sample::default()).unwrap();
        let flow = flows.get(at);
        let asks = |sample| flow.wants_answer(&segment(sample));
        assert!(asks(Sample { seq: 1000, data: 1, ..Sample::default() }));
        assert!(asks(Sample { seq: 1000, flags: FIN | ACK, ..Sample::default() }));
        assert!(asks(Sample { seq: 999, ..Sample::default() }));
        assert!(!asks(Sample { seq: 1000, ..Sample::default() }), "an acknowledgement is never answered");
        assert!(!asks(Sample { seq: 998, ..Sample::default() }));
    }

    #[test]
    fn reset_and_both_fins_end_a_flow_and_a_syn_begins_another() {
        let mut flows = Flows::default();
        for end in [true, false] {
            flows.delivered(&inbound(1000, 500));
            let reset = Segment { flags: RST | ACK, ..inbound(1000, 0) };
            if end {
                flows.delivered(&reset);
            } else {
                assert_eq!(flows.sending(&Segment { key: reset.key.reversed(), ..reset }), None);
            }
            assert_eq!(send(&mut flows, Sample::default()), None);
        }
        flows.delivered(&inbound(1000, 500));
        send(&mut flows, Sample { flags: FIN | ACK, ..Sample::default() }).unwrap();
        flows.delivered(&Segment { flags: FIN | ACK, ..inbound(1000, 500) });
        assert!(
            send(&mut flows, Sample { seq: 1001, ..Sample::default() }).is_some(),
            "its FIN is not acknowledged"
        );
        flows.delivered(&inbound(1001, 500));
        assert_eq!(send(&mut flows, Sample { seq: 1001, ..Sample::default() }), None);

        flows.delivered(&inbound(1000, 500));
        flows.delivered(&Segment { flags: SYN | ACK, ..inbound(77, 500) });
        let at = send(&mut flows, Sample { seq: 77, ..Sample::default() }).unwrap();
        assert_eq!(flows.get(at).acked, 77);
    }

    #[test]
    fn the_least_recently_used_flow_makes_room() {
        let mut flows = Flows::default();
        let first = |port: usize| Sample { port: u16::try_from(port).unwrap(), ..Sample::default() };
        for port in 0..MAX_FLOWS {
            flows.delivered(&segment(Sample { inbound: true, ack: 1000, ..first(port) }));
        }
        assert!(send(&mut flows, first(0)).is_some());
        flows.delivered(&segment(Sample { inbound: true, ack: 1000, ..first(MAX_FLOWS) }));
        assert_eq!(flows.flows.len(), MAX_FLOWS);
        assert_eq!(flows.index.len(), MAX_FLOWS);
        assert_eq!(send(&mut flows, first(1)), None);
        for port in (2..=MAX_FLOWS).chain([0]) {
            let at = send(&mut flows, first(port)).expect("still known");
            assert_eq!(flows.get(at).key, segment(first(port)).key);
        }
    }

    #[test]
    fn a_full_table_takes_no_more_memory_than_is_said() {
        let slot = size_of::<(FlowKey, usize)>() + 1;
        // A hash table keeps at most 7/8 of its power of two full, and the list doubles.
        let full = MAX_FLOWS * 2 * slot + MAX_FLOWS * size_of::<Flow>();
        assert!(full <= 260 << 10, "{full}");
    }
}
