//! Tests of activation before WELCOME: one round trip earlier, and nothing lost whichever end is
//! restarted meanwhile.

mod common;

use std::time::Duration;

use common::{Direction, Pair, all, down, numbers, up};
use mobile_proto::{CloseCode, Event, Limits, PathId};

const ONE: PathId = PathId(1);
const TWO: PathId = PathId(2);
const THREE: PathId = PathId(3);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn data_is_sent_after_hello_and_answered_with_welcome() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..5);
    down(&mut pair, 0..5);
    pair.transmit(usize::MAX);
    pair.cut(ONE);
    pair.open(TWO);
    pair.activate(TWO, &[]);
    assert_eq!(
        pair.client_events.pop_front(),
        Some(Event::PathActivated { path: TWO, previous: None, replayed: 5, dropped: 0 })
    );
    up(&mut pair, 5..8);
    // After half a round trip everything has arrived, before the client has received anything.
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Up, usize::MAX);
    assert_eq!(numbers(&pair.at_server), all(0..8));
    assert_eq!(pair.server().active_path(), Some(TWO));
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Down, usize::MAX);
    assert_eq!(numbers(&pair.at_client), all(0..5));
    assert_eq!(pair.client_events.pop_front(), Some(Event::PathReady { path: TWO, resumed: true }));
    assert_eq!(pair.client_events.pop_front(), Some(Event::PathConfirmed { path: TWO }));
    pair.advance(SECOND);
    assert_eq!(pair.client_events.pop_front(), None, "the confirmation is reported once");
    assert_eq!(pair.client.stats().switches, 2, "WELCOME does not switch again");
    assert_eq!((pair.client.unacked_bytes(), pair.server().unacked_bytes()), (0, 0));
    assert_eq!(pair.server().stats().stale_frames, 0);
}

#[test]
fn a_welcome_that_crossed_the_activate_does_not_confirm_it() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Up, usize::MAX);
    // HELLO is answered before ACTIVATE is written.
    pair.transmit(usize::MAX);
    pair.activate(TWO, &[ONE]);
    pair.transmit(usize::MAX);
    pair.client_events.clear();
    pair.deliver(TWO, Direction::Down, usize::MAX);
    assert_eq!(pair.client_events.pop_front(), Some(Event::PathReady { path: TWO, resumed: true }));
    assert_eq!(pair.client_events.pop_front(), None, "the relay still sends on the other path");
    assert_eq!(pair.server().active_path(), Some(ONE));
    pair.settle();
    assert_eq!(pair.server().active_path(), Some(TWO));
    let confirmed = |event: &&Event| **event == Event::PathConfirmed { path: TWO };
    assert_eq!(pair.client_events.iter().filter(confirmed).count(), 1);
}

#[test]
fn a_path_that_fails_before_welcome_loses_nothing() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    pair.activate(TWO, &[ONE]);
    up(&mut pair, 0..5);
    pair.transmit(usize::MAX);
    assert!(pair.at_server.is_empty());
    pair.cut(TWO);
    assert_eq!(pair.client.active_path(), None);
    pair.activate(ONE, &[]);
    pair.settle();
    assert_eq!(numbers(&pair.at_server), all(0..5));
}

#[test]
fn a_restarted_relay_ignores_early_frames_and_gets_everything_again() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..5);
    down(&mut pair, 0..2);
    pair.advance(SECOND);
    up(&mut pair, 5..10);
    pair.transmit(usize::MAX);
    pair.restart_server();
    pair.open(TWO);
    pair.activate(TWO, &[]);
    up(&mut pair, 10..12);
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Up, usize::MAX);
    assert_eq!(numbers(&pair.at_server), all(0..5), "numbers of another epoch mean nothing");
    assert_eq!(pair.server().active_path(), None);
    // ACTIVATE, SEQ and seven DATA frames.
    assert_eq!((pair.server().stats().stale_frames, pair.server().stats().protocol_errors), (9, 0));
    pair.settle();
    assert!(pair.client_events.contains(&Event::PathReady { path: TWO, resumed: false }));
    let moved = |event: &&Event| matches!(event, Event::PathActivated { .. });
    assert_eq!(pair.client_events.iter().filter(moved).count(), 1, "the repeated activation is not reported");
    down(&mut pair, 2..4);
    pair.advance(SECOND);
    assert_eq!(numbers(&pair.at_server), all(0..12));
    assert_eq!(numbers(&pair.at_client), all(0..4));
    assert_eq!(pair.server().active_path(), Some(TWO));
    assert_eq!((pair.client.unacked_bytes(), pair.server().unacked_bytes()), (0, 0));
}

#[test]
fn another_path_may_bring_the_new_epoch_first() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..3);
    pair.advance(SECOND);
    pair.restart_server();
    pair.open(TWO);
    pair.activate(TWO, &[THREE]);
    pair.open(THREE);
    up(&mut pair, 3..6);
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Up, usize::MAX);
    pair.wire(TWO).stalled_down = true;
    pair.settle();
    assert!(pair.client_events.contains(&Event::PathReady { path: THREE, resumed: false }));
    assert_eq!(pair.client.active_path(), Some(TWO));
    assert_eq!(numbers(&pair.at_server), all(0..6), "path 2 already carries the new numbers");
    pair.wire(TWO).stalled_down = false;
    pair.advance(SECOND);
    assert!(pair.client_events.contains(&Event::PathReady { path: TWO, resumed: true }));
    assert_eq!(numbers(&pair.at_server), all(0..6));
    assert_eq!((pair.client.stats().renumbered, pair.client.unacked_bytes()), (1, 0));
    assert_eq!(pair.server().paths().count(), 2);
}

#[test]
fn a_path_left_before_its_welcome_restarts_its_numbers_in_the_new_epoch() {
    let mut pair = Pair::connected(Limits::default());
    up(&mut pair, 0..1);
    pair.advance(SECOND);
    pair.restart_server();
    pair.open(TWO);
    pair.activate(TWO, &[ONE, THREE]);
    pair.open(THREE);
    up(&mut pair, 1..2);
    pair.transmit(usize::MAX);
    // The path has carried record 1 early; in the new epoch, record 2 would follow without a SEQ.
    pair.wire(TWO).stalled_down = true;
    pair.activate(THREE, &[TWO]);
    up(&mut pair, 2..3);
    pair.settle();
    assert_eq!(numbers(&pair.at_server), all(0..3));
    pair.wire(TWO).stalled_down = false;
    pair.settle();
    pair.activate(TWO, &[]);
    up(&mut pair, 3..5);
    pair.advance(SECOND);
    assert_eq!(numbers(&pair.at_server), all(0..5));
    assert_eq!((pair.client.unacked_bytes(), pair.server().stats().protocol_errors), (0, 0));
}

#[test]
fn numbers_of_another_epoch_mean_nothing_even_without_activate() {
    let mut pair = Pair::connected(Limits::default());
    let now = pair.now;
    let epoch = pair.server().epoch() + 1;
    let hello =
        mobile_proto::Hello { session: pair.client.id(), epoch, path: TWO, switch: 9, compression: false };
    pair.server().accept_path(now, &hello).unwrap();
    let frames = [&[2, 1, 40][..], &[1, 1, 0], &[3, 1, 50]].concat();
    pair.server().handle_input(now, TWO, &frames, &mut |_| panic!("nothing to deliver")).unwrap();
    assert_eq!((pair.server().stats().stale_frames, pair.server().stats().lost), (3, 0));
    up(&mut pair, 0..2);
    pair.settle();
    assert_eq!(numbers(&pair.at_server), all(0..2));
}

#[test]
fn without_a_known_epoch_the_activation_waits_for_welcome() {
    let mut pair = Pair::new(Limits::default());
    up(&mut pair, 0..3);
    pair.open(ONE);
    pair.open(TWO);
    pair.activate(ONE, &[]);
    pair.activate(TWO, &[ONE]);
    pair.transmit(usize::MAX);
    assert_eq!(pair.client.active_path(), None);
    pair.deliver(TWO, Direction::Up, usize::MAX);
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Down, usize::MAX);
    let events: Vec<_> = pair.client_events.iter().skip(1).cloned().collect();
    let ready = Event::PathReady { path: TWO, resumed: false };
    assert_eq!(events, [ready, Event::PathActivated { path: TWO, previous: None, replayed: 0, dropped: 0 }]);
    pair.settle();
    assert_eq!(pair.client_events.back(), Some(&Event::PathConfirmed { path: TWO }));
    assert_eq!(pair.client.active_path(), Some(TWO), "the last activation counts");
    assert_eq!(pair.server().paths().count(), 2, "the paths in its list are kept");
    assert_eq!(numbers(&pair.at_server), all(0..3));
}

#[test]
fn a_waiting_activation_follows_as_soon_as_any_path_brings_the_epoch() {
    let mut pair = Pair::new(Limits::default());
    up(&mut pair, 0..3);
    pair.open(ONE);
    pair.open(TWO);
    pair.activate(TWO, &[ONE]);
    pair.wire(TWO).stalled_down = true;
    pair.settle();
    assert_eq!((pair.client.active_path(), numbers(&pair.at_server)), (Some(TWO), all(0..3)));
    pair.wire(TWO).stalled_down = false;
    pair.advance(SECOND);
    assert_eq!(pair.client.unacked_bytes(), 0);
    assert_eq!(pair.client.stats().switches, 1);
}

#[test]
fn a_path_opened_while_an_activation_waits_for_welcome_is_kept() {
    let mut pair = Pair::new(Limits::default());
    pair.open(ONE);
    pair.activate(ONE, &[]);
    pair.transmit(usize::MAX);
    pair.deliver(ONE, Direction::Up, usize::MAX);
    // The relay has the HELLO of path 2 before the ACTIVATE of path 1 is written.
    pair.open(TWO);
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Up, usize::MAX);
    pair.settle();
    assert_eq!(pair.server().active_path(), Some(ONE));
    assert_eq!(pair.server().paths().count(), 2);
    assert!(pair.client_events.contains(&Event::PathReady { path: TWO, resumed: true }));
    assert!(!pair.client_events.iter().any(|event| matches!(event, Event::PathClosed { .. })));
    // The next activation frees other paths again.
    pair.activate(ONE, &[]);
    pair.settle();
    assert_eq!(pair.server().paths().collect::<Vec<_>>(), [ONE]);
}

#[test]
fn a_path_opened_while_an_early_activation_is_to_be_repeated_is_kept() {
    let mut pair = Pair::connected(Limits::default());
    pair.restart_server();
    pair.open(TWO);
    pair.activate(TWO, &[]);
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Up, usize::MAX);
    pair.transmit(usize::MAX);
    // Its HELLO still names the former epoch, as the first ACTIVATE did.
    pair.open(THREE);
    pair.transmit(usize::MAX);
    pair.deliver(THREE, Direction::Up, usize::MAX);
    pair.deliver(TWO, Direction::Down, usize::MAX);
    pair.settle();
    assert_eq!(pair.server().active_path(), Some(TWO));
    assert!(pair.server().paths().any(|path| path == THREE));
    assert!(pair.client_events.contains(&Event::PathReady { path: THREE, resumed: true }));
}

#[test]
fn a_path_that_does_not_exist_or_closes_cannot_be_activated() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    let now = pair.now;
    pair.client.close_path(now, TWO, CloseCode::Normal);
    pair.activate(TWO, &[]);
    pair.activate(PathId(77), &[]);
    assert_eq!(pair.client.active_path(), Some(ONE));
    pair.settle();
    assert!(pair.server().path_stats(ONE).is_some());
}
