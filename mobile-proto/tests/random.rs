//! Random lives of a session: packets both ways, bytes in pieces, stalls, lost paths, switches,
//! restarts. Within the bounds nothing is lost, doubled or reordered; beyond them, and only then,
//! something is missing, and the counters say exactly how much.

mod common;

use std::time::Duration;

use common::{Pair, Way, numbers, packet};
use mobile_proto::{Enqueue, Limits, PathId, Stats};
use proptest::prelude::*;

/// One step. A path is chosen among those that there are.
#[derive(Clone, Debug)]
enum Op {
    Send { way: Way, count: u32, size: usize },
    Open,
    Activate { path: usize, keep_all: bool },
    Close { path: usize },
    LoseAtClient { path: usize },
    Cut { path: usize },
    Transmit { limit: usize },
    Deliver { path: usize, way: Way, count: usize },
    Tick { millis: u64 },
    RestartServer,
    RestartClient,
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Up), Just(Way::Down)]
}

fn op() -> impl Strategy<Value = Op> {
    let path = 0..4_usize;
    prop_oneof![
        6 => (way(), 1..12_u32, 4..400_usize).prop_map(|(way, count, size)| Op::Send { way, count, size }),
        3 => Just(Op::Open),
        4 => (path.clone(), any::<bool>()).prop_map(|(path, keep_all)| Op::Activate { path, keep_all }),
        1 => path.clone().prop_map(|path| Op::Close { path }),
        1 => path.clone().prop_map(|path| Op::LoseAtClient { path }),
        1 => path.clone().prop_map(|path| Op::Cut { path }),
        8 => (1..3000_usize).prop_map(|limit| Op::Transmit { limit }),
        12 => (path, way(), 1..2000_usize).prop_map(|(path, way, count)| Op::Deliver { path, way, count }),
        3 => (1..3000_u64).prop_map(|millis| Op::Tick { millis }),
    ]
}

fn op_with_restarts() -> impl Strategy<Value = Op> {
    prop_oneof![30 => op(), 1 => Just(Op::RestartServer), 1 => Just(Op::RestartClient)]
}

/// A pair, and what was handed to it.
struct World {
    pair: Pair,
    next_path: u32,
    next_number: [u32; 2],
    /// The numbers that `enqueue` accepted, per way.
    accepted: [Vec<u32>; 2],
    refused: [u64; 2],
}

impl World {
    fn new(limits: Limits) -> Self {
        let pair = Pair::connected(limits);
        Self { pair, next_path: 2, next_number: [0; 2], accepted: Default::default(), refused: [0; 2] }
    }

    fn run(&mut self, op: &Op) {
        let pair = &mut self.pair;
        match *op {
            Op::Send { way, count, size } => (0..count).for_each(|_| self.send(way, size)),
            Op::Open => {
                // An agent has a few uplinks.
                if pair.wires.len() < 4 {
                    pair.open(PathId(self.next_path));
                    self.next_path += 1;
                }
            }
            Op::Activate { path, keep_all } => {
                let all: Vec<_> = pair.wires.keys().copied().collect();
                if let Some(path) = self.path(path) {
                    self.pair.activate(path, if keep_all { &all } else { &[] });
                }
            }
            Op::Close { path } => {
                if let Some(path) = self.path(path) {
                    let now = self.pair.now;
                    self.pair.client.close_path(now, path, mobile_proto::CloseCode::Normal);
                }
            }
            Op::LoseAtClient { path } => {
                if let Some(path) = self.path(path) {
                    self.pair.lose_at_client(path);
                }
            }
            Op::Cut { path } => {
                if let Some(path) = self.path(path) {
                    self.pair.cut(path);
                }
            }
            Op::Transmit { limit } => pair.transmit(limit),
            Op::Deliver { path, way, count } => {
                if let Some(path) = self.path(path) {
                    self.pair.deliver(path, way, count);
                }
            }
            Op::Tick { millis } => {
                pair.now += Duration::from_millis(millis);
                pair.fire();
            }
            Op::RestartServer => pair.restart_server(),
            Op::RestartClient => pair.restart_client(),
        }
    }

    fn path(&self, index: usize) -> Option<PathId> {
        let mut paths: Vec<_> = self.pair.wires.keys().copied().collect();
        paths.sort_unstable();
        if paths.is_empty() { None } else { Some(paths[index % paths.len()]) }
    }

    fn send(&mut self, way: Way, size: usize) {
        let side = way as usize;
        let number = self.next_number[side];
        let bytes = packet(number, size);
        let sent = match way {
            Way::Up => self.pair.send_up(&bytes),
            Way::Down if self.pair.server.is_some() => self.pair.send_down(&bytes),
            // A relay without the session has nowhere to put it.
            Way::Down => return,
        };
        self.next_number[side] += 1;
        match sent {
            Enqueue::Queued => self.accepted[side].push(number),
            Enqueue::Dropped(_) => self.refused[side] += 1,
        }
    }

    /// A path that works, at last; old paths' bytes come in after it.
    fn heal(&mut self) {
        let path = PathId(self.next_path);
        let old: Vec<_> = self.pair.wires.keys().copied().collect();
        for wire in self.pair.wires.values_mut() {
            (wire.stalled_up, wire.stalled_down) = (true, true);
        }
        self.pair.open(path);
        self.pair.settle();
        self.pair.activate(path, &old);
        self.pair.advance(Duration::from_secs(1));
        for wire in self.pair.wires.values_mut() {
            (wire.stalled_up, wire.stalled_down) = (false, false);
        }
        self.pair.advance(Duration::from_secs(1));
    }

    /// The counters of the sender and of the receiver of one way.
    fn stats(&mut self, way: Way) -> (Stats, Stats) {
        let (client, server) = (self.pair.client.stats().clone(), self.pair.server().stats().clone());
        if way == Way::Up { (client, server) } else { (server, client) }
    }

    fn arrived(&self, way: Way) -> Vec<u32> {
        numbers(if way == Way::Up { &self.pair.at_server } else { &self.pair.at_client })
    }
}

proptest! {
    #[test]
    fn within_the_bounds_nothing_is_lost_doubled_or_reordered(
        ops in proptest::collection::vec(op(), 0..120),
        replay_bytes in 300..20_000_usize,
    ) {
        let limits = Limits { replay_bytes, max_age: Duration::from_secs(3600), ..Limits::default() };
        let mut world = World::new(limits);
        ops.iter().for_each(|op| world.run(op));
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
    ) {
        let limits = Limits {
            replay_bytes: 5000,
            queue_bytes,
            max_age: Duration::from_millis(1500),
            ..Limits::default()
        };
        let mut world = World::new(limits);
        ops.iter().for_each(|op| world.run(op));
        world.heal();
        for way in [Way::Up, Way::Down] {
            let arrived = world.arrived(way);
            prop_assert!(arrived.is_sorted_by(|a, b| a < b), "doubled or reordered: {:?}", arrived);
            let (sender, receiver) = world.stats(way);
            let missing = world.accepted[way as usize].len() - arrived.len();
            prop_assert_eq!(missing as u64, sender.dropped_aged + sender.dropped_displaced + receiver.lost);
            prop_assert!(receiver.lost <= sender.given_up);
            prop_assert_eq!(sender.dropped_queue_full, world.refused[way as usize]);
            prop_assert_eq!(sender.acked_packets + sender.given_up, sender.tx_packets);
        }
    }

    #[test]
    fn restarts_lose_only_what_the_dead_end_held(
        ops in proptest::collection::vec(op_with_restarts(), 0..150),
    ) {
        let limits = Limits { max_age: Duration::from_secs(3600), ..Limits::default() };
        let mut world = World::new(limits);
        ops.iter().for_each(|op| world.run(op));
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
}
