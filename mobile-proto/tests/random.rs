//! Random lives of a session: packets both ways, bytes in pieces, stalls, lost paths, switches
//! early and late, blackholes, restarts. Within the bounds nothing is lost, doubled or reordered;
//! beyond them, and only then, something is missing, and the counters say exactly how much. Dead
//! paths are suspected, and no others.

mod common;

use std::time::Duration;

use common::Way;
use common::world::{Op, World, op, op_with_restarts, timely_op};
use mobile_proto::{Limits, PathId, Session};
use proptest::prelude::*;

/// So many lives each time, if nothing else is said: they take seconds.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(10_000))
}

/// Memory is bounded at any moment.
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

/// Whoever is dead has something to answer within a keepalive, and is suspect soon after.
fn suspects_every_dead_path(world: &mut World) {
    // An answer that a blackhole held up for long was taken for a long RTT by a shell without samples.
    world.pair.settle();
    let stats = |world: &World, path| world.pair.client.path_stats(path).expect("it is open");
    let longest = world.dead_paths().into_iter().filter_map(|path| stats(world, path).srtt).max();
    let patience = Duration::from_secs(10) + 4 * longest.unwrap_or_default();
    // And there the relay's word, on a path that is dead upwards only, puts it off once in a keepalive.
    let keepalives = if world.pair.samples { 1 } else { 2 };
    world.pair.advance(keepalives * Limits::default().keepalive + patience);
    let unsuspected =
        |world: &World| world.dead_paths().into_iter().find(|&path| !stats(world, path).unresponsive);
    if !world.pair.samples && unsuspected(world).is_some() {
        // It may have come just now.
        world.pair.advance(patience);
    }
    if let Some(path) = unsuspected(world) {
        panic!("{path} is dead and was not suspected: {:?}", stats(world, path));
    }
}

/// A test that asked in the very second in which the relay's doubt, once in a keepalive, is a sign of life.
#[test]
fn a_path_dead_upwards_is_suspect_again_after_the_relays_word() {
    let mut world = World::new(Limits::default(), false);
    for op in [
        Op::Send { way: Way::Down, count: 1, size: 4 },
        Op::Blackhole { path: 0, up: true, down: false },
        Op::Open { early: false },
        Op::Open { early: true },
        Op::Activate { path: 0, keep_all: false },
        Op::Pass { millis: 81_000 },
    ] {
        world.run(&op);
    }
    suspects_every_dead_path(&mut world);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn within_the_bounds_nothing_is_lost_doubled_or_reordered(
        ops in proptest::collection::vec(op(), 0..120),
        replay_bytes in 300..20_000_usize,
        samples in any::<bool>(),
        compression in any::<bool>(),
    ) {
        let limits = Limits {
            replay_bytes,
            max_age: Duration::from_secs(3600),
            // Nor is anything said to senders that are too fast for the path.
            target_delay: Duration::MAX,
            compression,
            ..Limits::default()
        };
        let mut world = World::new(limits, samples);
        run(&mut world, &ops);
        world.heal();
        for way in [Way::Up, Way::Down] {
            prop_assert_eq!(&world.arrived(way), &world.accepted[way as usize]);
            let (sender, receiver) = world.stats(way);
            prop_assert_eq!(receiver.rx_packets, sender.enqueued_packets);
            prop_assert_eq!(sender.tx_packets, sender.enqueued_packets);
            prop_assert_eq!(sender.acked_packets, sender.enqueued_packets);
            prop_assert_eq!((receiver.lost, sender.given_up, world.refused[way as usize]), (0, 0, 0));
            prop_assert!(receiver.duplicates <= sender.replayed_packets);
        }
        prop_assert_eq!(world.pair.client.unacked_bytes() + world.pair.client.queued_bytes(), 0);
        prop_assert_eq!(world.pair.client.active_path(), world.pair.server().active_path());
    }

    #[test]
    fn beyond_the_bounds_the_counters_say_what_is_missing(
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
        for way in [Way::Up, Way::Down] {
            let arrived = world.arrived(way);
            prop_assert!(arrived.is_sorted_by(|a, b| a < b), "doubled or reordered: {:?}", arrived);
            let (sender, receiver) = world.stats(way);
            let missing = world.accepted[way as usize].len() - arrived.len();
            prop_assert_eq!(missing as u64, sender.dropped_aged + sender.dropped_displaced + sender.dropped_delayed + sender.thinned + receiver.lost);
            prop_assert!(receiver.lost <= sender.given_up);
            prop_assert_eq!(sender.dropped_queue_full, world.refused[way as usize]);
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
        let lives = [(Way::Up, clients_died), (Way::Down, servers_died)];
        for ((way, sender_died), lives) in lives.into_iter().zip([
            &world.pair.server_lives,
            &world.pair.client_lives,
        ]) {
            let (arrived, accepted) = (world.arrived(way), &world.accepted[way as usize]);
            // Within each life of the receiver: no doubles, no disorder.
            let mut start = 0;
            for &end in lives.iter().chain([&arrived.len()]) {
                let life = &arrived[start..end];
                prop_assert!(life.is_sorted_by(|a, b| a < b), "doubled or reordered: {:?}", life);
                start = end;
            }
            if !sender_died {
                let mut known = arrived.clone();
                known.sort_unstable();
                known.dedup();
                prop_assert_eq!(&known, accepted, "lost although its sender lived on");
            }
        }
        let (client, server) = (world.pair.client.stats(), world.pair.client.unacked_bytes());
        prop_assert_eq!((client.lost, client.protocol_errors, server), (0, 0, 0));
    }

    #[test]
    fn the_dead_are_suspected_and_the_living_are_not(
        ops in proptest::collection::vec(timely_op(), 0..60),
        samples in any::<bool>(),
    ) {
        let mut world = World::new(Limits::default(), samples);
        world.suspected();
        for op in &ops {
            let (dead, active) = (world.dead_wires(), world.pair.client.active_path());
            world.run(op);
            check_bounds(&world);
            let [client, server] = world.suspected();
            prop_assert!(client.iter().all(|path| dead.contains(path)), "{:?} not in {:?}: {:?}", client, dead, op);
            // A client acknowledges on its own active path only, wherever the relay's records come.
            let agreed = |path: &PathId| dead.is_empty() && active == Some(*path);
            prop_assert!(!server.iter().any(agreed), "{:?} suspected by the relay: {:?}", server, op);
        }
        suspects_every_dead_path(&mut world);
        world.heal();
        let suspect = |path: &PathId| world.pair.client.path_stats(*path).is_some_and(|stats| stats.unresponsive);
        prop_assert_eq!(world.pair.client.paths().find(suspect), None, "all deliver again");
        prop_assert_eq!(world.pair.client.active_path(), world.pair.server.as_ref().and_then(Session::active_path));
    }
}
