//! A session: both sides of the protocol in one type.
//!
//! This module has the public methods and the lifecycle of the paths. Its submodules:
//!
//! - `input` parses received bytes,
//! - `transmit` writes the bytes to send,
//! - `timers` handles timeouts,
//! - `liveness` acts on the health of the paths,
//! - `freeze` keeps inner TCP alive during an outage,
//! - `takeover` passes the remaining state to the next session,
//! - `events` queues the events for the caller.

mod events;
mod freeze;
mod input;
mod liveness;
mod takeover;
mod timers;
mod transmit;

use std::time::{Duration, Instant};

pub use takeover::Unacknowledged;

use crate::buffer_pool::BufferPool;
use crate::compression::Heuristic;
use crate::message::Activate;
use crate::path::{Path, PathState, RelayPath};
use crate::queue::{Record, SegmentRange, SendQueue};
use crate::replay::ReplayBuffer;
use crate::segment_budget::SegmentBudget;
use crate::{
    CloseCode, Hello, Limits, MAX_PACKET, Offload, Packet, PathId, ProtocolError, PushConfig, SessionId,
    Stats,
};

/// The result of [`Session::enqueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Enqueue {
    /// The packet was accepted and will be sent.
    Queued,
    /// The packet was dropped and counted.
    Dropped(DropReason),
}

/// The reason why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The queue has no room.
    QueueFull,
    /// In an outage, an earlier packet with the same TCP data is already held; the new packet may
    /// have replaced it.
    Duplicate,
    /// The packet is empty or longer than [`MAX_PACKET`].
    BadLength,
}

/// A change in a session of which the caller has to know, or on which it has to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Client: WELCOME arrived, and the path can be activated.
    PathReady {
        /// The path that is ready.
        path: PathId,
        /// Whether the relay knew the session. If false (a new session, or a restarted relay), the
        /// unacknowledged records were renumbered and are sent again.
        resumed: bool,
    },
    /// Client: the relay's configuration is new or has changed.
    Config(PushConfig),
    /// Both sides: transmission moved to this path.
    PathActivated {
        /// The path that is active.
        path: PathId,
        /// The path that was active before, if any.
        previous: Option<PathId>,
        /// Number of records that are sent again.
        replayed: u64,
        /// Number of packets dropped on this side since the previous switch.
        dropped: u64,
    },
    /// Client: the relay has answered the activation of the path that was activated last.
    PathConfirmed {
        /// The path that was confirmed.
        path: PathId,
    },
    /// The path is closed, by the peer or by this side. The caller drops the transport.
    PathClosed {
        /// The path that was closed.
        path: PathId,
        /// The reason for closing it.
        code: CloseCode,
    },
    /// An answer is overdue on the path, which may still be alive: the session sends small segments
    /// to find out. Reported once each time that this happens.
    PathProbing {
        /// The path that is probed.
        path: PathId,
    },
    /// The path is dead by all evidence: several segments went unanswered, or nothing was received
    /// for too long. Reported once, until [`Event::PathRecovered`].
    PathUnresponsive {
        /// The path that is unresponsive.
        path: PathId,
        /// The time for which nothing sent on the path was answered.
        silent_for: Duration,
    },
    /// A path that was unresponsive delivers again.
    PathRecovered {
        /// The path that recovered.
        path: PathId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// One session of a client or of a relay.
///
/// The caller passes in the time and received bytes. After any call it may have to [poll
/// events](Self::poll_event), [transmit](Self::poll_transmit) on each path, and set its timer
/// [again](Self::poll_timeout).
#[derive(Debug)]
pub struct Session {
    role: Role,
    id: SessionId,
    limits: Limits,
    /// The epoch, a random number of the session object at the relay; 0 in a client until the first
    /// WELCOME.
    epoch: u64,
    config: Option<PushConfig>,
    config_version: u64,
    /// The open paths, in no order. A session has few paths, so a list is faster than a map.
    paths: Vec<Path>,
    active: Option<PathId>,
    /// The number of the client's latest activation of a path; at the relay, the highest number
    /// received.
    switch: u64,
    buffers: BufferPool,
    queue: SendQueue,
    replay: ReplayBuffer,
    /// The number of the next received record to deliver.
    rx_next: u64,
    ack: transmit::AckState,
    freeze: freeze::Freeze,
    compression_heuristic: Heuristic,
    segment_budget: SegmentBudget,
    events: events::Events,
    /// Client: when the session last acted on DOUBT, the relay's report that it gets no answers on
    /// the active path.
    last_doubt: Option<Instant>,
    stats: Stats,
    /// The value of [`Stats::dropped`] when transmission last moved to another path.
    dropped_before: u64,
}

impl Session {
    /// Creates a client's session. `id` has to be random and new for each start of the agent.
    #[must_use]
    pub fn client(id: SessionId, limits: Limits) -> Self {
        Self::new(Role::Client, id, 0, limits, None)
    }

    /// Creates a relay's session. `epoch` has to be random, not zero, and new for each session
    /// object.
    #[must_use]
    pub fn server(id: SessionId, epoch: u64, limits: Limits, config: PushConfig) -> Self {
        Self::new(Role::Server, id, epoch, limits, Some(config))
    }

    fn new(role: Role, id: SessionId, epoch: u64, limits: Limits, config: Option<PushConfig>) -> Self {
        let queue = if limits.fair { SendQueue::fair(id.0, limits.target_delay) } else { SendQueue::fifo() };
        Self {
            role,
            id,
            limits,
            epoch,
            config,
            config_version: 0,
            paths: Vec::new(),
            active: None,
            switch: 0,
            buffers: BufferPool::default(),
            queue,
            replay: ReplayBuffer::default(),
            rx_next: 0,
            ack: transmit::AckState::default(),
            freeze: freeze::Freeze::default(),
            compression_heuristic: Heuristic::default(),
            segment_budget: SegmentBudget::default(),
            events: events::Events::default(),
            last_doubt: None,
            stats: Stats::default(),
            dropped_before: 0,
        }
    }

    /// Client: queues HELLO on a new path. An open path with the same id is dropped.
    pub fn open_path(&mut self, now: Instant, path: PathId) {
        self.remove_path(path);
        let mut new = Path::connect(now, path, self.epoch);
        let (session, epoch, switch) = (self.id, self.epoch, self.switch);
        let compression = self.limits.compression;
        Hello { session, epoch, path, switch, compression }.put(&mut new.control);
        // An ACTIVATE that still waits will have a higher switch counter than this HELLO, so it has
        // to name the path.
        let clients = self.paths.iter_mut().filter_map(|path| path.side.client_mut());
        for keep in clients.filter_map(|client| client.pending_activation.as_mut()) {
            if keep.len() < Activate::MAX_KEEP && !keep.contains(&path) {
                keep.push(path);
            }
        }
        self.add(new);
    }

    /// Relay: accepts the path that sent `hello` and queues WELCOME on it.
    ///
    /// An open path with the same id is closed with [`Event::PathClosed`]. So the caller has to
    /// handle the events before it stores the new transport under the id. If the maximum number of
    /// paths is reached, the standby path that was silent for the longest time is closed.
    ///
    /// # Errors
    /// If this is a client's session, if `hello` is for another session, or if no path can be
    /// closed.
    pub fn accept_path(&mut self, now: Instant, hello: &Hello) -> Result<(), ProtocolError> {
        let path = hello.path;
        if self.role != Role::Server {
            return Err(ProtocolError::NotAServer(path));
        }
        if hello.session != self.id {
            return Err(ProtocolError::WrongSession { path, got: hello.session, expected: self.id });
        }
        if self.find(path).is_some() {
            self.close_and_report(path, CloseCode::Replaced);
        }
        self.make_room_for(path)?;
        let stale_epoch = hello.epoch != self.epoch;
        let relay = RelayPath { switch: hello.switch, stale_epoch, ..RelayPath::default() };
        let mut new = Path::accept(now, path, relay);
        new.set_compression(hello.compression && self.limits.compression);
        self.put_welcome(new.tx.compression.is_on(), &mut new.control);
        self.add(new);
        Ok(())
    }

    /// Client: makes a path active. The relay keeps `path` and the paths in `keep`, and frees all
    /// other paths except for those opened later than this call.
    ///
    /// Transmission moves to `path` and starts with the oldest unacknowledged record. If `path` is
    /// already active, only the list of paths to keep is sent.
    ///
    /// The path need not be ready ([`Event::PathReady`]). If the relay's epoch is known, everything
    /// is sent directly after HELLO, one round trip earlier. If the epoch is unknown, the
    /// activation follows when WELCOME arrives.
    pub fn activate(&mut self, now: Instant, path: PathId, keep: &[PathId]) {
        let chosen = self.find(path).filter(|&index| !self.paths[index].is_closing());
        let Some(chosen) = chosen.filter(|_| self.role == Role::Client) else { return };
        // This activation replaces one that still waits.
        let clients = self.paths.iter_mut().filter_map(|path| path.side.client_mut());
        clients.for_each(|client| client.pending_activation = None);
        let is_ready = self.paths[chosen].is_ready();
        if !is_ready && let Some(client) = self.paths[chosen].side.client_mut() {
            client.pending_activation = Some(keep.iter().copied().take(Activate::MAX_KEEP).collect());
        }
        if is_ready || self.epoch != 0 {
            self.send_activate(now, chosen, keep);
        }
    }

    /// Queues CLOSE on a path, which is removed once [`Self::poll_transmit`] has written the frame.
    /// Until then its input is still processed. If the path takes no more bytes, it is removed
    /// after 5 seconds.
    pub fn close_path(&mut self, now: Instant, path: PathId, code: CloseCode) {
        if let Some(index) = self.find(path) {
            self.paths[index].close(now, code, PathState::Closing);
            self.deactivate(path);
        }
    }

    /// Removes a path whose transport has failed. The session keeps its unacknowledged records.
    pub fn path_lost(&mut self, _now: Instant, path: PathId) {
        self.remove_path(path);
    }

    /// Queues a packet from the TUN for transmission. Without an active path the packet waits for
    /// one.
    pub fn enqueue<'a>(&mut self, now: Instant, packet: impl Into<Packet<'a>>) -> Enqueue {
        let packet = packet.into();
        match self.admit_packet(now, packet) {
            Ok(range) => {
                let bytes = self.buffers.copy(packet.bytes);
                self.push(Record::new(bytes, packet.offload, now, range))
            }
            Err(reason) => Enqueue::Dropped(reason),
        }
    }

    /// Queues the packet in the first `length` bytes of `buffer`, like [`enqueue`](Self::enqueue).
    ///
    /// A long packet is not copied: `buffer` is replaced with another buffer, at least as long as
    /// it was, with unspecified content.
    pub fn enqueue_in_place(
        &mut self,
        now: Instant,
        buffer: &mut Vec<u8>,
        length: usize,
        offload: Offload,
    ) -> Enqueue {
        let bytes = buffer.get(..length).unwrap_or_default();
        match self.admit_packet(now, Packet { bytes, offload }) {
            Ok(range) => {
                let adopted = self.buffers.adopt(buffer, length);
                self.push(Record::new(adopted, offload, now, range))
            }
            Err(reason) => Enqueue::Dropped(reason),
        }
    }

    fn admit_packet(&mut self, now: Instant, packet: Packet<'_>) -> Result<Option<SegmentRange>, DropReason> {
        if packet.bytes.is_empty() || packet.len() > MAX_PACKET {
            self.stats.dropped_bad_length += 1;
            return Err(DropReason::BadLength);
        }
        let cost = self.buffers.capacity_for(packet.len()) + size_of::<Record>();
        match self.admit(now, packet, cost) {
            freeze::Admission::Queue(range) => Ok(range),
            freeze::Admission::Drop(reason) => Err(reason),
        }
    }

    fn push(&mut self, mut record: Record) -> Enqueue {
        self.count_enqueued(record.packet.len());
        match self.queue.supersede(&mut record) {
            Some(needless) => {
                self.stats.thinned += 1;
                self.buffers.recycle(needless);
            }
            None => self.queue.push(record),
        }
        Enqueue::Queued
    }

    /// Returns whether the caller should continue to read packets from the TUN.
    ///
    /// While the active path sends packets almost without delay, the session asks for few in
    /// advance. On a slower path, packets should wait in the session's queue as long as they fit,
    /// because a keystroke overtakes a bulk transfer there. Without an active path, or with an
    /// unresponsive one, packets are accepted and the session drops those beyond its limits,
    /// because the TUN must never block an application for a whole outage.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let spare = self.limits.queue_bytes.saturating_sub(MAX_PACKET + size_of::<Record>());
        self.is_cut_off()
            || self.queue.is_empty()
            || self.queue.cost()
                < if self.queue.is_delayed() { spare } else { self.limits.active_queue_bytes.min(spare) }
    }

    /// Returns whether flows take turns, so that little should be queued in the transports below
    /// the session ([`Limits::fair`]).
    #[must_use]
    pub fn is_fair(&self) -> bool {
        self.limits.fair
    }

    /// Sets whether the rate of the active path is growing. Meanwhile no packet is dropped for its
    /// delay ([`Limits::target_delay`]), because the delay does not show that its sender is too
    /// fast.
    pub fn set_growing(&mut self, growing: bool) {
        self.queue.set_growing(growing);
    }

    /// Returns the next event. Only the latest event is queued of those that report a state (the
    /// configuration, the active path, the health of a path): it replaces an earlier one that the
    /// caller has not polled.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Returns the number of queued events. A caller that cannot poll them now must stop reading
    /// from the paths.
    #[must_use]
    pub fn pending_events(&self) -> usize {
        self.events.len()
    }

    /// Relay: sends a new configuration on all paths.
    pub fn set_config(&mut self, config: PushConfig) {
        if self.role == Role::Server && self.config.as_ref() != Some(&config) {
            self.config = Some(config);
            self.config_version += 1;
            let relays = self.paths.iter_mut().filter_map(|path| path.side.relay_mut());
            relays.for_each(|relay| relay.config_due = true);
        }
    }

    /// Returns the session's counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Returns the open paths, in no order.
    pub fn paths(&self) -> impl Iterator<Item = PathId> + '_ {
        self.paths.iter().map(|path| path.id)
    }

    /// Returns the session's id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Returns the path on which packets are sent, if any.
    #[must_use]
    pub fn active_path(&self) -> Option<PathId> {
        self.active
    }

    /// Returns the relay's configuration, once it is known.
    #[must_use]
    pub fn config(&self) -> Option<&PushConfig> {
        self.config.as_ref()
    }

    /// Returns the relay's epoch; 0 while it is unknown.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the bytes of packets sent and not acknowledged.
    #[must_use]
    pub fn unacked_bytes(&self) -> usize {
        self.replay.bytes()
    }

    /// Returns the bytes of packets not sent yet.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// Adds a path. Grows the list by one, because `Vec` would reserve room for four paths at once,
    /// while nearly every session has one or two, and a relay has thousands of sessions.
    fn add(&mut self, path: Path) {
        self.paths.reserve_exact(1);
        self.paths.push(path);
    }

    fn find(&self, path: PathId) -> Option<usize> {
        self.paths.iter().position(|open| open.id == path)
    }

    fn make_room_for(&mut self, path: PathId) -> Result<(), ProtocolError> {
        if self.paths.len() >= self.limits.max_paths {
            let standby = self.paths.iter().filter(|open| self.active != Some(open.id));
            let quietest = standby.min_by_key(|open| open.stats.last_heard).map(|open| open.id);
            let max = self.limits.max_paths;
            self.close_and_report(
                quietest.ok_or(ProtocolError::TooManyPaths { path, max })?,
                CloseCode::Replaced,
            );
        }
        Ok(())
    }

    /// Removes a path without an event.
    fn remove_path(&mut self, path: PathId) {
        if let Some(index) = self.find(path) {
            self.paths.swap_remove(index);
        }
        self.deactivate(path);
    }

    /// Removes a path and reports it to the caller.
    fn close_and_report(&mut self, path: PathId, code: CloseCode) {
        self.remove_path(path);
        self.events.push(Event::PathClosed { path, code });
    }

    /// Closes the other paths for which `doomed` returns true, and reports them to the caller.
    /// Returns the new index of the path at `index`.
    fn close_others(&mut self, index: usize, code: CloseCode, doomed: impl Fn(&Path) -> bool) -> usize {
        let (mut at, mut kept) = (0, 0);
        let mut closed = Vec::new();
        self.paths.retain(|path| {
            let keep = at == index || !doomed(path);
            if !keep {
                closed.push(path.id);
            }
            kept += usize::from(keep && at < index);
            at += 1;
            keep
        });
        for path in closed {
            self.deactivate(path);
            self.events.push(Event::PathClosed { path, code });
        }
        kept
    }

    fn deactivate(&mut self, path: PathId) {
        if self.active == Some(path) {
            self.active = None;
        }
    }

    /// Queues ACTIVATE on a path and moves transmission to it.
    fn send_activate(&mut self, now: Instant, index: usize, keep: &[PathId]) {
        self.switch += 1;
        let (epoch, switch, rx_next) = (self.epoch, self.switch, self.rx_next);
        let activate = Activate { epoch, switch, rx_next, keep: keep.to_vec() };
        activate.put(&mut self.paths[index].control);
        self.request_ping(now, index);
        let path = &mut self.paths[index];
        if let Some(client) = path.side.client_mut() {
            client.confirming_nonce = Some(path.pings.next_nonce());
            client.activated_early = path.state == PathState::Connecting && client.hello_sent_at.is_none();
        }
        let id = path.id;
        self.ack.reset();
        self.switch_to(id);
    }

    /// Requests that a PING is sent on a path.
    fn request_ping(&mut self, now: Instant, index: usize) {
        let unanswered = self.is_unanswered(&self.paths[index]);
        self.paths[index].request_ping(now, unanswered);
    }

    /// Moves transmission to `path`. If it is already active, its stream continues unchanged.
    fn switch_to(&mut self, path: PathId) {
        if self.active != Some(path) {
            let previous = self.active.replace(path);
            let replayed = self.replay.rewind();
            let dropped =
                self.stats.dropped() - std::mem::replace(&mut self.dropped_before, self.stats.dropped());
            self.stats.switches += 1;
            self.events.push(Event::PathActivated { path, previous, replayed, dropped });
        }
    }

    fn count_enqueued(&mut self, len: usize) {
        self.stats.enqueued_packets += 1;
        self.stats.enqueued_bytes += len as u64;
    }
}
