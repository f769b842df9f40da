//! Two ends driven by the tests: a client, a relay and the wires between them, with a virtual
//! clock.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of this module")]

pub(crate) mod kernel;
pub(crate) mod packets;
pub(crate) mod wire;
pub(crate) mod world;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use mobile_proto::{
    Budget, CloseCode, Enqueue, Event, HelloReader, InnerPacket, Limits, PathId, PushConfig, Session,
    SessionId, Unacknowledged,
};

use packets::checked;
pub(crate) use packets::{all, number, numbers, packet, with_offload};
pub(crate) use wire::{Direction, Wire};

// Larger than the bound: the tests read and set these values one by one, for both ends.
/// The sessions of a client and a relay, with the wires between them.
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) client: Session,
    pub(crate) server: Option<Session>,
    pub(crate) limits: Limits,
    pub(crate) config: PushConfig,
    pub(crate) wires: BTreeMap<PathId, Wire>,
    /// Packets that were delivered at the relay, and at the client.
    pub(crate) at_server: Vec<Vec<u8>>,
    pub(crate) at_client: Vec<Vec<u8>>,
    pub(crate) client_events: VecDeque<Event>,
    pub(crate) server_events: VecDeque<Event>,
    /// The number of packets delivered so far each time that an end started to count anew: with a
    /// new session at the relay, or with a new agent or another epoch at the client.
    pub(crate) server_lives: Vec<usize>,
    pub(crate) client_lives: Vec<usize>,
    /// Whether the sessions are given transport samples (TCP statistics).
    pub(crate) samples: bool,
    epochs: u64,
    clients: u8,
}

pub(crate) fn config() -> PushConfig {
    PushConfig {
        ipv4: Some([10, 77, 0, 2].into()),
        ipv6: Some("fd00:77::2".parse().expect("an address")),
        mtu: 1400,
        dns: vec![[10, 77, 0, 1].into()],
        relay: None,
    }
}

impl Pair {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            now: Instant::now() + Duration::from_secs(100_000),
            client: Session::client(SessionId([1; 16]), limits.clone()),
            server: None,
            limits,
            config: config(),
            wires: BTreeMap::new(),
            at_server: Vec::new(),
            at_client: Vec::new(),
            client_events: VecDeque::new(),
            server_events: VecDeque::new(),
            server_lives: Vec::new(),
            client_lives: Vec::new(),
            samples: false,
            epochs: 100,
            clients: 1,
        }
    }

    /// Creates a pair whose path 1 is active, with nothing left to be sent or delivered.
    pub(crate) fn connected(limits: Limits) -> Self {
        let mut pair = Self::new(limits);
        pair.open(PathId(1));
        pair.settle();
        pair.activate(PathId(1), &[]);
        pair.settle();
        pair.client_events.clear();
        pair.server_events.clear();
        pair
    }

    pub(crate) fn open(&mut self, path: PathId) {
        self.client.open_path(self.now, path);
        let wire =
            Wire { client_open: true, server_open: true, hello: Some(HelloReader::new()), ..Wire::default() };
        self.wires.insert(path, wire);
    }

    pub(crate) fn activate(&mut self, path: PathId, keep: &[PathId]) {
        self.client.activate(self.now, path, keep);
        self.poll_events();
    }

    pub(crate) fn server(&mut self) -> &mut Session {
        self.server.as_mut().expect("a HELLO has arrived")
    }

    pub(crate) fn wire(&mut self, path: PathId) -> &mut Wire {
        self.wires.get_mut(&path).expect("the wire exists")
    }

    pub(crate) fn send_up(&mut self, packet: &[u8]) -> Enqueue {
        self.client.enqueue(self.now, with_offload(packet))
    }

    pub(crate) fn send_down(&mut self, packet: &[u8]) -> Enqueue {
        let now = self.now;
        self.server().enqueue(now, with_offload(packet))
    }

    /// Cuts a wire: both ends notice, and data in flight is lost.
    pub(crate) fn cut(&mut self, path: PathId) {
        self.client.path_lost(path);
        if let Some(server) = &mut self.server {
            server.path_lost(path);
        }
        self.wires.remove(&path);
    }

    /// Loses a path at the client only; data in flight upwards still arrives.
    pub(crate) fn lose_at_client(&mut self, path: PathId) {
        self.client.path_lost(path);
        if let Some(wire) = self.wires.get_mut(&path) {
            wire.client_open = false;
        }
    }

    /// Kills and restarts the relay.
    pub(crate) fn restart_server(&mut self) {
        self.server = None;
        self.wires.values_mut().for_each(|wire| wire.server_open = false);
    }

    /// Kills and restarts the agent.
    pub(crate) fn restart_client(&mut self) {
        self.clients += 1;
        self.client_lives.push(self.at_client.len());
        self.client = Session::client(SessionId([self.clients; 16]), self.limits.clone());
        self.wires.values_mut().for_each(|wire| wire.client_open = false);
    }

    /// Lets the client and the relay write up to `limit` bytes on each path.
    pub(crate) fn transmit(&mut self, limit: usize) {
        for (&path, wire) in &mut self.wires {
            let mut out = Vec::new();
            if wire.client_open && !wire.full {
                self.client.poll_transmit(self.now, path, &mut out, Budget::new(limit));
                wire.at_client.sent(out.len());
                wire.up.extend(out.drain(..));
                wire.client_open = self.client.paths().any(|open| open == path);
            }
            if wire.server_open
                && let Some(server) = &mut self.server
            {
                server.poll_transmit(self.now, path, &mut out, Budget::new(limit));
                wire.at_server.sent(out.len());
                wire.down.extend(out.drain(..));
                wire.server_open = wire.hello.is_some() || server.paths().any(|open| open == path);
            }
        }
        self.poll_events();
    }

    /// Delivers up to `count` bytes of a wire. Returns how many bytes were delivered.
    pub(crate) fn deliver(&mut self, path: PathId, direction: Direction, count: usize) -> usize {
        let Some(wire) = self.wires.get_mut(&path) else { return 0 };
        let queue = if direction == Direction::Up { &mut wire.up } else { &mut wire.down };
        let count = count.min(queue.len());
        let bytes: Vec<u8> = queue.drain(..count).collect();
        let sender = if direction == Direction::Up { &mut wire.at_client } else { &mut wire.at_server };
        sender.arrived(count);
        if count > 0 {
            match direction {
                Direction::Up => self.arrive_at_server(path, &bytes),
                Direction::Down if wire.client_open => {
                    let at_client = &mut self.at_client;
                    let mut deliver = |packet: InnerPacket<'_>| at_client.push(checked(*packet));
                    self.client.handle_input(self.now, path, &bytes, &mut deliver).expect("valid input");
                }
                Direction::Down => {}
            }
        }
        self.poll_events();
        self.end_of_stream(path);
        count
    }

    /// Writes and delivers bytes in both directions until none is left that can be delivered.
    pub(crate) fn settle(&mut self) {
        loop {
            self.transmit(usize::MAX);
            let paths: Vec<_> = self.wires.keys().copied().collect();
            let mut moved = 0;
            for path in paths {
                for direction in [Direction::Up, Direction::Down] {
                    let wire = self.wires.get(&path);
                    let stalled = wire.is_none_or(|wire| match direction {
                        Direction::Up => wire.stalled_up,
                        Direction::Down => wire.stalled_down,
                    });
                    if !stalled {
                        moved += self.deliver(path, direction, usize::MAX);
                    }
                }
            }
            if moved == 0 {
                return;
            }
        }
    }

    /// Advances the clock by `time`; timers fire when they are due.
    pub(crate) fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            self.take_samples();
            let due = self.client.poll_timeout().into_iter();
            let due = due.chain(self.server.as_ref().and_then(Session::poll_timeout)).min();
            match due.filter(|&due| due <= end) {
                Some(due) => {
                    self.now = self.now.max(due);
                    self.fire();
                }
                None => break,
            }
        }
        self.now = end;
        self.settle();
    }

    /// Runs the timers of both ends that are due now, once, and checks that nothing is due after
    /// that.
    pub(crate) fn fire(&mut self) {
        self.take_samples();
        self.client.handle_timeout(self.now);
        let left = self.client.poll_timeout();
        assert!(left.is_none_or(|at| at > self.now), "the client's timer spins");
        if let Some(server) = &mut self.server {
            server.handle_timeout(self.now);
            let left = server.poll_timeout();
            assert!(left.is_none_or(|at| at > self.now), "the relay's timer spins");
        }
        self.poll_events();
    }

    /// Gives each session the transport samples (TCP statistics) that it asks for, of each path.
    fn take_samples(&mut self) {
        for (&path, wire) in self.wires.iter_mut().filter(|_| self.samples) {
            // An acknowledgement comes back at once unless the direction is stalled.
            if !wire.stalled_down {
                wire.at_client.acknowledge(self.now);
            }
            if !wire.stalled_up {
                wire.at_server.acknowledge(self.now);
            }
            if wire.client_open && self.client.wants_sample(self.now, path) {
                self.client.transport_sample(self.now, path, wire.at_client.sample(self.now));
            }
            if let Some(server) = self.server.as_mut().filter(|_| wire.server_open)
                && server.wants_sample(self.now, path)
            {
                server.transport_sample(self.now, path, wire.at_server.sample(self.now));
            }
        }
    }

    pub(crate) fn poll_events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            if let Event::PathClosed { path, .. } = event
                && let Some(wire) = self.wires.get_mut(&path)
            {
                wire.client_open = false;
            }
            if let Event::PathReady { resumed: false, .. } = event {
                self.client_lives.push(self.at_client.len());
            }
            self.client_events.push_back(event);
        }
        while let Some(event) = self.server.as_mut().and_then(Session::poll_event) {
            if let Event::PathClosed { path, .. } = event
                && let Some(wire) = self.wires.get_mut(&path)
            {
                wire.server_open = false;
            }
            self.server_events.push_back(event);
        }
    }

    /// Handles decrypted bytes as a relay does: creates the session on HELLO, accepts the path, and
    /// passes all further bytes to the session.
    fn arrive_at_server(&mut self, path: PathId, bytes: &[u8]) {
        let Some(wire) = self.wires.get_mut(&path).filter(|wire| wire.server_open) else { return };
        let mut rest = bytes.to_vec();
        if let Some(reader) = &mut wire.hello {
            let Some((hello, after)) = reader.feed(bytes).expect("valid hello") else { return };
            (wire.hello, rest) = (None, after);
            let mut held = Unacknowledged::default();
            if self.server.as_ref().is_some_and(|server| server.id() != hello.session) {
                held = self.server.take().map(Session::into_unacknowledged).unwrap_or_default();
                for (&other, wire) in &mut self.wires {
                    wire.server_open &= other == path || wire.hello.is_some();
                }
            }
            let (epochs, limits, config) = (&mut self.epochs, &self.limits, &self.config);
            let (lives, arrived) = (&mut self.server_lives, self.at_server.len());
            let server = self.server.get_or_insert_with(|| {
                *epochs += 1;
                lives.push(arrived);
                Session::server(hello.session, *epochs, limits.clone(), config.clone())
            });
            server.requeue(held);
            server.accept_path(self.now, &hello).expect("room for the path");
        }
        if let Some(server) = &mut self.server {
            let at_server = &mut self.at_server;
            let mut deliver = |packet: InnerPacket<'_>| at_server.push(checked(*packet));
            server.handle_input(self.now, path, &rest, &mut deliver).expect("valid input");
        }
    }

    /// Reports the end of the stream to each end that has read all bytes of a peer that closed the
    /// connection.
    fn end_of_stream(&mut self, path: PathId) {
        let Some(wire) = self.wires.get_mut(&path) else { return };
        if wire.server_open && !wire.client_open && wire.up.is_empty() && !wire.stalled_up {
            wire.server_open = false;
            if let Some(server) = &mut self.server {
                server.path_lost(path);
            }
        }
        if wire.client_open && !wire.server_open && wire.down.is_empty() && !wire.stalled_down {
            wire.client_open = false;
            self.client.path_lost(path);
        }
        if !wire.client_open && !wire.server_open {
            self.wires.remove(&path);
        }
    }
}

/// Sends packets of 100 bytes from the client.
pub(crate) fn up(pair: &mut Pair, range: Range<u32>) {
    range.for_each(|n| assert_eq!(pair.send_up(&packet(n, 100)), Enqueue::Queued));
}

/// Sends packets of 100 bytes from the relay.
pub(crate) fn down(pair: &mut Pair, range: Range<u32>) {
    range.for_each(|n| assert_eq!(pair.send_down(&packet(n, 100)), Enqueue::Queued));
}

/// Returns the code with which a path was reported as closed.
pub(crate) fn closed(events: &VecDeque<Event>, path: PathId) -> Option<CloseCode> {
    events.iter().find_map(|event| match event {
        Event::PathClosed { path: closed, code } if *closed == path => Some(*code),
        _ => None,
    })
}
