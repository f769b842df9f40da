//! Tests of limits, timers, acknowledgements, configuration and closing.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Direction, Pair, all, closed, config, down, numbers, packet, up, with_offload};
use mobile_proto::{
    Announcement, Budget, CloseCode, Enqueue, Event, InnerPacket, Limits, PacketBuf, PathId, PushConfig,
    Session, SessionId, Unacknowledged,
};

const ONE: PathId = PathId(1);
const TWO: PathId = PathId(2);
const THREE: PathId = PathId(3);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_full_replay_buffer_waits_and_a_full_queue_drops_the_newest() {
    let limits = Limits { replay_bytes: 10_000, queue_bytes: 20_000, ..Limits::default() };
    let mut pair = Pair::connected(limits);
    pair.wire(ONE).stalled_down = true;
    let mut accepted = 0;
    while pair.send_up(&packet(accepted, 200)) == Enqueue::Queued {
        accepted += 1;
        pair.settle();
    }
    assert!(!pair.client.has_room());
    let (unacked, queued) = (pair.client.unacked_bytes(), pair.client.queued_bytes());
    assert!(unacked <= 10_000 && unacked > 5_000, "{unacked}");
    assert!(queued <= 20_000 && queued > 10_000, "{queued}");
    assert!(!pair.client.wants_transmit(ONE), "new records wait for an acknowledgement");
    assert_eq!(pair.client.stats().dropped_queue_full, 1);
    assert_eq!(pair.client.stats().enqueued_packets, u64::from(accepted));
    pair.wire(ONE).stalled_down = false;
    pair.advance(SECOND);
    assert_eq!(numbers(&pair.at_server), all(0..accepted));
    assert!(pair.client.has_room());
}

#[test]
fn without_a_path_packets_wait_until_they_are_too_old() {
    let limits = Limits { max_age: 10 * SECOND, queue_bytes: 50_000, ..Limits::default() };
    let mut pair = Pair::connected(limits);
    up(&mut pair, 0..5);
    pair.transmit(usize::MAX);
    pair.cut(ONE);
    pair.advance(6 * SECOND);
    up(&mut pair, 5..8);
    assert!(pair.client.has_room(), "the TUN never blocks for an outage");
    pair.advance(5 * SECOND);
    up(&mut pair, 8..9);
    assert_eq!(pair.client.stats().given_up, 5);
    pair.open(TWO);
    pair.settle();
    pair.activate(TWO, &[]);
    pair.settle();
    assert_eq!(numbers(&pair.at_server), all(5..9));
    assert_eq!(pair.server().stats().lost, 5);
    pair.cut(TWO);
    up(&mut pair, 9..11);
    pair.advance(20 * SECOND);
    assert_eq!((pair.client.stats().dropped_aged, pair.client.queued_bytes()), (2, 0));
}

#[test]
fn nothing_expires_while_a_path_is_active() {
    let mut pair = Pair::connected(Limits { max_age: SECOND, replay_bytes: 1000, ..Limits::default() });
    pair.wire(ONE).stalled_up = true;
    up(&mut pair, 0..10);
    pair.advance(30 * SECOND);
    pair.wire(ONE).stalled_up = false;
    pair.advance(SECOND);
    assert_eq!(numbers(&pair.at_server), all(0..10));
}

#[test]
fn a_silent_path_is_reported_once_and_a_slow_one_never() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..1);
    pair.wire(ONE).stalled_down = true;
    pair.advance(5 * SECOND);
    let reports: Vec<_> =
        pair.client_events.iter().filter(|event| matches!(event, Event::PathUnresponsive { .. })).collect();
    assert!(
        matches!(reports[..], [Event::PathUnresponsive { path: ONE, silent_for }] if *silent_for >= SECOND),
        "{reports:?}"
    );
    assert!(pair.client.path_stats(ONE).unwrap().unresponsive);
    pair.wire(ONE).stalled_down = false;
    pair.advance(SECOND);
    assert!(!pair.client.path_stats(ONE).unwrap().unresponsive);

    // One long record at 100 bytes a step: the relay acknowledges that bytes arrive.
    let mut pair = Pair::connected(Limits::default());
    assert_eq!(pair.send_up(&packet(0, 6000)), Enqueue::Queued);
    pair.wire(ONE).stalled_up = true;
    for _ in 0..61 {
        pair.advance(Duration::from_millis(500));
        pair.deliver(ONE, Direction::Up, 100);
    }
    pair.advance(SECOND);
    assert_eq!(pair.at_server.len(), 1);
    assert_eq!(pair.client.stats().unresponsive, 0);
}

#[test]
fn a_busy_sender_detects_a_dead_return_direction() {
    let mut pair = Pair::connected(Limits::default());
    pair.wire(ONE).stalled_down = true;
    for n in 0..20 {
        up(&mut pair, n..n + 1);
        pair.advance(SECOND / 10);
    }
    assert_eq!(pair.client.stats().unresponsive, 1);
}

#[test]
fn an_idle_path_is_pinged_and_its_silence_detected() {
    let limits = Limits::default();
    let mut pair = Pair::connected(limits.clone());
    pair.open(TWO);
    pair.advance(10 * limits.keepalive);
    assert_eq!(pair.client.stats().unresponsive, 0);
    let bytes = pair.client.path_stats(TWO).unwrap().tx_bytes;
    assert!((40..300).contains(&bytes), "ten pings and no more: {bytes}");
    assert_eq!(pair.client.path_stats(TWO).unwrap().srtt, Some(Duration::ZERO));
    assert_eq!(pair.server().paths().count(), 2, "an idle standby path lives");
    pair.wire(TWO).stalled_up = true;
    pair.advance(limits.keepalive + 5 * SECOND);
    assert!(matches!(pair.client_events.back(), Some(Event::PathUnresponsive { path: TWO, .. })));
    assert_eq!(closed(&pair.server_events, TWO), None, "the relay is more patient");
    pair.advance(4 * limits.keepalive);
    assert_eq!(closed(&pair.server_events, TWO), Some(CloseCode::Timeout));
    assert_eq!(pair.server().active_path(), Some(ONE));
}

#[test]
fn a_path_without_welcome_becomes_unresponsive() {
    let mut pair = Pair::new(Limits::default());
    pair.open(ONE);
    pair.wire(ONE).stalled_up = true;
    pair.advance(3 * SECOND);
    assert_eq!(pair.client.stats().unresponsive, 0);
    pair.advance(3 * SECOND);
    assert_eq!(pair.client.stats().unresponsive, 1);
}

#[test]
fn acknowledgements_are_sent_alone_only_when_needed() {
    let limits = Limits::default();
    let mut pair = Pair::connected(limits.clone());
    let before = pair.server().stats().acks_sent;
    up(&mut pair, 0..1);
    pair.settle();
    assert_eq!(pair.server().stats().acks_sent, before, "the acknowledgement waits for other data");
    down(&mut pair, 0..1);
    pair.settle();
    assert_eq!(pair.server().stats().acks_sent, before + 1, "the acknowledgement is sent with other data");
    assert_eq!(pair.client.unacked_bytes(), 0);
    up(&mut pair, 1..2);
    pair.advance(limits.ack_delay);
    assert_eq!(pair.client.unacked_bytes(), 0, "the acknowledgement is sent alone after the delay");
    assert_eq!(pair.send_up(&packet(2, limits.ack_bytes)), Enqueue::Queued);
    pair.settle();
    assert_eq!(pair.client.unacked_bytes(), 0, "the acknowledgement is sent after many bytes");
    let acks = pair.client.stats().acks_sent + pair.server().stats().acks_sent;
    pair.advance(10 * SECOND);
    let later = pair.client.stats().acks_sent + pair.server().stats().acks_sent;
    assert!(later <= acks + 1, "an acknowledgement is not acknowledged");
}

#[test]
fn a_changed_configuration_reaches_the_client_once_and_an_old_one_never() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    pair.settle();
    pair.client_events.clear();
    let changed = |mtu| PushConfig { mtu, ..config() };
    pair.wire(TWO).stalled_down = true;
    pair.server().set_config(changed(1300));
    pair.settle();
    pair.server().set_config(changed(1280));
    pair.settle();
    pair.wire(TWO).stalled_down = false;
    pair.settle();
    let configs: Vec<_> =
        pair.client_events.iter().filter(|event| matches!(event, Event::Config(_))).collect();
    assert_eq!(configs, [&Event::Config(changed(1300)), &Event::Config(changed(1280))]);
    assert_eq!(pair.client.config(), Some(&changed(1280)));
}

#[test]
fn an_announcement_is_confirmed_once_it_is_stored_and_again_on_every_new_path() {
    let announced = |key| Arc::new(Announcement { key: Some([key; 32]), endpoint: Some("new:443".into()) });
    let confirmed = |pair: &mut Pair| {
        let all = pair.server_events.drain(..).filter(|event| matches!(event, Event::Confirmed(_)));
        all.collect::<Vec<_>>()
    };
    let mut pair = Pair::connected(Limits::default());
    pair.client.confirm(announced(1));
    pair.settle();
    pair.server().set_config(PushConfig { relay: Some(announced(2)), ..config() });
    pair.settle();
    assert!(
        pair.client_events.contains(&Event::Config(PushConfig { relay: Some(announced(2)), ..config() }))
    );
    assert_eq!(confirmed(&mut pair), [], "nothing is stored yet");
    pair.client.confirm(announced(1));
    pair.settle();
    assert_eq!(confirmed(&mut pair), [], "an earlier announcement is stored");
    // The confirmation is lost with its path.
    pair.client.confirm(announced(2));
    pair.cut(ONE);
    pair.open(TWO);
    pair.settle();
    assert_eq!(confirmed(&mut pair), [Event::Confirmed(announced(2))]);
    // A restarted relay may have forgotten it.
    pair.config.relay = Some(announced(2));
    pair.restart_server();
    pair.cut(TWO);
    pair.open(ONE);
    pair.settle();
    assert_eq!(confirmed(&mut pair), [Event::Confirmed(announced(2))]);
}

#[test]
fn close_is_sent_and_received() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..2);
    pair.transmit(usize::MAX);
    let now = pair.now;
    pair.client.close_path(now, ONE, CloseCode::Shutdown);
    assert_eq!(pair.client.active_path(), None);
    assert!(pair.client.wants_transmit(ONE));
    pair.settle();
    assert_eq!(closed(&pair.server_events, ONE), Some(CloseCode::Shutdown));
    assert_eq!(numbers(&pair.at_server), all(0..2), "data sent before CLOSE is delivered");
    assert_eq!((pair.client.paths().count(), pair.server().paths().count()), (0, 0));
}

#[test]
fn a_closed_path_that_takes_no_more_bytes_is_forgotten() {
    let mut pair = Pair::connected(Limits::default());
    let now = pair.now;
    pair.client.close_path(now, ONE, CloseCode::Normal);
    let due = pair.client.poll_timeout().unwrap();
    pair.client.handle_timeout(due - SECOND);
    assert_eq!(pair.client.paths().count(), 1);
    pair.client.handle_timeout(due);
    assert_eq!((pair.client.paths().count(), pair.client.poll_timeout()), (0, None));
}

#[test]
fn a_reused_path_id_closes_the_old_path() {
    let mut pair = Pair::connected(Limits::default());
    let (now, hello) = (
        pair.now,
        mobile_proto::Hello {
            session: pair.client.id(),
            epoch: pair.client.epoch(),
            path: ONE,
            switch: 1,
            compression: false,
        },
    );
    pair.server().accept_path(now, &hello).unwrap();
    assert_eq!(pair.server().poll_event(), Some(Event::PathClosed { path: ONE, code: CloseCode::Replaced }));
    assert_eq!((pair.server().paths().count(), pair.server().active_path()), (1, None));
    let foreign = mobile_proto::Hello { session: SessionId([7; 16]), ..hello.clone() };
    assert!(pair.server().accept_path(now, &foreign).is_err());
    assert!(pair.client.accept_path(now, &hello).is_err());
}

#[test]
fn the_quietest_standby_path_makes_room_for_a_new_one() {
    let mut pair = Pair::connected(Limits { max_paths: 3, ..Limits::default() });
    pair.open(TWO);
    pair.advance(SECOND);
    pair.open(THREE);
    pair.advance(SECOND);
    pair.open(PathId(4));
    pair.settle();
    assert_eq!(closed(&pair.server_events, TWO), Some(CloseCode::Replaced));
    assert_eq!(pair.server().active_path(), Some(ONE));
}

#[test]
fn requeued_packets_go_first_and_are_bounded() {
    let mut pair = Pair::connected(Limits { queue_bytes: 4000, replay_bytes: 4000, ..Limits::default() });
    down(&mut pair, 50..52);
    let now = pair.now;
    let held: Vec<PacketBuf> = (0..40).map(|n| with_offload(&packet(n, 500)).into()).collect();
    pair.server().requeue(Unacknowledged::new(now, held));
    let dropped = pair.server().stats().dropped_queue_full;
    pair.advance(SECOND);
    let got = numbers(&pair.at_client);
    assert_eq!(got, all(0..got.len() as u32));
    assert_eq!(dropped + got.len() as u64, pair.server().stats().enqueued_packets);
    assert!((10..=16).contains(&got.len()), "{}", got.len());
}

#[test]
fn bytes_of_a_forgotten_path_are_ignored() {
    let mut pair = Pair::connected(Limits::default());
    let now = pair.now;
    let mut deliver = |_: InnerPacket<'_>| panic!("nothing to deliver");
    pair.client.handle_input(now, PathId(9), &[0, 1, 2], &mut deliver).unwrap();
    assert_eq!(pair.client.stats().stray_bytes, 3);
}

#[test]
fn records_are_numbered_from_what_the_relay_expects() {
    let now = std::time::Instant::now();
    let mut client = Session::client(SessionId([1; 16]), Limits::default());
    client.open_path(now, ONE);
    let mut out = Vec::new();
    client.poll_transmit(now, ONE, &mut out, Budget::new(1000));
    // WELCOME with epoch 1, expecting record 5, and only an MTU.
    let welcome = [0x11, 14, 0, 0, 0, 0, 0, 0, 0, 1, 5, 0, 3, 2, 5, 0xdc];
    client.handle_input(now, ONE, &welcome, &mut |_| {}).unwrap();
    client.activate(now, ONE, &[]);
    assert_eq!(client.enqueue(now, b"packet"), Enqueue::Queued);
    out.clear();
    client.poll_transmit(now, ONE, &mut out, Budget::new(1000));
    assert!(out.ends_with(b"\x02\x01\x05\x01\x06packet"), "{out:?}");
    client.handle_input(now, ONE, &[0x03, 1, 6], &mut |_| {}).unwrap();
    assert_eq!(client.unacked_bytes(), 0);
}

/// Returns a UDP datagram of a flow.
fn udp(flow: u8, length: usize) -> Vec<u8> {
    let mut packet = vec![0; length];
    (packet[0], packet[9]) = (0x45, 17);
    packet[2..4].copy_from_slice(&u16::try_from(length).expect("a short packet").to_be_bytes());
    packet[12..20].copy_from_slice(&[10, 77, 0, 2, 192, 0, 2, flow]);
    packet
}

/// Tests that a keystroke gets its own TLS record: in one with bulk data, the peer could decrypt
/// the keystroke only 4 ms later on 10 Mbit/s.
#[test]
fn on_a_slow_path_a_keystroke_is_not_written_together_with_bulk_data() {
    for (limit, together) in [(5_000, false), (64 * 1024, true)] {
        let mut pair = Pair::connected(Limits::default());
        for _ in 0..4 {
            assert_eq!(pair.send_up(&udp(1, 1500)), Enqueue::Queued);
        }
        // The bulk flow has had its first turn, which is a little more than one of its packets.
        pair.client.poll_transmit(pair.now, ONE, &mut Vec::new(), Budget::new(2000));
        assert_eq!(pair.send_up(&udp(2, 100)), Enqueue::Queued);
        let mut out = Vec::new();
        pair.client.poll_transmit(pair.now, ONE, &mut out, Budget::new(limit));
        assert_eq!(out.len() > 1500, together, "{limit}: {}", out.len());
        assert!(out.len() > 100);
        pair.client.poll_transmit(pair.now, ONE, &mut out, Budget::new(limit));
        assert!(out.len() > 3100, "{}", out.len());
    }
}

/// Tests that replayed records share a write, even if a flow's turn in the fair queue had just
/// ended when the old path was lost.
#[test]
fn a_replay_on_a_slow_path_is_not_written_one_by_one() {
    let mut pair = Pair::connected(Limits::default());
    for _ in 0..8 {
        assert_eq!(pair.send_up(&udp(1, 1500)), Enqueue::Queued);
    }
    pair.client.poll_transmit(pair.now, ONE, &mut Vec::new(), Budget::new(4000));
    assert_eq!(pair.send_up(&udp(2, 100)), Enqueue::Queued);
    pair.client.poll_transmit(pair.now, ONE, &mut Vec::new(), Budget::new(1));
    pair.cut(ONE);
    pair.open(TWO);
    pair.settle();
    pair.activate(TWO, &[]);
    let mut out = Vec::new();
    pair.client.poll_transmit(pair.now, TWO, &mut out, Budget::new(3000));
    assert!(out.len() > 3000, "{}", out.len());
}
