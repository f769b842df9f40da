//! Tests of handovers, outages and restarts.

mod common;

use std::time::Duration;

use common::{Direction, Pair, all, closed, config, down, number, numbers, packet, up, with_offload};
use mobile_proto::{CloseCode, DropReason, Enqueue, Event, Limits, MAX_PACKET, PacketHeaders, PathId};

const ONE: PathId = PathId(1);
const TWO: PathId = PathId(2);
const THREE: PathId = PathId(3);
const SECOND: Duration = Duration::from_secs(1);

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
    let activated = Event::PathActivated { path: ONE, previous: None, replayed: 0, dropped: 0 };
    assert_eq!(pair.client_events.pop_front(), Some(activated.clone()));
    assert_eq!(pair.server_events.pop_front(), Some(activated));
    assert_eq!(pair.client_events.pop_front(), Some(Event::PathConfirmed { path: ONE }));
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
    // In pieces that never end with a frame.
    while pair.deliver(ONE, Direction::Up, 997) > 0 {}
    let lengths: Vec<_> = pair.at_server.iter().map(Vec::len).collect();
    assert_eq!(lengths, [4, 63, 64, 1500, 16_383, 16_384, 65_535, MAX_PACKET]);
    pair.at_server.iter().for_each(|packet| assert_eq!(number(packet) as usize, packet.len()));
    assert_eq!(pair.client.stats().dropped_bad_length, 2);
}

#[test]
fn adopted_packets_are_unchanged_when_they_are_replayed() {
    let mut pair = Pair::connected(Limits::default());
    let mut buffer = vec![0; MAX_PACKET];
    let lengths = [60_000, 4, MAX_PACKET, 1500, 40_000, 65_535];
    for (number, length) in (0..).zip(lengths) {
        let sent = packet(number, length);
        buffer[..length].copy_from_slice(&sent);
        let headers = PacketHeaders::locate(with_offload(&sent));
        let taken = pair.client.enqueue_in_place(pair.now, &mut buffer, headers);
        assert_eq!((taken, buffer.len()), (Enqueue::Queued, MAX_PACKET));
        // The next packet overwrites whatever is in the buffer.
        buffer.fill(0xee);
    }
    for length in [0, MAX_PACKET + 1] {
        let headers = PacketHeaders::locate(&vec![0; length]);
        let taken = pair.client.enqueue_in_place(pair.now, &mut buffer, headers);
        assert_eq!(taken, Enqueue::Dropped(DropReason::BadLength));
    }
    pair.transmit(usize::MAX);
    pair.cut(ONE);
    pair.open(TWO);
    pair.settle();
    pair.activate(TWO, &[]);
    pair.settle();
    let sent: Vec<_> = (0..).zip(lengths).map(|(number, length)| packet(number, length)).collect();
    assert!(pair.at_server == sent);
}

#[test]
fn records_lost_on_a_dead_path_are_replayed_in_both_directions() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..10);
    down(&mut pair, 0..10);
    pair.transmit(usize::MAX);
    pair.deliver(ONE, Direction::Up, 450);
    pair.cut(ONE);
    up(&mut pair, 10..12);
    down(&mut pair, 10..12);
    pair.open(TWO);
    pair.settle();
    assert_eq!(pair.client_events.pop_front(), Some(Event::PathReady { path: TWO, resumed: true }));
    // WELCOME acknowledged what had arrived: only the rest is sent again.
    pair.activate(TWO, &[]);
    assert!(!pair.client_events.contains(&Event::PathConfirmed { path: TWO }));
    assert_eq!(
        pair.client_events.pop_front(),
        Some(Event::PathActivated { path: TWO, previous: None, replayed: 6, dropped: 0 })
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
fn a_planned_handover_survives_late_bytes_of_the_old_path() {
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
    // The old path delivers again: all of its records are known by number.
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
    assert!(!pair.wires.contains_key(&ONE), "the client has learnt of it, too");
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
fn an_activate_acknowledges_and_is_answered_at_once() {
    let mut pair = Pair::connected(Limits::default());
    assert_eq!(pair.server().stats().acks_sent, 1);
    pair.open(TWO);
    pair.settle();
    down(&mut pair, 0..5);
    pair.settle();
    assert_eq!(pair.server().unacked_bytes(), 500);
    let acks = pair.client.stats().acks_sent;
    pair.activate(TWO, &[]);
    pair.settle();
    assert_eq!((pair.server().unacked_bytes(), pair.client.stats().acks_sent), (0, acks));
    assert_eq!(pair.server().stats().replayed_packets, 0);
}

#[test]
fn a_restarted_relay_gets_unacknowledged_records_first_and_in_order() {
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
fn paths_of_a_former_epoch_are_closed_and_late_answers_are_ignored() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..5);
    pair.advance(SECOND);
    // Path 2's WELCOME of the old relay is in flight while path 3 reaches the new relay.
    pair.open(TWO);
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Up, usize::MAX);
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
    pair.deliver(ONE, Direction::Down, 330);
    pair.restart_client();
    down(&mut pair, 6..8);
    pair.open(TWO);
    pair.settle();
    pair.activate(TWO, &[]);
    pair.settle();
    up(&mut pair, 0..2);
    pair.settle();
    // The new agent cannot know what the old one delivered: the relay starts with the first
    // unacknowledged record.
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
