mod bounds;
#[cfg(debug_assertions)]
mod parse_once;
mod random;

use std::collections::HashSet;
use std::time::Duration;

use super::*;
use crate::segment::tests::{Sample, sums_are_zero};
use crate::segment::{ACK, FIN};
use crate::{Budget, DropReason, Enqueue, Event, HelloReader, Limits, PathId, PushConfig, SessionId};

const SECOND: Duration = Duration::from_secs(1);
/// Duration that is longer than the grace period before senders are frozen.
const LATER: Duration = Duration::from_millis(300);

/// An agent whose applications are the local ends, its relay, and a path between them that can be
/// cut.
struct Ends {
    now: Instant,
    client: Session,
    server: Session,
    path: PathId,
    at_client: Vec<Vec<u8>>,
    at_server: Vec<Vec<u8>>,
}

impl Ends {
    fn new(limits: &Limits) -> Self {
        let config = PushConfig { mtu: 1400, ..PushConfig::default() };
        let mut ends = Self {
            now: Instant::now(),
            client: Session::client(SessionId([1; 16]), limits.clone()),
            server: Session::server(SessionId([1; 16]), 7, limits.clone(), config),
            path: PathId(0),
            at_client: Vec::new(),
            at_server: Vec::new(),
        };
        ends.connect();
        ends
    }

    fn connect(&mut self) {
        self.path.0 += 1;
        let mut wire = Vec::new();
        self.client.open_path(self.now, self.path);
        self.client.poll_transmit(self.now, self.path, &mut wire, Budget::new(1000));
        let (hello, _) = HelloReader::new().feed(&wire).unwrap().unwrap();
        self.server.accept_path(self.now, &hello).unwrap();
        self.settle();
        self.client.activate(self.now, self.path, &[]);
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..4 {
            pass(self.now, self.path, &mut self.client, &mut self.server, &mut self.at_server);
            pass(self.now, self.path, &mut self.server, &mut self.client, &mut self.at_client);
        }
    }

    fn cut(&mut self) {
        self.client.path_lost(self.path);
        self.server.path_lost(self.path);
        assert_eq!(self.local(), Vec::<Vec<u8>>::new());
    }

    /// Sends a TCP segment of the local end through the client's session.
    fn send(&mut self, sample: Sample) -> Enqueue {
        self.client.enqueue(self.now, &sample.packet())
    }

    /// Sends a TCP segment of the other end through the relay's session, and delivers it.
    fn receive(&mut self, sample: Sample) {
        let packet = Sample { inbound: true, ..sample }.packet();
        let _ = self.server.enqueue(self.now, &packet);
        self.settle();
    }

    /// Returns the packets that the client's session passes to its own TUN.
    fn local(&mut self) -> Vec<Vec<u8>> {
        local(&mut self.client, self.now)
    }

    /// Returns the acknowledgements that the client's session sends to its applications: sequence
    /// number, acknowledgement and window of each.
    fn answers(&mut self) -> Vec<(u32, u32, u16)> {
        self.local()
            .iter()
            .map(|packet| Segment::parse(packet).unwrap())
            .map(|it| (it.seq, it.ack, it.window))
            .collect()
    }
}

fn local(session: &mut Session, now: Instant) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    session.poll_local(now, &mut |packet| packets.push(packet.to_vec()));
    packets
}

fn pass(now: Instant, path: PathId, from: &mut Session, to: &mut Session, arrived: &mut Vec<Vec<u8>>) {
    let mut wire = Vec::new();
    while from.wants_transmit(path) {
        from.poll_transmit(now, path, &mut wire, Budget::new(1 << 20));
    }
    to.handle_input(now, path, &wire, &mut |packet| arrived.push(packet.to_vec())).unwrap();
}

fn data(seq: u32, data: usize) -> Sample {
    Sample { seq, data, ..Sample::default() }
}

fn udp(number: u8, size: usize) -> Vec<u8> {
    let mut packet = vec![number; size];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(size).unwrap().to_be_bytes());
    (packet[6], packet[7], packet[9]) = (0, 0, 17);
    // All datagrams belong to one flow.
    packet[12..24].fill(9);
    packet
}

/// Returns ends with an established flow: 1000 is the next sequence number of the local end, 5000
/// of the other end.
fn established(limits: &Limits) -> Ends {
    let mut ends = Ends::new(limits);
    ends.receive(Sample { seq: 5000, ack: 1000, window: 700, ..Sample::default() });
    ends
}

#[test]
fn segments_sent_in_an_outage_are_answered_with_a_zero_window() {
    for six in [false, true] {
        let mut ends = Ends::new(&Limits::default());
        ends.receive(Sample { six, seq: 5000, ack: 1000, window: 700, ..Sample::default() });
        let stamped = |sample| Sample { six, timestamps: Some((90, 80)), ..sample };
        let _ = ends.send(stamped(data(1000, 10)));
        ends.settle();
        assert_eq!(ends.answers(), [], "there is no outage");
        ends.cut();
        let _ = ends.send(stamped(data(1010, 10)));
        assert_eq!(ends.answers(), [], "it may be an ordinary handover");
        ends.now += LATER;
        for (sample, asks) in [
            (data(1020, 10), true),
            (data(999, 0), true),
            (Sample { flags: FIN | ACK, ..data(1030, 0) }, true),
            (data(1031, 0), false),
            (Sample { port: 4001, ..data(1000, 10) }, false),
        ] {
            let _ = ends.send(stamped(sample));
            let local = ends.local();
            assert_eq!(local.len(), usize::from(asks), "{sample:?}");
            for packet in local {
                let answer = Segment::parse(&packet).unwrap();
                assert_eq!((answer.seq, answer.ack, answer.window, answer.flags), (5000, 1000, 0, ACK));
                assert_eq!(
                    segment::timestamps(&packet),
                    Some((80, 90)),
                    "the timestamp that the sender echoes, and its own"
                );
                assert!(sums_are_zero(&packet));
            }
        }
        let _ = ends.send(Sample { six, ..data(1020, 10) });
        assert_eq!(segment::timestamps(&ends.local()[0]), None, "a flow without the option");
        assert_eq!(ends.client.stats().local_answers, 4);
    }
}

/// Tests the relay's side: a relay keeps a silent path, because the client is the one to act.
#[test]
fn an_unresponsive_active_path_is_an_outage() {
    let mut ends = Ends::new(&Limits::default());
    // The mobile host has acknowledged up to 5000 of the sender beyond the relay.
    let _ = ends.send(Sample { ack: 5000, window: 300, ..Sample::default() });
    ends.settle();
    let from_far =
        |seq| Sample { inbound: true, ..Sample { seq, ack: 1000, data: 10, ..Sample::default() } }.packet();
    let _ = ends.server.enqueue(ends.now, &from_far(5000));
    ends.server.poll_transmit(ends.now, ends.path, &mut Vec::new(), Budget::new(1 << 20));
    ends.now += 2 * SECOND;
    ends.server.handle_timeout(ends.now);
    assert!(ends.server.active_path().is_some() && ends.server.has_room());
    let _ = ends.server.enqueue(ends.now, &from_far(5010));
    let answer = Segment::parse(&local(&mut ends.server, ends.now)[0]).unwrap();
    assert_eq!((answer.seq, answer.ack, answer.window), (1000, 5000, 0));
}

#[test]
fn after_an_outage_only_a_flow_with_nothing_unacknowledged_gets_a_window_update() {
    let mut ends = established(&Limits::default());
    ends.receive(Sample { port: 4001, seq: 5000, ack: 1000, window: 800, ..Sample::default() });
    ends.receive(Sample { port: 4002, seq: 5000, ack: 1000, window: 900, ..Sample::default() });
    ends.cut();
    ends.now += LATER;
    let _ = ends.send(data(1000, 10));
    let _ = ends.send(Sample { port: 4001, timestamps: Some((7, 6)), ..data(999, 0) });
    let _ = ends.send(Sample { port: 4002, ..data(1000, 0) });
    assert_eq!(ends.answers(), [(5000, 1000, 0), (5000, 1000, 0)]);
    ends.now += 20 * SECOND;
    ends.connect();
    let local = ends.local();
    assert_eq!(local.len(), 1, "only the frozen flow without unacknowledged data");
    let update = Segment::parse(&local[0]).unwrap();
    assert_eq!((update.seq, update.ack, update.window), (5000, 1000, 800));
    assert_eq!(segment::timestamps(&local[0]), Some((6, 7)));
    assert_eq!(ends.answers(), [], "once");
}

/// Tests a former bug: if two TCP ends had both been shown a closed window, and their
/// acknowledgements were lost because both programs were restarted, neither learnt of the other's
/// progress until its kernel gave up.
#[test]
fn acknowledgements_that_both_ends_refused_are_repeated() {
    for known in [false, true] {
        let mut ends = Ends::new(&Limits::default());
        if known {
            ends.receive(Sample { seq: 5000, ack: 1000, window: 700, ..Sample::default() });
            let _ = ends.send(data(1000, 400));
        }
        // The other end has got 400 bytes, and acknowledges them with the oldest number of the
        // 800 that this end has got.
        ends.receive(Sample {
            seq: 5000,
            ack: 1400,
            window: 600,
            timestamps: Some((3, 2)),
            ..Sample::default()
        });
        assert_eq!(ends.answers(), [], "the local end may accept it");
        let refusal = Sample { seq: 1000, ack: 5800, timestamps: Some((9, 8)), ..Sample::default() };
        assert_eq!(ends.send(refusal), Enqueue::Queued);
        let local = ends.local();
        assert_eq!(local.len(), 1);
        let again = Segment::parse(&local[0]).unwrap();
        assert_eq!((again.seq, again.ack, again.window), (5800, 1400, 600));
        assert_eq!(segment::timestamps(&local[0]), Some((8, 9)));
        // The local end has the acknowledgement.
        let _ = ends.send(Sample { ack: 5800, ..data(1400, 10) });
        let _ = ends.send(Sample { seq: 1399, ack: 5800, ..Sample::default() });
        assert_eq!(ends.answers(), [], "a probe does not show a missed acknowledgement");
    }
}

#[test]
fn held_data_is_not_held_twice() {
    let mut ends = established(&Limits::default());
    // These bytes are unacknowledged on the path that dies.
    let _ = ends.send(data(1000, 100));
    ends.client.poll_transmit(ends.now, ends.path, &mut Vec::new(), Budget::new(1 << 20));
    ends.cut();
    let _ = ends.send(data(1100, 100));
    let _ = ends.send(data(1200, 50));
    for (seq, length) in [(1000, 100), (1100, 100), (1120, 20), (1200, 50), (1000, 30)] {
        ends.now += LATER;
        // Its newer timestamp would make the segments after it look old.
        let copy = Sample { timestamps: Some((9, 9)), ..data(seq, length) };
        assert_eq!(ends.send(copy), Enqueue::Dropped(DropReason::Duplicate), "{seq}+{length}");
    }
    ends.now += LATER;
    assert_eq!(ends.send(data(1100, 150)), Enqueue::Queued, "the range was never held as one segment");
    assert_eq!(ends.send(data(1250, 1)), Enqueue::Queued, "new data");
    assert_eq!(ends.client.stats().dropped_duplicate, 5);
    ends.connect();
    let fresh: Vec<_> = ends.at_server.iter().map(|packet| segment::timestamps(packet).is_some()).collect();
    assert_eq!(
        fresh,
        [false, false, true, false, false],
        "only the third had no data after it when it was retransmitted"
    );
    let arrived: Vec<_> =
        ends.at_server.iter().map(|it| Segment::parse(it).unwrap()).map(|it| (it.seq, it.data)).collect();
    assert_eq!(arrived, [(1000, 100), (1100, 100), (1200, 50), (1100, 150), (1250, 1)]);
}

#[test]
fn the_freshest_copy_of_the_last_segment_is_sent() {
    for sent_before in [false, true] {
        let mut ends = established(&Limits::default());
        let copy = |stamp| Sample { timestamps: Some((stamp, 1)), ..data(1000, 10) };
        if sent_before {
            let _ = ends.send(copy(1));
            ends.client.poll_transmit(ends.now, ends.path, &mut Vec::new(), Budget::new(1 << 20));
        }
        ends.cut();
        if !sent_before {
            let _ = ends.send(copy(1));
        }
        let held = (ends.client.queued_bytes(), ends.client.unacked_bytes());
        for stamp in 2..5 {
            ends.now += LATER;
            assert_eq!(ends.send(copy(stamp)), Enqueue::Dropped(DropReason::Duplicate));
        }
        assert_eq!((ends.client.queued_bytes(), ends.client.unacked_bytes()), held);
        ends.connect();
        assert_eq!(ends.at_server, [copy(4).packet()]);
        assert_eq!(ends.client.unacked_bytes(), 0);
    }
}

#[test]
fn a_flow_holds_one_probe_and_none_beside_data() {
    let mut ends = established(&Limits::default());
    ends.cut();
    let probe = |stamp| Sample { timestamps: Some((stamp, 1)), ..data(999, 0) };
    for stamp in 1..5 {
        ends.now += LATER;
        let _ = ends.send(probe(stamp));
    }
    assert_eq!(ends.client.queued_bytes(), probe(4).packet().len());
    let _ = ends.send(data(1000, 10));
    ends.now += LATER;
    let _ = ends.send(probe(5));
    ends.connect();
    assert_eq!(ends.at_server, [probe(4).packet(), data(1000, 10).packet()]);
}

#[test]
fn tracked_flows_wait_for_hours_and_other_packets_for_a_minute() {
    let mut ends = established(&Limits::default());
    let send_all = |ends: &mut Ends, from: u32| {
        let _ = ends.client.enqueue(ends.now, &udp(1, 60));
        let _ = ends.send(data(from, 10));
        let _ = ends.send(Sample { port: 4001, ..data(1, 10) });
        let _ = ends.client.enqueue(ends.now, &udp(2, 60));
        let _ = ends.send(data(from + 10, 10));
    };
    send_all(&mut ends, 1000);
    ends.client.poll_transmit(ends.now, ends.path, &mut Vec::new(), Budget::new(1 << 20));
    ends.cut();
    send_all(&mut ends, 1020);
    ends.now += 3600 * SECOND;
    ends.client.handle_timeout(ends.now);
    assert_eq!(ends.client.poll_timeout(), None);
    assert_eq!((ends.client.stats().given_up, ends.client.stats().dropped_aged), (3, 3));
    ends.connect();
    let arrived: Vec<_> = ends.at_server.iter().map(|it| Segment::parse(it).unwrap().seq).collect();
    assert_eq!(arrived, [1000, 1010, 1020, 1030]);
    assert_eq!(ends.server.stats().lost, 3);
    assert_eq!((ends.client.unacked_bytes(), ends.client.queued_bytes()), (0, 0));
}

#[test]
fn in_an_outage_the_newest_datagrams_stay_and_no_flow_displaces_all_others() {
    let limits = Limits { queue_bytes: 40_000, ..Limits::default() };
    let mut ends = established(&limits);
    for port in 4001..4010 {
        ends.receive(Sample { port, seq: 5000, ack: 1000, ..Sample::default() });
    }
    ends.cut();
    for number in 0..100 {
        assert_eq!(ends.client.enqueue(ends.now, &udp(number, 1000)), Enqueue::Queued);
    }
    let bulk = |ends: &mut Ends, port: u16| {
        (0..100)
            .filter(|n| ends.send(Sample { port, ..data(1000 + n * 1000, 960) }) == Enqueue::Queued)
            .count()
    };
    let one = bulk(&mut ends, 4000);
    assert!((6..=9).contains(&one), "a flow has a quarter of the queue: {one}");
    assert_eq!(bulk(&mut ends, 4001), one, "the next flow has its own quarter");
    let others: usize = (4002..4010).map(|port| bulk(&mut ends, port)).sum();
    assert!(others <= one, "all flows have three quarters: {others}");
    assert_eq!(ends.client.enqueue(ends.now, &udp(100, 1000)), Enqueue::Queued);
    assert!(ends.client.sender.queue.cost() <= limits.queue_bytes);
    ends.connect();
    let datagrams: Vec<u8> = ends.at_server.iter().filter(|it| it[9] == 17).map(|it| it[1]).collect();
    let first = datagrams[0];
    assert!(datagrams.len() >= 6, "{datagrams:?}");
    assert_eq!(datagrams, (first..=100).collect::<Vec<_>>());
    let stats = ends.client.stats();
    assert_eq!(stats.dropped_displaced, u64::from(first));
    assert_eq!(stats.dropped_queue_full as usize, 10 * 100 - one * 2 - others);
}
