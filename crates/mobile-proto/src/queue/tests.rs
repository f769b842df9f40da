use std::collections::HashMap;

use proptest::prelude::*;

use super::turns::QUANTUM;
use super::*;

const MS: Duration = Duration::from_millis(1);

fn queue() -> SendQueue {
    SendQueue::fair([0; 16], 5 * MS)
}

fn record(packet: &[u8]) -> Record {
    Record::new(packet.to_vec(), Offload::None, Instant::now(), None, queue().classify(&packet.into()))
}

fn segment(packet: &[u8], seq: u32, length: u32) -> Record {
    Record { range: Some(SegmentRange { flow: 1, seq, length }), ..record(packet) }
}

fn pop(queue: &mut SendQueue) -> Option<Record> {
    queue.pop(Instant::now(), usize::MAX, |_| panic!("nothing is dropped"))
}

/// Returns a packet of a flow, of `size` bytes but at least 32, that contains `number`.
fn packet(flow: u8, number: u32, size: usize) -> Vec<u8> {
    let mut packet = vec![0; size.max(32)];
    (packet[0], packet[9]) = (0x45, 17);
    packet[12..16].copy_from_slice(&[10, 0, 0, flow]);
    packet[28..32].copy_from_slice(&number.to_be_bytes());
    packet
}

fn of(flow: u8, number: u32, size: usize, since: Instant) -> Record {
    Record { received_at: since, ..record(&packet(flow, number, size)) }
}

fn flow_of(packet: &[u8]) -> u8 {
    packet[15]
}

fn number_of(packet: &[u8]) -> u32 {
    u32::from_be_bytes([packet[28], packet[29], packet[30], packet[31]])
}

/// Returns a bare acknowledgement of TCP, without options.
fn acknowledgement(ack: u32) -> Record {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.extend([0, 80, 1, 2, 0, 0, 0, 5]);
    packet.extend(ack.to_be_bytes());
    packet.extend([5 << 4, 0x10, 0, 99, 0, 0, 0, 0]);
    segment(&packet, 5, 0)
}

#[test]
fn an_acknowledgement_replaces_the_one_it_makes_redundant() {
    let mut queue = queue();
    assert!(queue.supersede(&mut acknowledgement(7)).is_none());
    queue.push(acknowledgement(7));
    queue.push(record(b"of another flow"));
    let needless = queue.supersede(&mut acknowledgement(8)).unwrap();
    assert_eq!(needless, acknowledgement(7).packet);
    // A duplicate acknowledgement is kept; so is one of an untracked flow, which may be anybody's.
    assert!(queue.supersede(&mut acknowledgement(8)).is_none());
    assert!(queue.supersede(&mut Record { range: None, ..acknowledgement(9) }).is_none());
    assert_eq!(queue.bytes(), 40 + 15);
    let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).map(|it| it.packet).collect();
    assert_eq!(order, [acknowledgement(8).packet, b"of another flow".to_vec()]);
    assert_eq!((queue.cost(), queue.bytes()), (0, 0));
}

#[test]
fn an_acknowledgement_never_overtakes_earlier_data_of_its_flow() {
    let mut queue = queue();
    queue.push(acknowledgement(7));
    queue.push(segment(&[acknowledgement(7).packet, vec![0]].concat(), 5, 1));
    assert!(queue.supersede(&mut acknowledgement(8)).is_none());
    let mut queue = self::queue();
    queue.push(Record { range: None, ..acknowledgement(7) });
    assert!(queue.supersede(&mut acknowledgement(8)).is_none());
}

#[test]
fn one_flow_is_first_in_first_out_and_every_byte_is_counted() {
    let mut queue = queue();
    queue.push(record(b"bb"));
    queue.push(record(b"ccc"));
    queue.push_front(record(b"a"));
    assert_eq!(queue.bytes(), 6);
    assert!(queue.cost() > 3 * size_of::<Record>());
    assert_eq!(queue.next_cost(), Some(record(b"a").cost()));
    assert_eq!(pop(&mut queue).unwrap().packet, b"a");
    assert_eq!(queue.pop_newest().unwrap().packet, b"ccc");
    assert_eq!(pop(&mut queue).unwrap().packet, b"bb");
    assert!(pop(&mut queue).is_none() && queue.is_empty());
    assert_eq!((queue.cost(), queue.bytes()), (0, 0));
}

#[test]
fn two_lanes_are_one_queue() {
    let mut queue = queue();
    queue.push(record(b"b"));
    queue.push(segment(b"c", 0, 1));
    queue.push(record(b"d"));
    queue.push(segment(b"e", 1, 1));
    queue.push_front(segment(b"a", 9, 1));
    let at = queue.find(|range| range.seq == 0).unwrap();
    assert_eq!(
        queue.replace(at, b"CC".to_vec(), Offload::Checksum, PacketClass::default()),
        Some(b"c".to_vec())
    );
    assert_eq!(queue.bytes(), 6);
    assert_eq!(queue.pop_newest().unwrap().packet, b"e");
    assert_eq!(queue.pop_oldest_untracked().unwrap().packet, b"b");
    let rest: Vec<_> = queue.into_records().map(|record| record.packet).collect();
    assert_eq!(rest, [b"a".to_vec(), b"CC".to_vec(), b"d".to_vec()]);
}

#[test]
fn a_range_covers_what_lies_in_it_across_a_wrap() {
    let range = |seq, length| SegmentRange { flow: 1, seq, length };
    let held = range(u32::MAX - 9, 20);
    for (seq, length, covered) in [
        (u32::MAX - 9, 20, true),
        (0, 10, true),
        (0, 11, false),
        (u32::MAX - 10, 5, false),
        (10, 0, true),
        (11, 0, false),
    ] {
        assert_eq!(held.covers(&range(seq, length)), covered, "{seq} {length}");
    }
    assert!(!held.covers(&SegmentRange { flow: 2, ..held }));
}

#[test]
fn a_keystroke_overtakes_bulk_transfers_of_any_backlog() {
    let (mut queue, now) = (queue(), Instant::now());
    for number in 0..20 {
        queue.push(of(1, number, 65_000, now));
        queue.push(of(2, number, 3000, now));
    }
    for key in 0..5 {
        // Packets that are sent between two keystrokes on a slow path.
        for _ in 0..3 {
            assert_ne!(flow_of(&pop(&mut queue).unwrap().packet), 9);
        }
        queue.push(of(9, key, 60, now));
        let next = pop(&mut queue).unwrap().packet;
        assert_eq!((flow_of(&next), number_of(&next)), (9, key));
    }
}

#[test]
fn a_flow_that_sends_more_than_its_share_is_not_new_for_ever() {
    let (mut queue, now) = (queue(), Instant::now());
    (0..20).for_each(|number| queue.push(of(1, number, 1500, now)));
    // The flow always has exactly one packet queued, as a fast sender of datagrams may.
    let mut theirs = 0;
    for number in 0..10 {
        queue.push(of(2, number, 1500, now));
        theirs += usize::from(flow_of(&pop(&mut queue).unwrap().packet) == 2);
        theirs += usize::from(flow_of(&pop(&mut queue).unwrap().packet) == 2);
    }
    assert!((9..=11).contains(&theirs), "{theirs} of 20");
}

#[test]
fn only_a_standing_queue_without_outage_or_growth_is_shortened() {
    for (outage, growing) in [(false, false), (true, false), (false, true)] {
        let (mut queue, start) = (queue(), Instant::now());
        (0..200).for_each(|number| queue.push(of(1, number, 3000, start)));
        let mut dropped = Vec::new();
        queue.set_growing(growing);
        if outage {
            queue.exempt_waiting(start + MS);
        }
        let mut sent = 0;
        for ms in 0..600 {
            let now = start + 50 * MS + 3 * ms * MS;
            sent += u32::from(queue.pop(now, usize::MAX, |record| dropped.push(record)).is_some());
        }
        assert_eq!(sent + dropped.len() as u32, 200);
        assert_eq!(dropped.is_empty(), outage || growing, "{}", dropped.len());
        assert!(queue.is_delayed());
    }
}

#[test]
fn a_packet_is_dropped_only_if_its_successor_can_be_sent() {
    let (mut queue, start) = (queue(), Instant::now());
    (0..50).for_each(|number| queue.push(of(1, number, if number % 2 == 0 { 3000 } else { 9000 }, start)));
    let room = record(&[0; 3000]).cost();
    for ms in 0..100 {
        if let Some(record) = queue.pop(start + 200 * MS + 10 * ms * MS, room, |_| {
            panic!("a packet was dropped although its successor does not fit")
        }) {
            assert!(record.cost() <= room);
        } else {
            assert!(queue.next_cost().unwrap() > room);
            queue.pop(start, usize::MAX, drop).unwrap();
        }
        if queue.is_empty() {
            break;
        }
    }
    assert!(queue.is_empty());
}

#[test]
fn the_longest_flow_makes_room_unless_it_asks_itself() {
    let (mut queue, now) = (queue(), Instant::now());
    (0..10).for_each(|number| queue.push(of(1, number, 1500, now)));
    queue.push(of(2, 0, 1500, now));
    assert!(queue.pop_from_longest_flow(of(1, 10, 1500, now).class, 1500).is_none());
    let given_up = queue.pop_from_longest_flow(of(2, 1, 1500, now).class, 1500).unwrap().packet;
    assert_eq!((flow_of(&given_up), number_of(&given_up)), (1, 9), "the newest packet of the flow");
}

#[test]
fn memory_is_released_when_the_queue_is_empty() {
    let mut queue = SendQueue::fair([3; 16], 5 * MS);
    queue.push(record(b"a"));
    queue.trim();
    assert_eq!(pop(&mut queue).unwrap().packet, b"a");
    queue.trim();
    assert_eq!(queue.turns.capacity(), 0);
    assert_eq!(queue.seed, Some([3; 16]));
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8, usize),
    Pop(u32),
    PopNewest,
    PopOldestUntracked,
    PopFromLongestFlow(u8),
    ExemptWaiting,
    Grow(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0_u8..6, 32_usize..9000).prop_map(|(flow, size)| Step::Push(flow, size)),
        4 => (0_u32..40).prop_map(Step::Pop),
        1 => Just(Step::PopNewest),
        1 => Just(Step::PopOldestUntracked),
        1 => (0_u8..6).prop_map(Step::PopFromLongestFlow),
        1 => Just(Step::ExemptWaiting),
        1 => any::<bool>().prop_map(Step::Grow),
    ];
    proptest::collection::vec(step, 0..400)
}

proptest! {
    #[test]
    fn each_packet_is_removed_once_in_the_order_of_its_flow(steps in steps()) {
        let (mut queue, mut now) = (queue(), Instant::now());
        let (mut pushed, mut most_waiting) = (0_u32, 0_usize);
        let mut waiting = HashMap::<u32, (u8, usize)>::new();
        let mut last = HashMap::<u8, u32>::new();
        let gone = |waiting: &mut HashMap<u32, (u8, usize)>, record: &Record| {
            waiting.remove(&number_of(&record.packet)).expect("once")
        };
        for step in steps {
            match step {
                Step::Push(flow, size) => {
                    // Half of the flows are tracked.
                    let range = SegmentRange { flow: flow.into(), seq: pushed, length: 1 };
                    let packet = of(flow, pushed, size, now);
                    waiting.insert(pushed, (flow, packet.packet.len()));
                    queue.push(Record { range: (flow % 2 == 0).then_some(range), ..packet });
                    pushed += 1;
                }
                Step::Pop(ms) => {
                    now += MS * ms;
                    let mut dropped = Vec::new();
                    let cost = queue.next_cost();
                    let popped = queue.pop(now, usize::MAX, |record| dropped.push(record));
                    prop_assert_eq!(cost.is_some(), popped.is_some());
                    for record in dropped.iter().chain(&popped) {
                        let (flow, _) = gone(&mut waiting, record);
                        let number = number_of(&record.packet);
                        prop_assert!(last.insert(flow, number).is_none_or(|before| before < number));
                    }
                }
                Step::PopNewest => {
                    if let Some(record) = queue.pop_newest() {
                        prop_assert_eq!(waiting.keys().max().copied(), Some(number_of(&record.packet)));
                        gone(&mut waiting, &record);
                    }
                }
                Step::PopOldestUntracked => {
                    if let Some(record) = queue.pop_oldest_untracked() {
                        let oldest = waiting.iter().filter(|(_, (flow, _))| flow % 2 == 1).map(|(number, _)| *number);
                        prop_assert_eq!(oldest.min(), Some(number_of(&record.packet)));
                        gone(&mut waiting, &record);
                    }
                }
                Step::PopFromLongestFlow(flow) => {
                    if let Some(record) = queue.pop_from_longest_flow(of(flow, 0, 32, now).class, 32) {
                        prop_assert_ne!(flow_of(&record.packet), flow);
                        gone(&mut waiting, &record);
                    }
                }
                Step::ExemptWaiting => queue.exempt_waiting(now),
                Step::Grow(growing) => queue.set_growing(growing),
            }
            most_waiting = most_waiting.max(waiting.len());
            prop_assert_eq!(queue.bytes(), waiting.values().map(|(_, size)| size).sum::<usize>());
            prop_assert_eq!(queue.is_empty(), waiting.is_empty());
            prop_assert_eq!(queue.is_empty(), queue.cost() == 0);
        }
        prop_assert!(queue.slab.slots() <= most_waiting, "slots are reused");
        while !queue.is_empty() {
            let mut dropped = Vec::new();
            let popped = queue.pop(now, usize::MAX, |record| dropped.push(record));
            dropped.iter().chain(&popped).for_each(|record| assert!(gone(&mut waiting, record).1 > 0));
        }
        prop_assert!(waiting.is_empty());
    }

    /// Tests that, while all flows have packets queued, no flow sends more than another by more
    /// than a turn and the largest packet.
    #[test]
    fn shares_are_equal_for_any_packet_sizes(sizes in proptest::collection::vec(32_usize..66_000, 2..6), turns in 50_usize..400) {
        let (mut queue, now) = (queue(), Instant::now());
        let mut sent = vec![0_i64; sizes.len()];
        let push = |queue: &mut SendQueue, flow: usize| queue.push(of(flow as u8, 0, sizes[flow], now));
        let buckets: std::collections::HashSet<u16> =
            (0..sizes.len()).map(|flow| of(flow as u8, 0, 32, now).bucket()).collect();
        prop_assume!(buckets.len() == sizes.len());
        for _ in 0..2 {
            (0..sizes.len()).for_each(|flow| push(&mut queue, flow));
        }
        for _ in 0..turns {
            let record = pop(&mut queue).expect("a packet is queued");
            let flow = usize::from(flow_of(&record.packet));
            sent[flow] += record.packet.len() as i64;
            push(&mut queue, flow);
            let largest = *sizes.iter().max().expect("some") as i64;
            let (most_waiting, least) = (sent.iter().max().expect("some"), sent.iter().min().expect("some"));
            prop_assert!(most_waiting - least <= largest + 2 * QUANTUM, "{sent:?} of {sizes:?}");
        }
    }
}

#[test]
fn a_fifo_keeps_the_order_of_all_flows_and_drops_nothing_for_its_delay() {
    let (mut queue, start) = (SendQueue::fifo(), Instant::now());
    let unmarked = |record| Record { class: PacketClass::default(), ..record };
    (0..100).for_each(|number| queue.push(unmarked(of((number % 3) as u8, number, 3000, start))));
    let mut order = Vec::new();
    for ms in 0..100 {
        let popped = queue.pop(start + 500 * MS + 10 * ms * MS, usize::MAX, |_| panic!("nothing is dropped"));
        order.push(popped.unwrap().packet);
    }
    let pushed: Vec<_> = (0..100).map(|number| of((number % 3) as u8, number, 3000, start).packet).collect();
    assert_eq!(order, pushed);
    assert!(!queue.is_delayed());
}

#[test]
fn the_turn_of_a_sparse_flow_ends_where_the_backlog_of_another_begins() {
    let (mut queue, now) = (queue(), Instant::now());
    for number in 0..3 {
        queue.push(of(1, number, 1500, now));
    }
    pop(&mut queue);
    assert!(!queue.is_turn_over(), "its own backlog");
    pop(&mut queue);
    queue.push(of(2, 0, 100, now));
    queue.push(of(3, 0, 100, now));
    assert_eq!(flow_of(&pop(&mut queue).unwrap().packet), 2);
    assert!(!queue.is_turn_over(), "another sparse flow is next");
    assert_eq!(flow_of(&pop(&mut queue).unwrap().packet), 3);
    assert!(queue.is_turn_over());
    assert_eq!(flow_of(&pop(&mut queue).unwrap().packet), 1);
    assert!(!queue.is_turn_over(), "nothing is next");
}
