//! Tests of compression: agreed by both ends for each path, and invisible in the delivered packets.

mod common;

use std::time::Duration;

use common::{Direction, Pair, packet};
use mobile_proto::{Budget, CloseCode, Enqueue, Hello, HelloReader, Limits, PathId, Session};

const ONE: PathId = PathId(1);
const TWO: PathId = PathId(2);

fn wanted() -> Limits {
    Limits { compression: true, ..Limits::default() }
}

/// Returns a packet of text-like data whose first bytes are `n`.
fn text(n: u32) -> Vec<u8> {
    let mut packet = packet(n, 1400);
    let words = b"the quick brown fox jumps over the lazy dog, and once more ".iter().cycle();
    packet[100..].iter_mut().zip(words).for_each(|(byte, letter)| *byte = *letter);
    packet
}

/// Returns an incompressible packet.
fn noise(n: u32) -> Vec<u8> {
    let mut packet = packet(n, 1400);
    let mut state = n.wrapping_mul(2_654_435_761) | 1;
    for byte in &mut packet[4..] {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        *byte = state as u8;
    }
    packet
}

/// Sends packets up, and returns how many bytes that took on the wire.
fn send(pair: &mut Pair, packets: impl IntoIterator<Item = Vec<u8>>) -> usize {
    for packet in packets {
        assert_eq!(pair.send_up(&packet), Enqueue::Queued);
    }
    pair.transmit(usize::MAX);
    let path = pair.client.active_path().expect("an active path");
    let bytes = pair.wire(path).up.len();
    pair.settle();
    bytes
}

#[test]
fn compression_needs_the_consent_of_both_ends() {
    for (client, server) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut pair = Pair::new(Limits { compression: client, ..Limits::default() });
        pair.limits.compression = server;
        pair.open(ONE);
        pair.settle();
        pair.activate(ONE, &[]);
        pair.settle();
        let agreed = client && server;
        let bytes = send(&mut pair, (0..10).map(text));
        assert_eq!(bytes < 10_000, agreed, "{client} and {server}: {bytes} bytes");
        assert_eq!(pair.at_server, (0..10).map(text).collect::<Vec<_>>());
        let stats = pair.client.stats().clone();
        assert_eq!(stats.tx_compressible_bytes, if agreed { 14_000 } else { 0 });
        assert_eq!(pair.server().stats().rx_compressible_bytes, stats.tx_compressible_bytes);
        assert_eq!(pair.server().stats().rx_compressed_bytes, stats.tx_compressed_bytes);
        for session in [&pair.client, pair.server.as_ref().unwrap()] {
            assert_eq!(session.path_stats(ONE).unwrap().compression, agreed);
        }
    }
}

#[test]
fn a_peer_may_not_compress_without_agreement() {
    let mut pair = Pair::connected(Limits::default());
    let error = pair.client.handle_input(pair.now, ONE, &[8, 3, 1, 1, 0], &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("not agreed"), "{error}");
}

#[test]
fn a_replayed_record_is_compressed_for_its_new_path() {
    let mut pair = Pair::connected(wanted());
    send(&mut pair, (0..20).map(text));
    for n in 20..40 {
        assert_eq!(pair.send_up(&text(n)), Enqueue::Queued);
    }
    pair.transmit(usize::MAX);
    // Half of the bytes arrive, and end within a frame; then the path dies.
    let half = pair.wire(ONE).up.len() / 2;
    pair.deliver(ONE, Direction::Up, half);
    pair.cut(ONE);
    pair.open(TWO);
    // Before WELCOME it is unknown what this path may carry.
    pair.activate(TWO, &[]);
    pair.settle();
    send(&mut pair, (40..60).map(text));
    assert!(pair.at_server == (0..60).map(text).collect::<Vec<_>>());
    assert!(pair.client.stats().replayed_packets > 0);
    assert!(pair.client.path_stats(TWO).unwrap().compression);
}

/// Tests that a client reads compressed packets on a path that it is closing, although it no longer
/// parses the WELCOME in which the relay grants compression.
#[test]
fn a_client_reads_compressed_packets_on_a_closing_path() {
    let mut pair = Pair::connected(wanted());
    pair.cut(ONE);
    assert_eq!(pair.send_down(&text(1)), Enqueue::Queued);
    pair.open(TWO);
    pair.activate(TWO, &[]);
    pair.transmit(usize::MAX);
    pair.deliver(TWO, Direction::Up, usize::MAX);
    let now = pair.now;
    pair.client.close_path(now, TWO, CloseCode::Normal);
    // The relay's WELCOME and its packet, sent before CLOSE arrives.
    let mut out = Vec::new();
    pair.server().poll_transmit(now, TWO, &mut out, Budget::new(usize::MAX));
    let mut came = Vec::new();
    pair.client.handle_input(now, TWO, &out, &mut |packet| came.push(packet.bytes.to_vec())).unwrap();
    assert_eq!(came, [text(1)]);
}

#[test]
fn incompressible_packets_are_soon_sent_as_they_are() {
    let mut pair = Pair::connected(wanted());
    let bytes = send(&mut pair, (0..200).map(noise));
    assert!(bytes < 200 * 1410, "{bytes} bytes");
    let stats = pair.client.stats();
    assert!((16_000..20_000).contains(&stats.tx_compressible_bytes), "{stats:?}");
    assert_eq!(pair.at_server, (0..200).map(noise).collect::<Vec<_>>());
}

#[test]
fn a_session_that_takes_over_has_its_own_streams() {
    let mut pair = Pair::connected(wanted());
    send(&mut pair, (0..20).map(text));
    // Acknowledged records are not sent again.
    pair.advance(Duration::from_secs(1));
    pair.restart_server();
    pair.cut(ONE);
    pair.open(TWO);
    pair.settle();
    pair.activate(TWO, &[]);
    pair.settle();
    assert!(send(&mut pair, (20..40).map(text)) < 10_000);
    assert_eq!(pair.at_server.len(), 40);
}

/// Tests compatibility: without the wish for compression, HELLO has no item for it, as in older
/// versions.
#[test]
fn hello_offers_compression_only_if_it_is_wanted() {
    for compression in [false, true] {
        let pair = Pair::new(Limits { compression, ..Limits::default() });
        let mut client: Session = pair.client;
        client.open_path(pair.now, ONE);
        let mut wire = Vec::new();
        client.poll_transmit(pair.now, ONE, &mut wire, Budget::new(0));
        let (hello, _): (Hello, _) = HelloReader::new().feed(&wire).unwrap().unwrap();
        assert_eq!(hello.compression, compression);
    }
}
