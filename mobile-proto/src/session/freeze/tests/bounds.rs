//! What is held in an outage: how much, for how long, and what it may cost to look at.

use super::*;

/// An agent that was restarted while a download ran: the relay's new session holds far more than its queue may.
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
            ends.server.poll_transmit(ends.now, ends.path, &mut Vec::new(), 1 << 20);
            sent.push(packet);
        }
    }
    let former = std::mem::replace(&mut ends.client, Session::client(SessionId([2; 16]), limits.clone()));
    assert_eq!(former.active_path(), Some(ends.path));
    let config = PushConfig { ipv4: None, ipv6: None, mtu: 1400, dns: Vec::new() };
    let successor = Session::server(SessionId([2; 16]), 8, limits.clone(), config);
    let left = std::mem::replace(&mut ends.server, successor).into_unacknowledged();
    assert_eq!(left.len(), sent.len());
    ends.server.requeue(left);

    // Until the agent activates a path, packets come from the TUN as ever.
    for number in 60..120 {
        let _ = ends.server.enqueue(ends.now, &udp(number, 900));
    }
    ends.now += LATER;
    let _ = ends.server.enqueue(ends.now, &from_far(0));
    let answer = Segment::parse(&local(&mut ends.server, ends.now)[0]).unwrap();
    assert_eq!((answer.seq, answer.ack, answer.window), (1000, 5000, 0), "the flow is known still");
    assert_eq!(ends.server.stats().dropped_duplicate, 1, "and so is the place of what is held");
    assert!(ends.server.queue.cost() <= limits.queue_bytes);
    ends.connect();
    assert!(ends.at_client.starts_with(&sent), "{} of {}", ends.at_client.len(), sent.len());
    assert!(ends.at_client.len() > sent.len() + 30, "and of the others the newest");
}

#[test]
fn what_newer_packets_displaced_is_told_as_dropped() {
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
    let told = std::iter::from_fn(|| ends.client.poll_event()).find_map(|event| match event {
        Event::PathActivated { dropped, .. } => Some(dropped),
        _ => None,
    });
    assert_eq!(told, Some(displaced));
}

/// Thousands of records are held, and one flow repeats every millisecond what is not among them: each time, all are
/// looked at.
#[test]
fn one_flow_that_repeats_all_the_time_leaves_the_search_to_the_others() {
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
        // Across two that are held, and so never found.
        let _ = ends.send(data(1005, 10));
        if ms % 200 == 0 {
            assert_eq!(ends.send(honest), Enqueue::Dropped(DropReason::Duplicate), "after {ms} ms");
        }
    }
    // Of two seconds, it has not had more than its share.
    let dropped = ends.client.stats().dropped_duplicate;
    assert!(dropped >= 10, "{dropped}");
}

#[test]
fn a_probe_beside_data_needs_no_search() {
    let mut ends = established(&Limits::default());
    ends.cut();
    let _ = ends.send(data(1000, 10));
    let paid = ends.client.freeze.searched;
    for _ in 0..1000 {
        assert_eq!(ends.send(data(999, 0)), Enqueue::Dropped(DropReason::Duplicate));
    }
    assert_eq!(ends.client.freeze.searched, paid);
}

/// Every probe of a storm finds the older one, or is dropped unfound.
#[test]
fn probes_do_not_pile_up_however_fast_they_come() {
    let mut ends = established(&Limits::default());
    ends.cut();
    for _ in 0..100_000 {
        let _ = ends.send(data(999, 0));
    }
    assert_eq!(ends.client.queued_bytes(), data(999, 0).packet().len());
}

#[test]
fn a_fin_alone_that_is_repeated_is_held_once() {
    let mut ends = established(&Limits::default());
    ends.cut();
    let fin = |stamp| Sample { flags: FIN | ACK, timestamps: Some((stamp, 1)), ..data(1000, 0) };
    assert_eq!(ends.send(fin(1)), Enqueue::Queued);
    for stamp in 2..6 {
        ends.now += LATER;
        assert_eq!(ends.send(fin(stamp)), Enqueue::Dropped(DropReason::Duplicate));
    }
    ends.connect();
    assert_eq!(ends.at_server, [fin(5).packet()], "the freshest");
}

#[test]
fn for_a_client_that_stays_away_a_relay_keeps_the_oldest_data_of_each_flow() {
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
    ends.server.poll_transmit(ends.now, ends.path, &mut Vec::new(), 1 << 20);
    ends.cut();
    ends.server.poll_local(ends.now, &mut |_| {});
    for number in 50..100 {
        let _ = ends.server.enqueue(ends.now, &from_far(4000, number));
    }
    let _ = ends.server.enqueue(ends.now, &from_far(4001, 1));
    let held = |ends: &Ends| ends.server.replay.cost() + ends.server.queue.cost();
    let before = held(&ends);
    ends.now += limits.thin_after - SECOND;
    ends.server.handle_timeout(ends.now);
    assert_eq!(held(&ends), before, "not yet");
    ends.now += SECOND;
    // One that has just come is as young as ever.
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
    assert_eq!(ends.at_client.len(), 4, "and all goes on");
}

/// An agent has one session, and its own memory.
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
