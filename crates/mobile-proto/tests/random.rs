//! Model tests with random operations on a session: packets in both directions, bytes in pieces,
//! stalls, lost paths, early and late switches, blackholes and restarts.
//!
//! Within the [`Limits`] of memory and age no packet is lost, duplicated or reordered. Beyond these
//! limits, and only then, packets are missing, and the counters state exactly how many. The session
//! declares exactly the dead paths unresponsive.

mod common;

use std::time::Duration;

use common::Direction;
use common::world::{Op, World, op, op_with_restarts, timely_op};
use mobile_proto::{Limits, PathId, Session};
use proptest::prelude::*;

/// Returns the number of random cases of each test; the default number takes seconds.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(10_000))
}

/// Checks that each session's memory and number of paths are within its limits.
fn check_bounds(world: &World) {
    let (limits, slack) = (&world.pair.limits, 64 << 10);
    for session in [Some(&world.pair.client), world.pair.server.as_ref()].into_iter().flatten() {
        assert!(session.unacked_bytes() <= limits.replay_bytes + slack, "one record always fits");
        assert!(session.queued_bytes() <= limits.queue_bytes.saturating_add(limits.replay_bytes));
        assert!(session.paths().count() <= limits.max_paths);
    }
}

fn run(world: &mut World, ops: &[Op]) {
    for op in ops {
        world.run(op);
        check_bounds(world);
    }
}

/// Checks that the client declares every dead path unresponsive: within a keepalive interval
/// something sent on the path goes unanswered, and soon after the path is unresponsive.
fn detects_every_dead_path(world: &mut World) {
    // An end without samples takes an answer that a blackhole held up for a long RTT.
    world.pair.settle();
    let stats = |world: &World, path| world.pair.client.path_stats(path).expect("the path is open");
    let longest = world.dead_paths().into_iter().filter_map(|path| stats(world, path).srtt).max();
    let patience = Duration::from_secs(10) + 4 * longest.unwrap_or_default();
    // Without samples, DOUBT of the relay on a path that is dead upwards only delays this once in a
    // keepalive interval.
    let keepalives = if world.pair.samples { 1 } else { 2 };
    world.pair.advance(keepalives * Limits::default().keepalive + patience);
    let undetected =
        |world: &World| world.dead_paths().into_iter().find(|&path| !stats(world, path).unresponsive);
    if !world.pair.samples && undetected(world).is_some() {
        // DOUBT may have arrived just now.
        world.pair.advance(patience);
    }
    if let Some(path) = undetected(world) {
        panic!("{path} is dead and was not detected: {:?}", stats(world, path));
    }
}

/// Tests a path that is dead upwards, just when a DOUBT of the relay has arrived on it. DOUBT
/// arrives once in a keepalive interval and counts as a sign of life of the path.
#[test]
fn a_path_dead_upwards_is_unresponsive_again_after_a_doubt_of_the_relay() {
    let mut world = World::new(Limits::default(), false);
    for op in [
        Op::Send { direction: Direction::Down, count: 1, size: 4 },
        Op::Blackhole { path: 0, up: true, down: false },
        Op::Open { early: false },
        Op::Open { early: true },
        Op::Activate { path: 0, keep_all: false },
        Op::Pass { millis: 81_000 },
    ] {
        world.run(&op);
    }
    detects_every_dead_path(&mut world);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn within_the_limits_nothing_is_lost_duplicated_or_reordered(
        ops in proptest::collection::vec(op(), 0..120),
        replay_bytes in 300..20_000_usize,
        samples in any::<bool>(),
        compression in any::<bool>(),
    ) {
        let limits = Limits {
            replay_bytes,
            max_age: Duration::from_secs(3600),
            // No packet is dropped to slow down a sender.
            target_delay: Duration::MAX,
            compression,
            ..Limits::default()
        };
        let mut world = World::new(limits, samples);
        run(&mut world, &ops);
        world.heal();
        for direction in [Direction::Up, Direction::Down] {
            prop_assert_eq!(&world.arrived(direction), &world.accepted[direction as usize]);
            let (sender, receiver) = world.stats(direction);
            prop_assert_eq!(receiver.rx_packets, sender.enqueued_packets);
            prop_assert_eq!(sender.tx_packets, sender.enqueued_packets);
            prop_assert_eq!(sender.acked_packets, sender.enqueued_packets);
            prop_assert_eq!((receiver.lost, sender.given_up, world.refused[direction as usize]), (0, 0, 0));
            prop_assert!(receiver.duplicates <= sender.replayed_packets);
        }
        prop_assert_eq!(world.pair.client.unacked_bytes() + world.pair.client.queued_bytes(), 0);
        prop_assert_eq!(world.pair.client.active_path(), world.pair.server().active_path());
    }

    #[test]
    fn beyond_the_limits_the_counters_state_what_is_missing(
        ops in proptest::collection::vec(op(), 0..120),
        queue_bytes in 2_000..10_000_usize,
        samples in any::<bool>(),
    ) {
        let limits = Limits {
            replay_bytes: 5000,
            queue_bytes,
            max_age: Duration::from_millis(1500),
            ..Limits::default()
        };
        let mut world = World::new(limits, samples);
        run(&mut world, &ops);
        world.heal();
        for direction in [Direction::Up, Direction::Down] {
            let arrived = world.arrived(direction);
            prop_assert!(arrived.is_sorted_by(|a, b| a < b), "duplicated or reordered: {:?}", arrived);
            let (sender, receiver) = world.stats(direction);
            let missing = world.accepted[direction as usize].len() - arrived.len();
            prop_assert_eq!(missing as u64, sender.dropped_aged + sender.dropped_displaced + sender.dropped_delayed + sender.thinned + receiver.lost);
            prop_assert!(receiver.lost <= sender.given_up);
            prop_assert_eq!(sender.dropped_queue_full, world.refused[direction as usize]);
            prop_assert_eq!(sender.acked_packets + sender.given_up, sender.tx_packets);
        }
    }

    #[test]
    fn restarts_lose_only_what_the_dead_end_held(
        ops in proptest::collection::vec(op_with_restarts(), 0..150),
        samples in any::<bool>(),
        compression in any::<bool>(),
    ) {
        let (max_age, target_delay) = (Duration::from_secs(3600), Duration::MAX);
        let limits = Limits { max_age, target_delay, compression, ..Limits::default() };
        let mut world = World::new(limits, samples);
        run(&mut world, &ops);
        world.heal();
        let clients_died = ops.iter().any(|op| matches!(op, Op::RestartClient));
        let servers_died = ops.iter().any(|op| matches!(op, Op::RestartServer));
        let lives = [(Direction::Up, clients_died), (Direction::Down, servers_died)];
        for ((direction, sender_died), lives) in lives.into_iter().zip([
            &world.pair.server_lives,
            &world.pair.client_lives,
        ]) {
            let (arrived, accepted) = (world.arrived(direction), &world.accepted[direction as usize]);
            // Within each lifetime of the receiver there are no duplicates and no disorder.
            let mut start = 0;
            for &end in lives.iter().chain([&arrived.len()]) {
                let life = &arrived[start..end];
                prop_assert!(life.is_sorted_by(|a, b| a < b), "duplicated or reordered: {:?}", life);
                start = end;
            }
            if !sender_died {
                let mut known = arrived.clone();
                known.sort_unstable();
                known.dedup();
                prop_assert_eq!(&known, accepted, "lost although the sender was not restarted");
            }
        }
        let (client, server) = (world.pair.client.stats(), world.pair.client.unacked_bytes());
        prop_assert_eq!((client.lost, client.protocol_errors, server), (0, 0, 0));
    }

    #[test]
    fn dead_paths_are_detected_and_live_ones_are_not(
        ops in proptest::collection::vec(timely_op(), 0..60),
        samples in any::<bool>(),
    ) {
        let mut world = World::new(Limits::default(), samples);
        world.unresponsive_paths();
        for op in &ops {
            let (dead, active) = (world.dead_wires(), world.pair.client.active_path());
            world.run(op);
            check_bounds(&world);
            let [client, server] = world.unresponsive_paths();
            prop_assert!(client.iter().all(|path| dead.contains(path)), "{:?} not in {:?}: {:?}", client, dead, op);
            // A client acknowledges on its own active path only, on whichever path the relay's
            // records arrive.
            let agreed = |path: &PathId| dead.is_empty() && active == Some(*path);
            prop_assert!(!server.iter().any(agreed), "{:?} reported by the relay: {:?}", server, op);
        }
        detects_every_dead_path(&mut world);
        world.heal();
        let unresponsive = |path: &PathId| world.pair.client.path_stats(*path).is_some_and(|stats| stats.unresponsive);
        prop_assert_eq!(world.pair.client.paths().find(unresponsive), None, "all deliver again");
        prop_assert_eq!(world.pair.client.active_path(), world.pair.server.as_ref().and_then(Session::active_path));
    }
}
