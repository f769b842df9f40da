//! Fuzzes resumption: a client and a relay with packets in both directions, bytes in pieces, and
//! paths that stall, die and change.
//!
//! The fuzzer chooses operations of the model tests (`crates/mobile-proto/tests/common/world.rs`),
//! and the target checks the invariant of these tests: accepted packets are delivered, once and in
//! order.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mobile_fuzz::Input;
use mobile_proto::Limits;

#[path = "../../crates/mobile-proto/tests/common/mod.rs"]
mod common;

use common::Direction;
use common::world::{Op, World};

/// Maximum number of operations in one script; longer scripts find no further bugs.
const MAX_OPS: usize = 150;
/// Bytes of input for each operation.
const OP: usize = 4;
/// Bytes by which unacknowledged records may exceed their limit, because a single record is always
/// accepted.
const SLACK: usize = 64 << 10;

fuzz_target!(init: mobile_fuzz::seeds(seeds), |data: &[u8]| {
    let mut input = Input(data);
    let (flags, replay) = (input.byte(), input.word());
    let (samples, compression) = (flags & 1 != 0, flags & 2 != 0);
    let limits = Limits {
        replay_bytes: 300 + usize::from(replay) % 20_000,
        max_age: Duration::from_secs(3600),
        target_delay: Duration::MAX,
        compression,
        ..Limits::default()
    };
    let mut world = World::new(limits, samples);
    for _ in 0..MAX_OPS {
        if input.is_empty() {
            break;
        }
        world.run(&op([input.byte(), input.byte(), input.byte(), input.byte()]));
        check_bounds(&world);
    }
    world.heal();
    drain(&mut world);
    for direction in [Direction::Up, Direction::Down] {
        assert_eq!(world.arrived(direction), world.accepted[direction as usize], "{direction:?}");
        let (sender, receiver) = world.stats(direction);
        assert_eq!(receiver.rx_packets, sender.enqueued_packets);
        assert_eq!(sender.acked_packets, sender.enqueued_packets);
        assert_eq!((receiver.lost, sender.given_up, world.refused[direction as usize]), (0, 0, 0));
        assert!(receiver.duplicates <= sender.replayed_packets);
    }
    assert_eq!(world.pair.client.unacked_bytes() + world.pair.client.queued_bytes(), 0);
    assert_eq!(world.pair.client.active_path(), world.pair.server().active_path());
});

/// Advances the clock until every record is acknowledged. If the memory holds a single
/// unacknowledged record, each record waits for the acknowledgement of the one before, and the
/// other side may delay that by [`Limits::ack_delay`]; so one such delay for each packet is enough.
fn drain(world: &mut World) {
    let patience = world.pair.limits.ack_delay;
    for _ in 0..world.accepted.iter().map(Vec::len).sum() {
        let sessions = [Some(&world.pair.client), world.pair.server.as_ref()].into_iter().flatten();
        if sessions.map(|session| session.unacked_bytes() + session.queued_bytes()).sum::<usize>() == 0 {
            return;
        }
        world.pair.advance(patience);
    }
}

fn check_bounds(world: &World) {
    let limits = &world.pair.limits;
    for session in [Some(&world.pair.client), world.pair.server.as_ref()].into_iter().flatten() {
        assert!(session.unacked_bytes() <= limits.replay_bytes + SLACK);
        assert!(session.queued_bytes() <= limits.queue_bytes + limits.replay_bytes);
        assert!(session.paths().count() <= limits.max_paths);
    }
}

/// Returns the operation of the model tests for four bytes of input. Restarts are left out, because
/// they lose packets.
fn op([kind, a, b, c]: [u8; OP]) -> Op {
    let (path, direction) = (usize::from(a % 4), if a & 0x80 == 0 { Direction::Up } else { Direction::Down });
    let (flag, word) = (a & 0x40 != 0, u16::from_be_bytes([b, c]));
    let (count, millis) = (usize::from(word) + 1, u64::from(word % 3000) + 1);
    match kind % 12 {
        0 => Op::Send { direction, count: u32::from(b % 12) + 1, size: 4 + usize::from(c) * 3 / 2 },
        1 => Op::Open { early: flag },
        2 => Op::Activate { path, keep_all: flag },
        3 => Op::Close { path },
        4 => Op::LoseAtClient { path },
        5 => Op::Cut { path },
        6 => Op::Transmit { limit: count },
        7 => Op::Deliver { path, direction, count },
        8 => Op::Tick { millis },
        9 => Op::Pass { millis: millis % 500 },
        10 => Op::Blackhole { path, up: b % 3 != 1, down: b % 3 != 0 },
        _ => Op::Restore { path },
    }
}

/// Returns typical sequences of operations of a laptop as seeds.
fn seeds() -> Vec<Vec<u8>> {
    let (send_up, send_down) = ([0, 0, 5, 100], [0, 0x80, 9, 200]);
    let (open, open_early, settle) = ([1, 0, 0, 0], [1, 0x40, 0, 0], [9, 0, 0, 50]);
    let (transmit, half_up, half_down) = ([6, 0, 0x40, 0], [7, 0, 1, 0], [7, 0x80, 1, 0]);
    let scripts: [&[[u8; OP]]; 8] = [
        &[send_up, send_down, settle],
        // A planned handover, with and without the old path.
        &[send_up, transmit, half_up, open, settle, [2, 1, 0, 0], send_down, settle],
        &[send_up, transmit, half_up, open, settle, [2, 0x41, 0, 0], [3, 0, 0, 0], send_down, settle],
        // The path dies with data on it; the next one is used before it is ready.
        &[send_up, send_down, transmit, half_down, [5, 0, 0, 0], open_early, send_up, settle],
        // The path falls silent, in one direction or both, and recovers.
        &[send_up, transmit, [10, 0, 0, 0], send_down, transmit, [8, 0, 11, 0], [11, 0, 0, 0], settle],
        &[send_up, transmit, [10, 0, 2, 0], [8, 0, 11, 0], open_early, settle, [11, 0, 0, 0], settle],
        // Only the client notices the loss, and data in flight arrives late.
        &[send_up, transmit, [4, 0, 0, 0], open_early, transmit, half_up, half_down, send_up, settle],
        // Several paths, and a changed choice.
        &[
            open,
            open,
            settle,
            [2, 1, 0, 0],
            [2, 2, 0, 0],
            send_up,
            transmit,
            [2, 0x40, 0, 0],
            half_up,
            settle,
        ],
    ];
    let seed =
        |(number, script): (usize, &&[[u8; OP]])| [&[number as u8 % 4, 9, 0], &script.concat()[..]].concat();
    scripts.iter().enumerate().map(seed).collect()
}
