//! Compares the tracked state of an inner TCP flow with a model of the TCP at its local end. The
//! model has sequence numbers that do not wrap, and its own implementation of the rules of RFC
//! 9293, 3.10.7.4.

use super::packets;
use crate::inner_flow::FlowTable;
use crate::segment::{ACK, FIN, RST, SYN, Segment};

/// The value of `MAX_DISTANCE` in `inner_flow`, which the model has to know: TCP itself has no such
/// bound, and accepts windows of up to 1 GiB.
const FAR: i64 = 8 << 20;

/// Maximum number of segments for one fuzz input.
const STEPS: usize = 100;

/// The state of the TCP at the local end. Sequence numbers are counted from the initial one of each
/// direction.
#[derive(Debug, Default)]
struct Tcp {
    una: i64,
    next: i64,
    /// The last acknowledgement sent by the local end, and the end of the window that it has
    /// offered.
    received: i64,
    edge: i64,
    /// The window of the other end, and the sequence number of the segment that carried it.
    window: u16,
    window_by: i64,
    fin: bool,
    fin_received: bool,
    shift: u8,
}

impl Tcp {
    fn sends(&mut self, seq: i64, length: i64, ack: i64, window: u16, fin: bool) {
        self.next = self.next.max(seq + length);
        self.received = ack;
        self.edge = self.edge.max(ack + (i64::from(window) << self.shift).min(FAR));
        self.fin |= fin;
    }

    /// Returns whether the local end accepts the segment.
    fn takes(&self, seq: i64, end: i64) -> bool {
        end >= self.received && seq <= self.edge
    }

    fn hears(&mut self, seq: i64, end: i64, ack: i64, window: u16, fin: bool) {
        if !self.takes(seq, end) || ack > self.next || ack < self.una - FAR {
            return;
        }
        if ack > self.una || (ack == self.una && seq >= self.window_by) {
            (self.una, self.window, self.window_by) = (ack, window, seq);
        }
        self.fin_received |= fin && (self.received..self.edge).contains(&(end - 1));
    }

    fn is_over(&self) -> bool {
        self.fin && self.fin_received && self.una == self.next
    }
}

/// The remaining fuzz input, consumed from the front.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Returns a distance between sequence numbers, of any magnitude below half the sequence space.
    fn distance(&mut self) -> i64 {
        let (shape, value) = (self.byte(), i64::from(self.word()));
        let size = (value << (shape % 16)).min((1 << 31) - (1 << 24));
        if shape & 0x80 == 0 { size } else { -size }
    }
}

/// Returns the sequence number on the wire of `number`, which is counted from the initial `begin`.
fn wire(begin: u32, number: i64) -> u32 {
    begin.wrapping_add(number as u32)
}

/// Runs an inner TCP connection between a well-behaved local end and an arbitrary peer. The flow
/// table must ignore every segment of the peer that the local end does not accept.
pub fn acceptance(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut connection = Connection::establish(&mut input);
    for _ in 0..STEPS {
        if input.0.is_empty() {
            return;
        }
        let kind = input.byte();
        let outcome = if kind % 4 == 0 {
            connection.send(kind, &mut input);
            Outcome::Continues
        } else {
            connection.hear(kind, &mut input)
        };
        match outcome {
            Outcome::Continues => connection.check(),
            Outcome::Refused => {}
            Outcome::Ended => return,
        }
    }
}

/// The effect of a segment of the peer on a connection.
enum Outcome {
    Continues,
    /// A reset was refused.
    Refused,
    Ended,
}

/// The tracked flow, and the model that it is compared with.
struct Connection {
    flows: FlowTable,
    tcp: Tcp,
    /// The index of the flow in the table.
    at: usize,
    /// The initial sequence numbers of the local end and of the peer.
    ours: u32,
    theirs: u32,
    /// Templates of the segments of both ends, with the flow's addresses and ports.
    local: Segment,
    remote: Segment,
}

impl Connection {
    fn establish(input: &mut Input<'_>) -> Self {
        let (flags, shift) = (input.byte(), input.byte() % 16);
        let [ours, theirs] = [0, 1].map(|_| u32::from(input.word()) << 16 | 0xff00);
        let template = Segment::parse(&packets::ip(flags & 1 != 0, &[], 6, &packets::transport(6, 0)));
        let local = Segment { shift: 0, ..template.expect("a segment") };
        let remote = Segment { key: local.key.reversed(), ..local };
        let mut flows = FlowTable::default();
        let mut tcp = Tcp { shift: 14, ..Tcp::default() };
        if flags & 2 != 0 {
            let syn = Segment { flags: SYN, seq: ours.wrapping_sub(1), shift, ..local };
            assert_eq!(flows.on_sending(&syn), None);
            tcp.shift = shift.min(14);
        }
        (tcp.window, tcp.next) = (input.word(), i64::from(input.byte()));
        let began = Segment { seq: theirs, ack: ours, flags: ACK, window: tcp.window, data: 0, ..remote };
        flows.on_delivered(&began);
        let window = input.word();
        let first = Segment { seq: ours, ack: theirs, flags: ACK, window, data: tcp.next as u32, ..local };
        let at = flows.on_sending(&first).expect("both ends agree");
        flows.on_sent(at, &first);
        tcp.sends(0, tcp.next, 0, window, false);
        Self { flows, tcp, at, ours, theirs, local, remote }
    }

    /// Sends a segment of the local end: new data, a retransmission, or a probe.
    fn send(&mut self, kind: u8, input: &mut Input<'_>) {
        let Self { flows, tcp, ours, theirs, .. } = self;
        let span = tcp.next - tcp.una + 1;
        let seq = if kind & 4 == 0 { tcp.next } else { tcp.next - i64::from(input.word()) % (span + 1) };
        let (data, fin) = (i64::from(input.byte()), kind & 8 != 0);
        // Nothing follows the FIN.
        let data = if tcp.fin { data.min(tcp.next - seq) } else { data };
        let fin = fin && !tcp.fin && seq + data == tcp.next.max(seq + data);
        let (ack, window) = (tcp.received + i64::from(input.byte()), input.word());
        let segment = Segment {
            seq: wire(*ours, seq),
            ack: wire(*theirs, ack),
            flags: ACK | if fin { FIN } else { 0 },
            window,
            data: data as u32,
            ..self.local
        };
        self.at = flows.on_sending(&segment).expect("the flow is tracked");
        if let Some((again, Some(window))) = flows.get(self.at).missed_ack(&segment) {
            let ack = i64::from(again.wrapping_sub(wire(*ours, tcp.una)) as i32) + tcp.una;
            assert!((tcp.una..=tcp.next).contains(&ack), "the local end never sent what is acknowledged");
            if ack > tcp.una {
                // The local end now receives the acknowledgement, in a segment with the number
                // that it expects.
                (tcp.una, tcp.window) = (ack, window);
            }
            flows.get_mut(self.at).ack_repeated(again, window);
        }
        flows.on_sent(self.at, &segment);
        tcp.sends(seq, data + i64::from(fin), ack, window, fin);
    }

    /// Delivers a segment of the peer, with any numbers and flags.
    fn hear(&mut self, kind: u8, input: &mut Input<'_>) -> Outcome {
        let Self { flows, tcp, ours, theirs, .. } = self;
        let (seq, ack) = (tcp.received + input.distance(), tcp.una + input.distance());
        let (length, window) = (i64::from(input.word() % 3000), input.word());
        let flags = match kind % 16 {
            1 => RST,
            2 => RST | ACK,
            3 => SYN | ACK,
            5 => SYN,
            6 => 0,
            7 | 9 => FIN | ACK,
            _ => ACK,
        };
        let segment = Segment {
            seq: wire(*theirs, seq),
            ack: wire(*ours, ack),
            flags,
            window,
            data: length as u32,
            ..self.remote
        };
        let end = seq + i64::from(segment.length());
        flows.on_delivered(&segment);
        if flags & RST != 0 {
            if flows.is_empty() {
                assert!(tcp.takes(seq, end), "a reset that TCP refuses ended the flow");
                return Outcome::Ended;
            }
            return Outcome::Refused;
        }
        if flags & (SYN | ACK) == ACK {
            tcp.hears(seq, end, ack, window, flags & FIN != 0);
        }
        if flags & ACK != 0 && tcp.is_over() && flags & SYN == 0 && tcp.takes(seq, end) {
            assert!(flows.is_empty(), "the flow is over");
            return Outcome::Ended;
        }
        assert!(!flows.is_empty(), "the flow is tracked");
        Outcome::Continues
    }

    /// Compares the flow with the model.
    fn check(&self) {
        let (flow, tcp) = (self.flows.get(self.at), &self.tcp);
        assert_eq!(flow.acked, wire(self.ours, tcp.una), "the acknowledged number: {tcp:?}");
        assert_eq!(flow.window, Some(tcp.window), "the window: {tcp:?}");
    }
}

/// Returns the seeds: an exchange without faults, a forgery far outside the window, and a refused
/// acknowledgement that is repeated, each followed by the end of the connection.
#[must_use]
pub fn acceptance_seeds() -> Vec<Vec<u8>> {
    let start = |flags: u8| vec![flags, 7, 0xff, 0xff, 0, 0, 1, 0, 100, 2, 0];
    let local = [0, 200, 50, 1, 0];
    let delivered = |kind: u8, seq: [u8; 3], ack: [u8; 3]| [&[kind][..], &seq, &ack, &[0, 10, 3, 0]].concat();
    let mut seeds = Vec::new();
    for flags in 0..4 {
        let mut seed = start(flags);
        seed.extend_from_slice(&local);
        for (seq, ack) in [([0, 0, 0], [0, 0, 50]), ([0, 0, 9], [0, 0, 20]), ([15, 0xff, 0xff], [0, 0, 30])] {
            seed.extend(delivered(4 + 11, seq, ack));
        }
        // Refused as old, and then shown to be missed.
        seed.extend(delivered(15, [0x80, 0, 40], [0, 0, 60]));
        seed.extend_from_slice(&[4, 0, 150, 10, 40, 1, 0]);
        for kind in [1, 3, 5, 6, 7] {
            seed.extend(delivered(kind, [0x81, 0, 200], [0, 0, 1]));
        }
        let mut ends = seed.clone();
        ends.extend_from_slice(&[8, 3, 0, 1, 0]);
        ends.extend(delivered(7, [0, 0, 0], [0, 0, 200]));
        seed.extend(delivered(1, [0, 0, 3], [0, 0, 0]));
        seeds.extend([seed, ends]);
    }
    seeds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_seeds_hold_the_invariants() {
        acceptance_seeds().iter().for_each(|seed| acceptance(seed));
    }

    proptest! {
        #[test]
        fn the_tracked_flow_agrees_with_tcp_for_any_segments(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            acceptance(&bytes);
        }
    }
}
