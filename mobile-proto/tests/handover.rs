//! Handovers, outages and restarts, case by case.

mod common;

use std::time::Duration;

use common::{Pair, Way, closed, config, number, numbers, packet, with_offload};
use mobile_proto::{
    CloseCode, DropReason, Enqueue, Event, Limits, MAX_PACKET, Packet, PacketBuf, PathId, PushConfig,
};

const ONE: PathId = PathId(1);
const TWO: PathId = PathId(2);
const THREE: PathId = PathId(3);
const SECOND: Duration = Duration::from_secs(1);

fn up(pair: &mut Pair, range: std::ops::Range<u32>) {
    range.for_each(|n| assert_eq!(pair.send_up(&packet(n, 100)), Enqueue::Queued));
}

fn down(pair: &mut Pair, range: std::ops::Range<u32>) {
    range.for_each(|n| assert_eq!(pair.send_down(&packet(n, 100)), Enqueue::Queued));
}

fn all(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn the_first_path_brings_the_configuration_and_carries_packets() {
    let mut pair = Pair::new(Limits::default());
    up(&mut pair, 0..3);
    pair.open(ONE);
    pair.settle();
    assert_eq!(pair.client_events.pop_front(), Some(Event::Config(config())));
    assert_eq!(pair.client_events.pop_front(), Some(Event::PathReady { path: ONE, resumed: false }));
    assert!(pair.at_server.is_empty(), "nothing flows before the path is active");
    pair.activate(ONE, &[]);
    pair.settle();
    let activated = Event::Activated { path: ONE, previous: None, replayed: 0 };
    assert_eq!(pair.client_events.pop_front(), Some(activated.clone()));
    assert_eq!(pair.server_events.pop_front(), Some(activated));
    down(&mut pair, 0..2);
    pair.settle();
    assert_eq!((numbers(&pair.at_server), numbers(&pair.at_client)), (all(0..3), all(0..2)));
    assert_eq!(pair.client.epoch(), pair.server().epoch());
    assert_eq!(pair.client.stats().duplicates, 0);
}

#[test]
fn packets_of_every_length_pass_whole() {
    let mut pair = Pair::connected(Limits::default());
    for size in [4, 63, 64, 1500, 16_383, 16_384, 65_535, MAX_PACKET] {
        assert_eq!(pair.send_up(&packet(size as u32, size)), Enqueue::Queued);
    }
    assert_eq!(pair.send_up(&[]), Enqueue::Dropped(DropReason::BadLength));
    assert_eq!(pair.send_up(&vec![0; MAX_PACKET + 1]), Enqueue::Dropped(DropReason::BadLength));
    pair.transmit(usize::MAX);
    // In pieces that never meet the frames' ends.
    while pair.deliver(ONE, Way::Up, 997) > 0 {}
    let lengths: Vec<_> = pair.at_server.iter().map(Vec::len).collect();
    assert_eq!(lengths, [4, 63, 64, 1500, 16_383, 16_384, 65_535, MAX_PACKET]);
    pair.at_server.iter().for_each(|packet| assert_eq!(number(packet) as usize, packet.len()));
    assert_eq!(pair.client.stats().dropped_bad_length, 2);
}

#[test]
fn what_a_dead_path_swallowed_is_sent_again_both_ways() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..10);
    down(&mut pair, 0..10);
    pair.transmit(usize::MAX);
    pair.deliver(ONE, Way::Up, 450);
    pair.cut(ONE);
    up(&mut pair, 10..12);
    down(&mut pair, 10..12);
    pair.open(TWO);
    pair.settle();
    assert_eq!(pair.client_events.pop_front(), Some(Event::PathReady { path: TWO, resumed: true }));
    // WELCOME said what had arrived: only the rest is sent again.
    pair.activate(TWO, &[]);
    assert_eq!(
        pair.client_events.pop_front(),
        Some(Event::Activated { path: TWO, previous: None, replayed: 6 })
    );
    pair.settle();
    assert_eq!(numbers(&pair.at_server), all(0..12));
    assert_eq!(numbers(&pair.at_client), all(0..12));
    pair.advance(SECOND);
    assert_eq!((pair.client.unacked_bytes(), pair.server().unacked_bytes()), (0, 0));
    assert_eq!(pair.client.stats().replayed_packets, 6);
    assert_eq!(pair.server().stats().replayed_packets, 10);
}

#[test]
fn make_before_break_with_the_old_paths_bytes_arriving_last() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    pair.settle();
    up(&mut pair, 0..20);
    down(&mut pair, 0..20);
    pair.transmit(usize::MAX);
    pair.wire(ONE).stalled_up = true;
    pair.wire(ONE).stalled_down = true;
    pair.activate(TWO, &[ONE]);
    up(&mut pair, 20..25);
    pair.settle();
    down(&mut pair, 20..25);
    pair.settle();
    assert_eq!(numbers(&pair.at_server), all(0..25));
    assert_eq!(numbers(&pair.at_client), all(0..25));
    // Now the old path wakes up: all of it is known by number.
    pair.wire(ONE).stalled_up = false;
    pair.wire(ONE).stalled_down = false;
    pair.settle();
    assert_eq!((pair.at_server.len(), pair.at_client.len()), (25, 25));
    assert_eq!(pair.server().stats().duplicates, 20);
    assert_eq!(pair.client.stats().duplicates, 20);
    assert_eq!(pair.client.path_stats(ONE).unwrap().duplicates, 20);
}

#[test]
fn the_relay_frees_the_paths_that_are_not_kept() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    pair.open(THREE);
    pair.settle();
    pair.activate(TWO, &[THREE]);
    pair.settle();
    assert_eq!(closed(&pair.server_events, ONE), Some(CloseCode::Replaced));
    let mut open: Vec<_> = pair.server().paths().collect();
    open.sort_unstable();
    assert_eq!(open, [TWO, THREE]);
    assert!(!pair.wires.contains_key(&ONE), "the client has learnt it too");
}

#[test]
fn a_path_opened_after_an_activate_is_not_freed_by_it() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    pair.settle();
    pair.wire(TWO).stalled_up = true;
    pair.activate(TWO, &[]);
    pair.open(THREE);
    pair.settle();
    pair.wire(TWO).stalled_up = false;
    pair.settle();
    assert!(pair.server().path_stats(THREE).is_some());
    assert!(pair.server().path_stats(ONE).is_none());
}

#[test]
fn a_late_activate_changes_nothing() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    pair.settle();
    pair.wire(TWO).stalled_up = true;
    pair.activate(TWO, &[ONE]);
    pair.transmit(usize::MAX);
    pair.activate(ONE, &[TWO]);
    pair.settle();
    pair.wire(TWO).stalled_up = false;
    pair.settle();
    assert_eq!(pair.server().active_path(), Some(ONE));
    assert_eq!(pair.server().stats().stale_activates, 1);
    up(&mut pair, 0..5);
    down(&mut pair, 0..5);
    pair.settle();
    assert_eq!((pair.at_server.len(), pair.at_client.len()), (5, 5));
}

#[test]
fn an_activate_of_the_active_path_only_updates_the_list() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    pair.settle();
    up(&mut pair, 0..5);
    pair.transmit(usize::MAX);
    pair.activate(ONE, &[]);
    pair.settle();
    assert_eq!(closed(&pair.server_events, TWO), Some(CloseCode::Replaced));
    assert_eq!((pair.client.stats().switches, pair.client.stats().replayed_packets), (1, 0));
    assert_eq!(numbers(&pair.at_server), all(0..5));
}

#[test]
fn a_path_that_is_not_ready_cannot_be_activated() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    pair.activate(TWO, &[]);
    pair.activate(PathId(77), &[]);
    assert_eq!(pair.client.active_path(), Some(ONE));
    pair.settle();
    assert!(pair.server().path_stats(ONE).is_some());
}

#[test]
fn a_restarted_relay_gets_the_unacknowledged_again_first_and_in_order() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..5);
    pair.settle();
    pair.advance(SECOND);
    up(&mut pair, 5..10);
    pair.transmit(usize::MAX);
    pair.restart_server();
    pair.settle();
    up(&mut pair, 10..12);
    pair.open(TWO);
    pair.settle();
    assert!(pair.client_events.contains(&Event::PathReady { path: TWO, resumed: false }));
    pair.activate(TWO, &[]);
    pair.settle();
    down(&mut pair, 0..4);
    pair.advance(SECOND);
    assert_eq!(numbers(&pair.at_server), all(0..12));
    assert_eq!(numbers(&pair.at_client), all(0..4));
    assert_eq!(pair.client.stats().renumbered, 1);
    assert_eq!((pair.client.unacked_bytes(), pair.client.stats().lost), (0, 0));
}

#[test]
fn paths_of_a_former_epoch_are_closed_and_answers_out_of_order_do_no_harm() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..5);
    pair.advance(SECOND);
    // Path 2's WELCOME of the old relay waits on the wire while path 3 meets the new relay.
    pair.open(TWO);
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Way::Up, usize::MAX);
    pair.transmit(usize::MAX);
    pair.wire(TWO).stalled_down = true;
    pair.wire(ONE).stalled_down = true;
    pair.restart_server();
    pair.open(THREE);
    pair.settle();
    assert_eq!(closed(&pair.client_events, ONE), Some(CloseCode::SessionGone));
    let epoch = pair.server().epoch();
    assert_eq!(pair.client.epoch(), epoch);
    pair.activate(THREE, &[TWO]);
    up(&mut pair, 5..10);
    pair.settle();
    pair.wire(TWO).stalled_down = false;
    pair.settle();
    assert_eq!(closed(&pair.client_events, TWO), Some(CloseCode::SessionGone));
    assert_eq!((pair.client.epoch(), pair.client.active_path()), (epoch, Some(THREE)));
    assert_eq!(numbers(&pair.at_server)[5..], all(5..10));
}

#[test]
fn a_restarted_client_gets_what_the_relay_still_held() {
    let mut pair = Pair::connected(Limits::default());
    down(&mut pair, 0..6);
    pair.transmit(usize::MAX);
    pair.deliver(ONE, Way::Down, 330);
    pair.restart_client();
    down(&mut pair, 6..8);
    pair.open(TWO);
    pair.settle();
    pair.activate(TWO, &[]);
    pair.settle();
    up(&mut pair, 0..2);
    pair.settle();
    // The new agent cannot know what the old one delivered: from the first unacknowledged on.
    assert_eq!(numbers(&pair.at_client), [all(0..3), all(0..8)].concat());
    assert_eq!(numbers(&pair.at_server), all(0..2));
}

#[test]
fn two_first_paths_at_once_make_one_session() {
    let mut pair = Pair::new(Limits::default());
    pair.open(ONE);
    pair.open(TWO);
    pair.settle();
    pair.activate(ONE, &[TWO]);
    up(&mut pair, 0..3);
    pair.settle();
    pair.activate(TWO, &[ONE]);
    up(&mut pair, 3..6);
    pair.settle();
    assert_eq!(numbers(&pair.at_server), all(0..6));
    assert_eq!(pair.client.stats().renumbered, 0);
}

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
    assert!(!pair.client.wants_transmit(ONE), "it waits for an acknowledgement");
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
fn nothing_ages_while_a_path_is_active() {
    let mut pair = Pair::connected(Limits { max_age: SECOND, replay_bytes: 1000, ..Limits::default() });
    pair.wire(ONE).stalled_up = true;
    up(&mut pair, 0..10);
    pair.advance(30 * SECOND);
    pair.wire(ONE).stalled_up = false;
    pair.advance(SECOND);
    assert_eq!(numbers(&pair.at_server), all(0..10));
}

#[test]
fn a_silent_path_is_suspected_once_and_a_slow_one_never() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..1);
    pair.wire(ONE).stalled_down = true;
    pair.advance(5 * SECOND);
    let suspects: Vec<_> =
        pair.client_events.iter().filter(|event| matches!(event, Event::PathSuspect { .. })).collect();
    assert!(
        matches!(suspects[..], [Event::PathSuspect { path: ONE, silent_for }] if *silent_for >= SECOND),
        "{suspects:?}"
    );
    assert!(pair.client.path_stats(ONE).unwrap().suspect);
    pair.wire(ONE).stalled_down = false;
    pair.advance(SECOND);
    assert!(!pair.client.path_stats(ONE).unwrap().suspect);

    // One long record at 100 bytes a step: the relay says that bytes arrive.
    let mut pair = Pair::connected(Limits::default());
    assert_eq!(pair.send_up(&packet(0, 6000)), Enqueue::Queued);
    pair.wire(ONE).stalled_up = true;
    for _ in 0..61 {
        pair.advance(Duration::from_millis(500));
        pair.deliver(ONE, Way::Up, 100);
    }
    pair.advance(SECOND);
    assert_eq!(pair.at_server.len(), 1);
    assert_eq!(pair.client.stats().suspects, 0);
}

#[test]
fn an_idle_path_is_pinged_and_its_silence_noticed() {
    let limits = Limits::default();
    let mut pair = Pair::connected(limits.clone());
    pair.open(TWO);
    pair.advance(10 * limits.keepalive);
    assert_eq!(pair.client.stats().suspects, 0);
    let bytes = pair.client.path_stats(TWO).unwrap().tx_bytes;
    assert!((40..300).contains(&bytes), "ten pings and no more: {bytes}");
    assert_eq!(pair.client.path_stats(TWO).unwrap().srtt, Some(Duration::ZERO));
    assert_eq!(pair.server().paths().count(), 2, "an idle standby path lives");
    pair.wire(TWO).stalled_up = true;
    pair.advance(limits.keepalive + 5 * SECOND);
    assert!(matches!(pair.client_events.back(), Some(Event::PathSuspect { path: TWO, .. })));
    assert_eq!(closed(&pair.server_events, TWO), None, "the relay is more patient");
    pair.advance(4 * limits.keepalive);
    assert_eq!(closed(&pair.server_events, TWO), Some(CloseCode::Timeout));
    assert_eq!(pair.server().active_path(), Some(ONE));
}

#[test]
fn a_path_without_welcome_is_suspected() {
    let mut pair = Pair::new(Limits::default());
    pair.open(ONE);
    pair.wire(ONE).stalled_up = true;
    pair.advance(3 * SECOND);
    assert_eq!(pair.client.stats().suspects, 0);
    pair.advance(3 * SECOND);
    assert_eq!(pair.client.stats().suspects, 1);
}

#[test]
fn acknowledgements_ride_along_and_go_alone_only_when_they_must() {
    let limits = Limits::default();
    let mut pair = Pair::connected(limits.clone());
    let before = pair.server().stats().acks_sent;
    up(&mut pair, 0..1);
    pair.settle();
    assert_eq!(pair.server().stats().acks_sent, before, "it waits for company");
    down(&mut pair, 0..1);
    pair.settle();
    assert_eq!(pair.server().stats().acks_sent, before + 1, "and has found it");
    assert_eq!(pair.client.unacked_bytes(), 0);
    up(&mut pair, 1..2);
    pair.advance(limits.ack_delay);
    assert_eq!(pair.client.unacked_bytes(), 0, "or goes alone after the delay");
    assert_eq!(pair.send_up(&packet(2, limits.ack_bytes)), Enqueue::Queued);
    pair.settle();
    assert_eq!(pair.client.unacked_bytes(), 0, "or after many bytes");
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
fn close_is_said_and_heard() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..2);
    pair.transmit(usize::MAX);
    let now = pair.now;
    pair.client.close_path(now, ONE, CloseCode::Shutdown);
    assert_eq!(pair.client.active_path(), None);
    assert!(pair.client.wants_transmit(ONE));
    pair.settle();
    assert_eq!(closed(&pair.server_events, ONE), Some(CloseCode::Shutdown));
    assert_eq!(numbers(&pair.at_server), all(0..2), "what was sent before is delivered");
    assert_eq!((pair.client.paths().count(), pair.server().paths().count()), (0, 0));
}

#[test]
fn a_path_name_used_again_closes_the_old_path() {
    let mut pair = Pair::connected(Limits::default());
    let (now, hello) = (
        pair.now,
        mobile_proto::Hello { session: pair.client.id(), epoch: pair.client.epoch(), path: ONE, switch: 1 },
    );
    pair.server().accept_path(now, &hello).unwrap();
    assert_eq!(pair.server().poll_event(), Some(Event::PathClosed { path: ONE, code: CloseCode::Replaced }));
    assert_eq!((pair.server().paths().count(), pair.server().active_path()), (1, None));
    let foreign = mobile_proto::Hello { session: mobile_proto::SessionId([7; 16]), ..hello.clone() };
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
    pair.server().requeue(now, held);
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
    let mut deliver = |_: Packet<'_>| panic!("nothing to deliver");
    pair.client.handle_input(now, PathId(9), &[0, 1, 2], &mut deliver).unwrap();
    assert_eq!(pair.client.stats().stray_bytes, 3);
}
