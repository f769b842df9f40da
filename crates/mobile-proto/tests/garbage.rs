//! Tests of a peer that sends anything at all: no panic, no stuck timer, and no accepted packet is
//! lost when the next path is a good one.

mod common;

use std::time::Duration;

use common::{Direction, Pair, numbers, packet};
use mobile_proto::{
    Budget, CloseCode, Enqueue, Event, HelloReader, InnerPacket, Limits, MAX_PACKET, PathId, Session,
    SessionId,
};
use proptest::prelude::*;

const ONE: PathId = PathId(1);

/// Returns a complete frame of type `kind`, with a payload whose length fits in one byte.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, u8::try_from(payload.len()).expect("short")];
    frame.extend_from_slice(payload);
    frame
}

/// Returns frames with a valid type and length and an arbitrary payload.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![6 => 1..9_u8, 5 => 0x10..0x16_u8, 1 => 0x80..=0xff_u8];
    let payload = prop_oneof![
        3 => proptest::collection::vec(0..8_u8, 1..3),
        1 => proptest::collection::vec(any::<u8>(), 0..60),
    ];
    let one = (kind, payload).prop_map(|(kind, payload)| frame(kind, &payload));
    proptest::collection::vec(one, 0..20).prop_map(|frames| frames.concat())
}

fn garbage() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), frames()]
}

/// Passes `bytes` to a session in pieces of `step` bytes, and lets the session send, handle
/// timeouts and report events. Returns whether all input was valid.
fn feed(session: &mut Session, now: std::time::Instant, bytes: &[u8], step: usize) -> bool {
    let mut fine = true;
    for piece in bytes.chunks(step.max(1)) {
        let mut deliver = |packet: InnerPacket<'_>| assert!(!packet.is_empty() && packet.len() <= MAX_PACKET);
        let result = session.handle_input(now, ONE, piece, &mut deliver);
        assert!(result.is_ok() || fine, "a failed path takes no more input");
        fine &= result.is_ok();
        let mut out = Vec::new();
        if session.wants_transmit(ONE) && fine {
            session.poll_transmit(now, ONE, &mut out, Budget::new(usize::MAX));
            assert!(!out.is_empty(), "nothing was written although the session wanted to transmit");
            assert!(!session.wants_transmit(ONE));
        }
    }
    session.handle_timeout(now);
    assert!(session.poll_timeout().is_none_or(|at| at > now));
    while session.poll_event().is_some() {}
    fine
}

/// Returns a pair with records in flight and queued at both ends.
fn busy() -> Pair {
    let mut pair = Pair::connected(Limits { compression: true, ..Limits::default() });
    for n in 0..6 {
        assert_eq!(pair.send_up(&packet(n, 50)), Enqueue::Queued);
        assert_eq!(pair.send_down(&packet(n, 50)), Enqueue::Queued);
    }
    pair
}

/// Tests that only one event is queued for a configuration that the relay changes again and again.
/// Otherwise 1 MiB of CONFIG frames would cause 80,000 events, each of which would cost the agent a
/// copy of its whole state.
#[test]
fn a_configuration_that_changes_without_end_is_one_event() {
    let mut pair = busy();
    while pair.client.poll_event().is_some() {}
    let config = |mtu: u16| frame(0x13, &[&[7, 3, 2][..], &mtu.to_be_bytes()].concat());
    let flood = [config(1300), config(1301)].concat().repeat(75_000);
    assert_eq!(pair.client.handle_input(pair.now, ONE, &flood, &mut |_| {}), Ok(()));
    assert_eq!(pair.client.pending_events(), 1);
    assert!(matches!(pair.client.poll_event(), Some(Event::Config(config)) if config.mtu == 1301));
}

#[test]
fn after_an_error_close_is_sent_and_the_next_path_continues() {
    let mut pair = busy();
    let now = pair.now;
    let error = pair.client.handle_input(now, ONE, &[0x7f, 1, 2], &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("0x7f"), "{error}");
    assert_eq!((pair.client.active_path(), pair.client.stats().protocol_errors), (None, 1));
    pair.settle();
    assert_eq!(common::closed(&pair.server_events, ONE), Some(CloseCode::ProtocolError));
    pair.open(PathId(2));
    pair.settle();
    pair.activate(PathId(2), &[]);
    pair.settle();
    assert_eq!(numbers(&pair.at_server), (0..6).collect::<Vec<_>>());
    assert_eq!(numbers(&pair.at_client), (0..6).collect::<Vec<_>>());
}

#[test]
fn misplaced_frames_are_named_in_the_error() {
    let cases: [(Vec<u8>, &str); 8] = [
        (frame(0x10, &[0; 29]), "HELLO frame from this peer in this state"),
        (frame(0x11, &[1; 29]), "WELCOME frame from this peer in this state"),
        (frame(0x12, &[1, 0]), "ACTIVATE frame from this peer in this state"),
        (frame(0x03, &[60]), "acknowledges records up to 60, but only 0 were sent"),
        (frame(0x01, &[1]), "DATA frame before the first SEQ"),
        ([frame(0x02, &[0]), frame(0x01, &[])].concat(), "the packet is empty"),
        (frame(0x04, &[1]), "malformed PING frame: the payload is too short"),
        (frame(0x13, &[1, 3, 2, 0, 1]), "the MTU is below 576"),
    ];
    for (bytes, expected) in cases {
        let mut pair = Pair::connected(Limits::default());
        let error = pair.client.handle_input(pair.now, ONE, &bytes, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} instead of {expected}");
    }
    let mut pair = Pair::connected(Limits::default());
    let now = pair.now;
    let error = pair.server().handle_input(now, ONE, &frame(0x13, &[1]), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("CONFIG frame from this peer in this state"), "{error}");
    let mut fresh = Session::client(SessionId([3; 16]), Limits::default());
    fresh.open_path(now, ONE);
    let error = fresh.handle_input(now, ONE, &frame(0x04, &[0; 8]), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("PING frame before WELCOME"), "{error}");
}

#[test]
fn frames_of_a_later_version_are_skipped() {
    let mut pair = busy();
    for piece in frame(0x80, &[9; 40]).chunks(3) {
        pair.client.handle_input(pair.now, ONE, piece, &mut |_| {}).unwrap();
    }
    assert_eq!(pair.client.stats().skipped_frames, 1);
    pair.settle();
    assert_eq!((pair.at_client.len(), pair.at_server.len()), (6, 6));
}

#[test]
fn a_counter_at_the_end_of_its_range_is_refused_or_survived() {
    let largest = 0x1fff_ffff_ffff_ffff_u64;
    let seq = |value: u64| frame(0x02, &(value | 0xc000_0000_0000_0000).to_be_bytes());
    let mut pair = busy();
    let now = pair.now;
    let input = [seq(largest), frame(0x01, &[1]), frame(0x01, &[2])].concat();
    assert!(feed(&mut pair.client, now, &input, 1000));
    assert_eq!(pair.client.stats().lost, largest);
    assert!(!feed(&mut pair.client, now, &seq(largest + 1), 1000));
}

proptest! {
    #[test]
    fn garbage_is_refused_at_either_end(bytes in garbage(), step in 1..50_usize) {
        let mut pair = busy();
        let now = pair.now;
        feed(&mut pair.client, now, &bytes, step);
        feed(pair.server(), now, &bytes, step);
        let mut fresh = Session::client(SessionId([3; 16]), Limits::default());
        fresh.open_path(now, ONE);
        feed(&mut fresh, now, &bytes, step);
        let mut reader = HelloReader::new();
        let _ = bytes.chunks(step).try_for_each(|piece| match reader.feed(piece) {
            Ok(None) => Ok(()),
            _ => Err(()),
        });
    }

    #[test]
    fn mutated_conversations_never_panic(
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..6),
        step in 1..400_usize,
        open_second in any::<bool>(),
    ) {
        let mut pair = busy();
        if open_second {
            pair.open(PathId(2));
            pair.transmit(usize::MAX);
            pair.deliver(PathId(2), Direction::Up, usize::MAX);
        }
        pair.activate(ONE, &[PathId(2)]);
        let now = pair.now;
        pair.server().set_config(mobile_proto::PushConfig { mtu: 1300, ..common::config() });
        pair.transmit(usize::MAX);
        let wire = pair.wire(ONE);
        let mut up: Vec<u8> = wire.up.drain(..).collect();
        let mut down: Vec<u8> = wire.down.drain(..).collect();
        for (at, kind, byte) in mutations {
            for bytes in [&mut up, &mut down] {
                let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
                match kind {
                    _ if bytes.is_empty() => {}
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at),
                }
            }
        }
        feed(pair.server(), now, &up, step);
        feed(&mut pair.client, now, &down, step);
        for session in [&mut pair.client, pair.server.as_mut().unwrap()] {
            session.handle_timeout(now + Duration::from_secs(3600));
        }
    }

    #[test]
    fn garbage_on_one_path_loses_no_accepted_packet(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // The frame type is unknown to any version: whatever follows, the path ends there.
        let mut pair = busy();
        pair.transmit(usize::MAX);
        let now = pair.now;
        let bad = [vec![0x60], bytes].concat();
        let at_client = pair.client.handle_input(now, ONE, &bad, &mut |_| {});
        let at_server = pair.server().handle_input(now, ONE, &bad, &mut |_| {});
        prop_assert!(at_client.is_err() && at_server.is_err());
        pair.open(PathId(2));
        pair.settle();
        pair.activate(PathId(2), &[]);
        pair.advance(Duration::from_secs(1));
        prop_assert_eq!(numbers(&pair.at_server), (0..6).collect::<Vec<_>>());
        prop_assert_eq!(numbers(&pair.at_client), (0..6).collect::<Vec<_>>());
    }
}
