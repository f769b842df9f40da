//! A pair that lives through a script, and what was handed to it.

use std::time::Duration;

use mobile_proto::{CloseCode, Enqueue, Event, Limits, PathId, Stats};
use proptest::prelude::*;

use super::{Pair, Way, kernel, numbers, packet};

/// One step. A path is chosen among those that there are.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Send {
        way: Way,
        count: u32,
        size: usize,
    },
    /// With ACTIVATE right behind HELLO, or not.
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
        way: Way,
        count: usize,
    },
    Tick {
        millis: u64,
    },
    /// Time passes while everything that can move does.
    Pass {
        millis: u64,
    },
    /// Nothing gets through any more; what is on the way stays there.
    Blackhole {
        path: usize,
        up: bool,
        down: bool,
    },
    Restore {
        path: usize,
    },
    /// A pause shorter than the round-trip time.
    Hiccup {
        path: usize,
        millis: u64,
    },
    RestartServer,
    RestartClient,
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Up), Just(Way::Down)]
}

fn path() -> impl Strategy<Value = usize> {
    0..4_usize
}

/// What happens to paths, and what the client does with them.
fn change() -> impl Strategy<Value = Op> {
    let blackhole =
        (path(), 0..3_u8).prop_map(|(path, which)| Op::Blackhole { path, up: which != 1, down: which != 0 });
    prop_oneof![
        6 => (way(), 1..12_u32, 4..400_usize).prop_map(|(way, count, size)| Op::Send { way, count, size }),
        3 => any::<bool>().prop_map(|early| Op::Open { early }),
        4 => (path(), any::<bool>()).prop_map(|(path, keep_all)| Op::Activate { path, keep_all }),
        1 => path().prop_map(|path| Op::Close { path }),
        1 => path().prop_map(|path| Op::LoseAtClient { path }),
        1 => path().prop_map(|path| Op::Cut { path }),
        2 => blackhole,
        2 => path().prop_map(|path| Op::Restore { path }),
    ]
}

/// Anything but restarts, with bytes that move in pieces and in any order of paths.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => change(),
        8 => (1..3000_usize).prop_map(|limit| Op::Transmit { limit }),
        12 => (path(), way(), 1..2000_usize).prop_map(|(path, way, count)| Op::Deliver { path, way, count }),
        3 => (1..3000_u64).prop_map(|millis| Op::Tick { millis }),
        1 => (1..500_u64).prop_map(|millis| Op::Pass { millis }),
    ]
}

pub(crate) fn op_with_restarts() -> impl Strategy<Value = Op> {
    prop_oneof![30 => op(), 1 => Just(Op::RestartServer), 1 => Just(Op::RestartClient)]
}

/// Whatever is not in a blackhole arrives within the RTT.
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

/// A pair, and what was handed to it.
pub(crate) struct World {
    pub(crate) pair: Pair,
    next_path: u32,
    next_number: [u32; 2],
    /// The numbers that `enqueue` accepted, per way.
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
            Op::Send { way, count, size } => (0..count).for_each(|_| self.send(way, size)),
            Op::Open { early } => {
                // An agent has a few uplinks.
                if pair.wires.len() < 4 {
                    let path = PathId(self.next_path);
                    self.next_path += 1;
                    pair.open(path);
                    if early {
                        let all: Vec<_> = pair.wires.keys().copied().collect();
                        pair.activate(path, &all);
                    }
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
            Op::Deliver { path, way, count } => {
                if let Some(path) = self.path(path) {
                    self.pair.deliver(path, way, count);
                }
            }
            Op::Tick { millis } => {
                pair.now += Duration::from_millis(millis);
                pair.fire();
            }
            Op::Pass { millis } => pair.advance(Duration::from_millis(millis)),
            Op::Blackhole { path, up, down } => self.stall(path, up, down),
            Op::Restore { path } => self.stall(path, false, false),
            Op::Hiccup { path, millis } => {
                let Some(path) = self.path(path).filter(|path| !self.pair.wires[path].is_dead()) else {
                    return;
                };
                let both = |pair: &mut Pair, stalled| {
                    if let Some(wire) = pair.wires.get_mut(&path) {
                        (wire.stalled_up, wire.stalled_down) = (stalled, stalled);
                    }
                };
                // What was held up before has arrived by now.
                self.pair.settle();
                both(&mut self.pair, true);
                self.pair.advance(Duration::from_millis(millis).min(kernel::RTT));
                both(&mut self.pair, false);
                self.pair.settle();
            }
            Op::RestartServer => pair.restart_server(),
            Op::RestartClient => pair.restart_client(),
        }
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

    /// The paths that nothing gets through, as far as the client still has them.
    pub(crate) fn dead_paths(&self) -> Vec<PathId> {
        let open = |path: &PathId| self.pair.client.path_stats(*path).is_some();
        self.dead_wires().into_iter().filter(open).collect()
    }

    /// The wires that nothing gets through.
    pub(crate) fn dead_wires(&self) -> Vec<PathId> {
        self.pair.wires.iter().filter(|(_, wire)| wire.is_dead()).map(|(path, _)| *path).collect()
    }

    /// The paths suspected since this was last asked, by the client and by the relay.
    pub(crate) fn suspected(&mut self) -> [Vec<PathId>; 2] {
        let suspect = |event| match event {
            Event::PathUnresponsive { path, .. } => Some(path),
            _ => None,
        };
        let Pair { client_events, server_events, .. } = &mut self.pair;
        [client_events, server_events].map(|events| events.drain(..).filter_map(suspect).collect())
    }

    /// The counters of the sender and of the receiver of one way.
    pub(crate) fn stats(&mut self, way: Way) -> (Stats, Stats) {
        let (client, server) = (self.pair.client.stats().clone(), self.pair.server().stats().clone());
        if way == Way::Up { (client, server) } else { (server, client) }
    }

    pub(crate) fn arrived(&self, way: Way) -> Vec<u32> {
        numbers(if way == Way::Up { &self.pair.at_server } else { &self.pair.at_client })
    }
}
