//! Tests of the limits in an outage: how many packets are held, for how long, and how much time
//! searches of the held packets take.

use super::*;

/// Tests an agent that is restarted during a download: the relay's new session takes over far more
/// than its queue may hold.
#[test]
fn a_session_that_takes_over_displaces_nothing_of_what_was_in_flight() {
    let limits = Limits { queue_bytes: 40_000, replay_bytes: 160_000, ..Limits::default() };
    let mut ends = Ends::new(&limits);
    let _ = ends.send(Sample { ack: 5000, window: 300, ..Sample::default() });
    ends.settle();
    let from_far = |number: u32| {
        let sample = Sample { seq: 5000 + 900 * number, ack: 1000, data: 900, ..Sample::default() };
        Sample { inbound: true, ..sample }.packet()
    };
    let mut sent = Vec::new();
    for number in 0..60 {
        for packet in [from_far(number), udp(number as u8, 900)] {
            assert_eq!(ends.server.enqueue(ends.now, &packet), Enqueue::Queued);
            ends.server.poll_transmit(ends.now, ends.path, &mut Vec::new(), Budget::new(1 << 20));
            sent.push(packet);
        }
    }
    let former = std::mem::replace(&mut ends.client, Session::client(SessionId([2; 16]), limits.clone()));
    assert_eq!(former.active_path(), Some(ends.path));
    let config = PushConfig { mtu: 1400, ..PushConfig::default() };
    let successor = Session::server(SessionId([2; 16]), 8, limits.clone(), config);
    let left = std::mem::replace(&mut ends.server, successor).into_unacknowledged();
    assert_eq!(left.len(), sent.len());
    ends.server.requeue(left);

    // Until the agent activates a path, packets arrive from the TUN as usual.
    for number in 60..120 {
        let _ = ends.server.enqueue(ends.now, &udp(number, 900));
    }
    ends.now += LATER;
    let _ = ends.server.enqueue(ends.now, &from_far(0));
    let answer = Segment::parse(&local(&mut ends.server, ends.now)[0]).unwrap();
    assert_eq!((answer.seq, answer.ack, answer.window), (1000, 5000, 0), "the flow is still tracked");
    assert_eq!(ends.server.stats().dropped_duplicate, 1, "the range of the held data is known");
    assert!(ends.server.sender.queue.cost() <= limits.queue_bytes);
    ends.connect();
    assert!(ends.at_client.starts_with(&sent), "{} of {}", ends.at_client.len(), sent.len());
    assert!(ends.at_client.len() > sent.len() + 30, "the newest of the other packets are queued");
}

#[test]
fn displaced_packets_are_reported_as_dropped() {
    let mut ends = established(&Limits { queue_bytes: 40_000, ..Limits::default() });
    ends.cut();
    for number in 0..100 {
        assert_eq!(ends.client.enqueue(ends.now, &udp(number, 1000)), Enqueue::Queued);
    }
    let displaced = ends.client.stats().dropped_displaced;
    assert!(displaced > 50);
    assert_eq!(ends.client.stats().dropped(), displaced);
    while ends.client.poll_event().is_some() {}
    ends.connect();
    let reported = std::iter::from_fn(|| ends.client.poll_event()).find_map(|event| match event {
        Event::PathActivated { dropped, .. } => Some(dropped),
        _ => None,
    });
    assert_eq!(reported, Some(displaced));
}

/// Tests a flow that retransmits every millisecond. Its data is not among thousands of held
/// records, so that each search reads all of them.
#[test]
fn a_flow_that_retransmits_all_the_time_does_not_block_the_search_for_others() {
    let mut ends = established(&Limits { queue_bytes: 64 << 20, ..Limits::default() });
    ends.receive(Sample { port: 4001, seq: 5000, ack: 1000, ..Sample::default() });
    ends.cut();
    for number in 0..4000 {
        assert_eq!(ends.send(data(1000 + number * 10, 10)), Enqueue::Queued);
    }
    let honest = Sample { port: 4001, ..data(1000, 10) };
    assert_eq!(ends.send(honest), Enqueue::Queued);
    for ms in 0..2000 {
        ends.now += Duration::from_millis(1);
        // The range spans two held segments, so it is never found.
        let _ = ends.send(data(1005, 10));
        if ms % 200 == 0 {
            assert_eq!(ends.send(honest), Enqueue::Dropped(DropReason::Duplicate), "after {ms} ms");
        }
    }
    // In two seconds, the flow has not had more than its share.
    let dropped = ends.client.stats().dropped_duplicate;
    assert!(dropped >= 10, "{dropped}");
}

#[test]
fn a_probe_beside_data_needs_no_search() {
    let mut ends = established(&Limits::default());
    ends.cut();
    let _ = ends.send(data(1000, 10));
    let paid = ends.client.sender.freeze.search_paid_until;
    for _ in 0..1000 {
        assert_eq!(ends.send(data(999, 0)), Enqueue::Dropped(DropReason::Duplicate));
    }
    assert_eq!(ends.client.sender.freeze.search_paid_until, paid);
}

/// Tests that, of any number of probes of a closed window, only one is queued, even when the
/// session has no time to search for the older one.
#[test]
fn probes_do_not_pile_up_at_any_rate() {
    let mut ends = established(&Limits::default());
    ends.cut();
    for _ in 0..100_000 {
        let _ = ends.send(data(999, 0));
    }
    assert_eq!(ends.client.queued_bytes(), data(999, 0).packet().len());
}

#[test]
fn a_retransmitted_bare_fin_is_held_once() {
    let mut ends = established(&Limits::default());
    ends.cut();
    let fin = |stamp| Sample { flags: FIN | ACK, timestamps: Some((stamp, 1)), ..data(1000, 0) };
    assert_eq!(ends.send(fin(1)), Enqueue::Queued);
    for stamp in 2..6 {
        ends.now += LATER;
        assert_eq!(ends.send(fin(stamp)), Enqueue::Dropped(DropReason::Duplicate));
    }
    ends.connect();
    assert_eq!(ends.at_server, [fin(5).packet()], "the freshest copy");
}

#[test]
fn a_relay_keeps_the_oldest_data_of_each_flow_for_a_client_that_stays_away() {
    let limits = Limits::default();
    let mut ends = Ends::new(&limits);
    let from_far = |port, number: u32| {
        let sample = Sample { port, seq: 5000 + 1000 * number, ack: 1000, data: 1000, ..Sample::default() };
        Sample { inbound: true, ..sample }.packet()
    };
    for port in [4000, 4001] {
        let _ = ends.send(Sample { port, ack: 5000, ..Sample::default() });
        ends.settle();
        let _ = ends.server.enqueue(ends.now, &from_far(port, 0));
    }
    for number in 1..50 {
        let _ = ends.server.enqueue(ends.now, &from_far(4000, number));
    }
    ends.server.poll_transmit(ends.now, ends.path, &mut Vec::new(), Budget::new(1 << 20));
    ends.cut();
    ends.server.poll_local(ends.now, &mut |_| {});
    for number in 50..100 {
        let _ = ends.server.enqueue(ends.now, &from_far(4000, number));
    }
    let _ = ends.server.enqueue(ends.now, &from_far(4001, 1));
    let held = |ends: &Ends| ends.server.sender.replay.cost() + ends.server.sender.queue.cost();
    let before = held(&ends);
    ends.now += limits.thin_after - SECOND;
    ends.server.handle_timeout(ends.now);
    assert_eq!(held(&ends), before, "too early to thin");
    ends.now += SECOND;
    // A segment that has just arrived is too young to be dropped.
    let _ = ends.server.enqueue(ends.now, &from_far(4001, 2));
    assert_eq!(ends.server.poll_timeout(), Some(ends.now));
    ends.server.handle_timeout(ends.now);
    assert_eq!(ends.server.poll_timeout(), Some(ends.now + limits.thin_after));
    assert!(ends.server.unacked_bytes() + ends.server.queued_bytes() < 3 * 1100);
    let stats = ends.server.stats();
    assert_eq!((stats.given_up, stats.dropped_aged), (49, 51));
    ends.connect();
    assert_eq!(ends.at_client, [from_far(4000, 0), from_far(4001, 0), from_far(4001, 2)]);
    assert_eq!(ends.client.stats().lost, 49);
    ends.receive(Sample { seq: 9000, ..data(0, 10) });
    assert_eq!(ends.at_client.len(), 4, "the flow continues");
}

/// Tests that a client drops none of the segments that it holds in an outage, however long, because
/// an agent has one session and its own memory.
#[test]
fn a_client_keeps_all_that_it_holds() {
    let mut ends = established(&Limits::default());
    ends.cut();
    for number in 0..20 {
        let _ = ends.send(data(1000 + number * 10, 10));
    }
    let held = ends.client.queued_bytes();
    ends.now += 3600 * SECOND;
    ends.client.handle_timeout(ends.now);
    assert_eq!((ends.client.queued_bytes(), ends.client.poll_timeout()), (held, None));
}
