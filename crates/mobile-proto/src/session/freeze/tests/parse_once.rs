//! Counts how often packets are parsed: once at each end, where they enter it.

use super::*;
use crate::packet::parse_count;

/// Returns how many packets are parsed while `work` runs, and its result.
fn counted<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = parse_count::count();
    let result = work();
    (parse_count::count() - before, result)
}

fn transmit(session: &mut Session, now: Instant, path: PathId) -> Vec<u8> {
    let mut wire = Vec::new();
    while session.wants_transmit(path) {
        session.poll_transmit(now, path, &mut wire, Budget::new(1 << 20));
    }
    wire
}

/// Sends everything that waits in `from` to `to`, and returns the number of packets delivered.
/// Checks that sending parses nothing, and that delivering parses each packet once.
fn deliver(now: Instant, path: PathId, from: &mut Session, to: &mut Session) -> u64 {
    let (at_sender, wire) = counted(|| transmit(from, now, path));
    assert_eq!(at_sender, 0, "sending parses nothing");
    let mut delivered = 0;
    let (at_receiver, result) = counted(|| {
        to.handle_input(now, path, &wire, &mut |packet| {
            // Read the headers as a filter does, and as the TUN does for an offload.
            assert!(packet.ip().is_ok() && packet.offload.to_vnet(packet).is_ok());
            delivered += 1;
        })
    });
    assert_eq!((at_receiver, result), (delivered, Ok(())), "once for each packet delivered");
    delivered
}

#[test]
fn each_packet_is_parsed_once_at_each_end() {
    let mut ends = established(&Limits::default());
    let (now, path) = (ends.now, ends.path);
    // Data, datagrams, and acknowledgements, of which the last makes the others redundant.
    let packets: Vec<Vec<u8>> = (0..10)
        .flat_map(|n| {
            let ack = Sample { ack: 5000 + n, seq: 2000, ..Sample::default() };
            [data(1000 + 100 * n, 100).packet(), udp(n as u8, 300), ack.packet(), ack.packet()]
        })
        .chain((0..10).map(|n| Sample { ack: 5100 + n, seq: 2000, ..Sample::default() }.packet()))
        .collect();
    let (parsed, ()) = counted(|| {
        for packet in &packets {
            assert_eq!(ends.client.enqueue(now, packet), Enqueue::Queued);
        }
    });
    assert_eq!(parsed, packets.len() as u64);
    let thinned = ends.client.stats().thinned;
    assert!(thinned > 0, "no acknowledgement was thinned");
    assert_eq!(deliver(now, path, &mut ends.client, &mut ends.server), packets.len() as u64 - thinned);
    deliver(now, path, &mut ends.server, &mut ends.client);

    // In an outage: retransmissions of held segments, probes, and segments that the session
    // answers.
    let _ = ends.send(data(2000, 100));
    let _ = transmit(&mut ends.client, ends.now, ends.path);
    ends.cut();
    ends.now += LATER;
    let samples = [data(2000, 100), data(2100, 50), data(2100, 50), data(999, 0), data(2150, 0)];
    let held: Vec<Vec<u8>> = samples.iter().map(|sample| sample.packet()).chain([udp(1, 100)]).collect();
    let (parsed, ()) = counted(|| {
        for packet in &held {
            let _ = ends.client.enqueue(ends.now, packet);
        }
    });
    assert_eq!(parsed, held.len() as u64);
    assert!(ends.client.stats().dropped_duplicate > 0, "nothing was held twice");
    let (parsed, answers) = counted(|| ends.local().len());
    assert!(answers > 0, "nobody was answered");
    assert_eq!(parsed, answers as u64, "an answer enters the end, too");

    // The next path carries the held packets.
    ends.path.0 += 1;
    ends.client.open_path(ends.now, ends.path);
    let hello = transmit(&mut ends.client, ends.now, ends.path);
    let (hello, _) = HelloReader::new().feed(&hello).unwrap().unwrap();
    ends.server.accept_path(ends.now, &hello).unwrap();
    assert_eq!(deliver(ends.now, ends.path, &mut ends.server, &mut ends.client), 0);
    let (parsed, ()) = counted(|| ends.client.activate(ends.now, ends.path, &[]));
    assert_eq!(parsed, 0);
    assert!(deliver(ends.now, ends.path, &mut ends.client, &mut ends.server) >= 3);
}
