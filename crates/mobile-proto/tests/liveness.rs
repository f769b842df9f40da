//! Tests of probing, unresponsiveness, recovery and the relay's DOUBT, as the events show them.

mod common;

use std::time::Duration;

use common::kernel::RTT;
use common::{Pair, down, up};
use mobile_proto::{Event, Limits, PathId};

const ONE: PathId = PathId(1);
const TWO: PathId = PathId(2);
const SECOND: Duration = Duration::from_secs(1);

/// Returns a pair in which path 1 is active, path 2 stands by, and both sessions get transport
/// samples (TCP statistics).
fn pair() -> Pair {
    let mut pair = Pair::connected(Limits::default());
    pair.samples = true;
    pair.open(TWO);
    // The paths have been used and are idle.
    up(&mut pair, 0..1);
    pair.advance(2 * SECOND);
    pair.client_events.clear();
    pair.server_events.clear();
    pair
}

fn client_events(pair: &Pair) -> Vec<&Event> {
    pair.client_events.iter().collect()
}

fn is_unresponsive(event: &Event, of: PathId) -> bool {
    matches!(event, Event::PathUnresponsive { path, .. } if *path == of)
}

#[test]
fn a_dead_path_is_probed_then_unresponsive_and_recovers() {
    let mut pair = pair();
    pair.wire(ONE).stalled_up = true;
    up(&mut pair, 1..2);
    let cut = pair.now;
    pair.advance(RTT + Duration::from_millis(30));
    assert_eq!(client_events(&pair), [&Event::PathProbing { path: ONE }]);
    assert!(!pair.client.path_stats(ONE).unwrap().unresponsive);
    pair.advance(Duration::from_millis(100));
    let events = client_events(&pair);
    let [_, Event::PathUnresponsive { path: ONE, silent_for }] = events[..] else { panic!("{events:?}") };
    assert!(*silent_for < Duration::from_millis(150) && *silent_for <= pair.now - cut);
    assert!(pair.client.path_stats(ONE).unwrap().unresponsive);
    pair.advance(10 * SECOND);
    assert_eq!(pair.client_events.len(), 2, "each change is reported once");
    pair.wire(ONE).stalled_up = false;
    pair.advance(2 * SECOND);
    assert_eq!(pair.client_events.back(), Some(&Event::PathRecovered { path: ONE }));
    assert_eq!(pair.client_events.len(), 3);
    assert!(!pair.client.path_stats(ONE).unwrap().unresponsive);
    // The same again is reported another time.
    pair.wire(ONE).stalled_down = true;
    up(&mut pair, 2..3);
    pair.advance(SECOND);
    assert!(is_unresponsive(pair.client_events.back().unwrap(), ONE));
    let stats = pair.client.stats();
    assert_eq!((stats.liveness_probes, stats.unresponsive), (2, 2));
}

#[test]
fn probing_a_path_pings_the_other_paths() {
    let mut pair = pair();
    pair.open(PathId(3));
    pair.advance(2 * SECOND);
    pair.client_events.clear();
    pair.wire(ONE).stalled_up = true;
    pair.wire(TWO).stalled_down = true;
    up(&mut pair, 1..2);
    pair.advance(SECOND / 2);
    for (path, dead) in [(ONE, true), (TWO, true), (PathId(3), false)] {
        assert_eq!(pair.client_events.iter().any(|event| is_unresponsive(event, path)), dead, "{path}");
    }
}

/// Tests a path that was left during an upload, with full buffers, and has died since: the session
/// can write nothing to it.
#[test]
fn a_path_that_cannot_be_written_to_is_judged_by_its_queued_data() {
    // With little in flight, only the kernel's retransmissions over a longer time show it.
    for (writes, millis) in [(60, 300), (30, 3500)] {
        let mut pair = pair();
        pair.activate(TWO, &[ONE]);
        up(&mut pair, 1..2);
        pair.advance(SECOND / 10);
        pair.wire(TWO).stalled_up = true;
        for n in 2..writes {
            up(&mut pair, n..n + 1);
            pair.transmit(usize::MAX);
        }
        pair.wire(TWO).full = true;
        pair.activate(ONE, &[TWO]);
        pair.advance(2 * SECOND);
        assert_eq!(common::numbers(&pair.at_server), common::all(0..writes));
        pair.client_events.clear();
        pair.cut(ONE);
        pair.activate(TWO, &[]);
        pair.advance(Duration::from_millis(millis));
        assert!(
            pair.client_events.iter().any(|event| is_unresponsive(event, TWO)),
            "{:?}",
            pair.client_events
        );
    }
}

/// Tests that a dead standby path, whose transport takes no bytes, is detected by its next
/// keepalive.
#[test]
fn a_dead_standby_path_that_cannot_be_written_to_is_detected_by_its_keepalive() {
    let mut pair = pair();
    pair.wire(TWO).full = true;
    pair.wire(TWO).stalled_up = true;
    pair.samples = false;
    pair.advance(40 * SECOND);
    pair.client_events.clear();
    pair.advance(10 * SECOND);
    assert_eq!(client_events(&pair).iter().filter(|event| is_unresponsive(event, TWO)).count(), 1);
}

#[test]
fn a_relay_that_gets_nothing_through_sends_doubt_on_another_path() {
    let mut pair = pair();
    // The client sends nothing, so that none of its data is unanswered.
    pair.wire(ONE).stalled_up = true;
    pair.wire(ONE).stalled_down = true;
    down(&mut pair, 0..1);
    pair.advance(Duration::from_millis(60));
    assert_eq!(pair.server_events.pop_front(), Some(Event::PathProbing { path: ONE }));
    assert_eq!(
        client_events(&pair),
        [&Event::PathProbing { path: ONE }],
        "the client probes the path itself"
    );
    pair.advance(Duration::from_millis(150));
    assert!(is_unresponsive(pair.client_events.back().unwrap(), ONE));
    // The relay needs longer, and its verdict changes nothing.
    pair.advance(4 * SECOND);
    assert!(is_unresponsive(pair.server_events.back().unwrap(), ONE));
    pair.activate(TWO, &[]);
    pair.settle();
    assert_eq!(common::numbers(&pair.at_client), [0]);
}

/// Tests that DOUBT makes the client send a PING on the other paths, too: a path that delivers
/// DOUBT may be dead upwards, and nothing is known of the others.
#[test]
fn a_received_doubt_pings_the_other_paths() {
    let mut pair = pair();
    pair.open(PathId(3));
    pair.advance(2 * SECOND);
    pair.client_events.clear();
    pair.wire(ONE).stalled_up = true;
    pair.wire(ONE).stalled_down = true;
    pair.wire(TWO).stalled_up = true;
    pair.wire(PathId(3)).stalled_up = true;
    down(&mut pair, 0..1);
    pair.advance(SECOND);
    for path in [ONE, TWO, PathId(3)] {
        assert!(pair.client_events.iter().any(|event| is_unresponsive(event, path)), "{path}");
    }
}

#[test]
fn false_doubts_of_a_relay_cause_a_few_pings_and_nothing_else() {
    let mut pair = pair();
    let before = pair.client.path_stats(ONE).unwrap().tx_bytes;
    let start = pair.now;
    while pair.now < start + SECOND {
        let now = pair.now;
        pair.client.handle_input(now, TWO, &[0x15, 0], &mut |_| {}).unwrap();
        pair.advance(Duration::from_millis(1));
    }
    let bytes = pair.client.path_stats(ONE).unwrap().tx_bytes - before;
    assert!(bytes <= 5 * 10 * 10, "ten pings of ten bytes, four times a second and once: {bytes}");
    let probes = pair.client_events.iter().filter(|event| matches!(event, Event::PathProbing { .. })).count();
    assert!((1..=5).contains(&probes), "{probes}");
    assert_eq!((pair.client.stats().unresponsive, pair.client.active_path()), (0, Some(ONE)));
    let now = pair.now;
    assert!(pair.client.handle_input(now, TWO, &[0x15, 1, 0], &mut |_| {}).is_err(), "DOUBT has no payload");
    assert!(
        pair.server().handle_input(now, TWO, &[0x15, 0], &mut |_| {}).is_err(),
        "only a relay sends DOUBT"
    );
}

#[test]
fn without_samples_a_doubt_reveals_the_silence() {
    let mut pair = Pair::connected(Limits::default());
    pair.open(TWO);
    up(&mut pair, 0..1);
    pair.advance(2 * SECOND);
    pair.wire(ONE).stalled_up = true;
    pair.wire(ONE).stalled_down = true;
    down(&mut pair, 0..1);
    pair.advance(3 * SECOND);
    assert!(pair.server_events.iter().any(|event| is_unresponsive(event, ONE)));
    assert!(pair.client_events.iter().any(|event| is_unresponsive(event, ONE)));
    // After that both ends are silent: an exchange that keeps both ends waiting would never end.
    let sent = |pair: &Pair, path| pair.client.path_stats(path).unwrap().tx_bytes;
    let before = sent(&pair, ONE);
    pair.wire(ONE).stalled_up = false;
    pair.advance(30 * SECOND);
    assert!(sent(&pair, ONE) - before <= 40, "{}", sent(&pair, ONE) - before);
}

#[test]
fn an_early_path_is_judged_by_its_data_and_its_hello() {
    for (millis, writes) in [(400, 100), (1100, 1)] {
        let mut pair = pair();
        pair.open(PathId(3));
        pair.wire(PathId(3)).stalled_up = true;
        pair.activate(PathId(3), &[ONE]);
        for n in 1..=writes {
            up(&mut pair, n..n + 1);
            pair.advance(Duration::from_millis(5));
        }
        pair.advance(Duration::from_millis(millis));
        assert!(pair.client_events.iter().any(|event| is_unresponsive(event, PathId(3))), "{writes} writes");
        pair.wire(PathId(3)).stalled_up = false;
        pair.advance(SECOND);
        assert!(!pair.client.path_stats(PathId(3)).unwrap().unresponsive);
        assert!(pair.client_events.contains(&Event::PathRecovered { path: PathId(3) }));
    }
}

#[test]
fn path_stats_show_the_latest_sample() {
    let mut pair = pair();
    let stats = pair.client.path_stats(ONE).unwrap();
    assert_eq!((stats.srtt, stats.rttvar, stats.loss), (Some(RTT), Some(RTT / 20), Some(0.0)));
    let now = pair.now;
    assert!(!pair.client.wants_sample(now, ONE), "no sample is wanted of an idle path");
    assert!(!pair.client.wants_sample(now, PathId(9)));
    let lossy = mobile_proto::TransportSample {
        delivered: 90,
        in_flight: 0,
        unacked: 0,
        segs_out: 100,
        retransmitted: 10,
        last_ack: SECOND,
        srtt: RTT,
        rttvar: RTT,
    };
    pair.client.transport_sample(now, ONE, lossy);
    assert_eq!(pair.client.path_stats(ONE).unwrap().loss, Some(0.1));
}

#[test]
fn an_idle_pair_with_two_standby_paths_wakes_rarely_and_sends_little() {
    let mut pair = pair();
    pair.open(PathId(3));
    pair.advance(60 * SECOND);
    let end = pair.now + 600 * SECOND;
    let sent = |pair: &Pair| -> u64 {
        [ONE, TWO, PathId(3)].map(|path| pair.client.path_stats(path).unwrap().tx_bytes).iter().sum()
    };
    let (before, mut wakes) = (sent(&pair), 0);
    while pair.now < end {
        let due = pair.client.poll_timeout().unwrap();
        pair.advance(due - pair.now);
        wakes += 1;
    }
    // Thirteen keepalives of ten bytes for each path in ten minutes.
    assert!(sent(&pair) - before <= 3 * 14 * 10, "{}", sent(&pair) - before);
    assert!(wakes <= 3 * 2 * 14, "{wakes} in ten minutes");
    assert_eq!(pair.client.stats().liveness_probes, 0);
}
