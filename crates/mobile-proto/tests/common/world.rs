//! A client and a relay that run a script of operations, and the packets that their sessions
//! accepted.

use std::time::Duration;

use mobile_proto::{CloseCode, Enqueue, Event, Limits, PathId, Stats};
use proptest::prelude::*;

use super::{Direction, Pair, kernel, numbers, packet};

/// One operation on a client, a relay and the paths between them. A path is chosen among the
/// existing ones.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Send {
        direction: Direction,
        count: u32,
        size: usize,
    },
    /// Opens a path, with ACTIVATE directly after HELLO or not.
    Open {
        early: bool,
    },
    Activate {
        path: usize,
        keep_all: bool,
    },
    Close {
        path: usize,
    },
    LoseAtClient {
        path: usize,
    },
    Cut {
        path: usize,
    },
    Transmit {
        limit: usize,
    },
    Deliver {
        path: usize,
        direction: Direction,
        count: usize,
    },
    Tick {
        millis: u64,
    },
    /// Advances the clock, while timers fire and all bytes on paths that are not stalled arrive.
    Pass {
        millis: u64,
    },
    /// Stalls a path; data in flight stays there.
    Blackhole {
        path: usize,
        up: bool,
        down: bool,
    },
    Restore {
        path: usize,
    },
    /// Stalls a path for less than the round-trip time.
    Hiccup {
        path: usize,
        millis: u64,
    },
    RestartServer,
    RestartClient,
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Up), Just(Direction::Down)]
}

fn path() -> impl Strategy<Value = usize> {
    0..4_usize
}

/// Returns operations that change paths, and what the client does with them.
fn change() -> impl Strategy<Value = Op> {
    let blackhole =
        (path(), 0..3_u8).prop_map(|(path, which)| Op::Blackhole { path, up: which != 1, down: which != 0 });
    prop_oneof![
        6 => (direction(), 1..12_u32, 4..400_usize).prop_map(|(direction, count, size)| Op::Send { direction, count, size }),
        3 => any::<bool>().prop_map(|early| Op::Open { early }),
        4 => (path(), any::<bool>()).prop_map(|(path, keep_all)| Op::Activate { path, keep_all }),
        1 => path().prop_map(|path| Op::Close { path }),
        1 => path().prop_map(|path| Op::LoseAtClient { path }),
        1 => path().prop_map(|path| Op::Cut { path }),
        2 => blackhole,
        2 => path().prop_map(|path| Op::Restore { path }),
    ]
}

/// Returns all operations but restarts, with bytes that move in pieces and in any order of paths.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => change(),
        8 => (1..3000_usize).prop_map(|limit| Op::Transmit { limit }),
        12 => (path(), direction(), 1..2000_usize).prop_map(|(path, direction, count)| Op::Deliver { path, direction, count }),
        3 => (1..3000_u64).prop_map(|millis| Op::Tick { millis }),
        1 => (1..500_u64).prop_map(|millis| Op::Pass { millis }),
    ]
}

pub(crate) fn op_with_restarts() -> impl Strategy<Value = Op> {
    prop_oneof![30 => op(), 1 => Just(Op::RestartServer), 1 => Just(Op::RestartClient)]
}

/// Returns operations under which all data outside a blackhole arrives within the RTT.
pub(crate) fn timely_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => change(),
        8 => (1..3000_u64).prop_map(|millis| Op::Pass { millis }),
        1 => (10_000..90_000_u64).prop_map(|millis| Op::Pass { millis }),
        4 => (path(), 1..20_u64).prop_map(|(path, millis)| Op::Hiccup { path, millis }),
        1 => Just(Op::RestartServer),
        1 => Just(Op::RestartClient),
    ]
}

/// A client and a relay, and the packets that their sessions accepted.
pub(crate) struct World {
    pub(crate) pair: Pair,
    next_path: u32,
    next_number: [u32; 2],
    /// The numbers of the packets that `enqueue` accepted, one list for each direction.
    pub(crate) accepted: [Vec<u32>; 2],
    pub(crate) refused: [u64; 2],
}

impl World {
    pub(crate) fn new(limits: Limits, samples: bool) -> Self {
        let mut pair = Pair::connected(limits);
        pair.samples = samples;
        Self { pair, next_path: 2, next_number: [0; 2], accepted: Default::default(), refused: [0; 2] }
    }

    pub(crate) fn run(&mut self, op: &Op) {
        let pair = &mut self.pair;
        match *op {
            Op::Send { direction, count, size } => (0..count).for_each(|_| self.send(direction, size)),
            Op::Open { early } => self.open(early),
            Op::Activate { path, keep_all } => {
                let all: Vec<_> = pair.wires.keys().copied().collect();
                if let Some(path) = self.path(path) {
                    self.pair.activate(path, if keep_all { &all } else { &[] });
                }
            }
            Op::Close { path } => {
                if let Some(path) = self.path(path) {
                    let now = self.pair.now;
                    self.pair.client.close_path(now, path, CloseCode::Normal);
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
            Op::Deliver { path, direction, count } => {
                if let Some(path) = self.path(path) {
                    self.pair.deliver(path, direction, count);
                }
            }
            Op::Tick { millis } => {
                pair.now += Duration::from_millis(millis);
                pair.fire();
            }
            Op::Pass { millis } => pair.advance(Duration::from_millis(millis)),
            Op::Blackhole { path, up, down } => self.stall(path, up, down),
            Op::Restore { path } => self.stall(path, false, false),
            Op::Hiccup { path, millis } => self.hiccup(path, Duration::from_millis(millis)),
            Op::RestartServer => pair.restart_server(),
            Op::RestartClient => pair.restart_client(),
        }
    }

    fn open(&mut self, early: bool) {
        // An agent has a few uplinks.
        if self.pair.wires.len() < 4 {
            let path = PathId(self.next_path);
            self.next_path += 1;
            self.pair.open(path);
            if early {
                let all: Vec<_> = self.pair.wires.keys().copied().collect();
                self.pair.activate(path, &all);
            }
        }
    }

    fn hiccup(&mut self, path: usize, time: Duration) {
        let Some(path) = self.path(path).filter(|path| !self.pair.wires[path].is_dead()) else { return };
        let both = |pair: &mut Pair, stalled| {
            if let Some(wire) = pair.wires.get_mut(&path) {
                (wire.stalled_up, wire.stalled_down) = (stalled, stalled);
            }
        };
        // Data that was held up before has arrived by now.
        self.pair.settle();
        both(&mut self.pair, true);
        self.pair.advance(time.min(kernel::RTT));
        both(&mut self.pair, false);
        self.pair.settle();
    }

    fn stall(&mut self, path: usize, up: bool, down: bool) {
        if let Some(path) = self.path(path) {
            let wire = self.pair.wire(path);
            (wire.stalled_up, wire.stalled_down) = (up, down);
        }
    }

    fn path(&self, index: usize) -> Option<PathId> {
        let mut paths: Vec<_> = self.pair.wires.keys().copied().collect();
        paths.sort_unstable();
        if paths.is_empty() { None } else { Some(paths[index % paths.len()]) }
    }

    fn send(&mut self, direction: Direction, size: usize) {
        let side = direction as usize;
        let number = self.next_number[side];
        let bytes = packet(number, size);
        let sent = match direction {
            Direction::Up => self.pair.send_up(&bytes),
            Direction::Down if self.pair.server.is_some() => self.pair.send_down(&bytes),
            // A relay without the session cannot accept it.
            Direction::Down => return,
        };
        self.next_number[side] += 1;
        match sent {
            Enqueue::Queued => self.accepted[side].push(number),
            Enqueue::Dropped(_) => self.refused[side] += 1,
        }
    }

    /// Opens a working path and makes it active; bytes that are still on the old paths arrive
    /// afterwards.
    pub(crate) fn heal(&mut self) {
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

    /// Returns the client's open paths on which nothing arrives in at least one direction.
    pub(crate) fn dead_paths(&self) -> Vec<PathId> {
        let open = |path: &PathId| self.pair.client.path_stats(*path).is_some();
        self.dead_wires().into_iter().filter(open).collect()
    }

    /// Returns the paths of the wires on which nothing arrives in at least one direction.
    pub(crate) fn dead_wires(&self) -> Vec<PathId> {
        self.pair.wires.iter().filter(|(_, wire)| wire.is_dead()).map(|(path, _)| *path).collect()
    }

    /// Returns the paths reported as unresponsive since the last call, by the client and by the
    /// relay.
    pub(crate) fn unresponsive_paths(&mut self) -> [Vec<PathId>; 2] {
        let unresponsive = |event| match event {
            Event::PathUnresponsive { path, .. } => Some(path),
            _ => None,
        };
        let Pair { client_events, server_events, .. } = &mut self.pair;
        [client_events, server_events].map(|events| events.drain(..).filter_map(unresponsive).collect())
    }

    /// Returns the counters of the sender and of the receiver of one direction.
    pub(crate) fn stats(&mut self, direction: Direction) -> (Stats, Stats) {
        let (client, server) = (self.pair.client.stats().clone(), self.pair.server().stats().clone());
        if direction == Direction::Up { (client, server) } else { (server, client) }
    }

    pub(crate) fn arrived(&self, direction: Direction) -> Vec<u32> {
        numbers(if direction == Direction::Up { &self.pair.at_server } else { &self.pair.at_client })
    }
}
