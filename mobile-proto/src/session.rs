//! A session: both sides of the protocol in one type. Here is its surface and the life of its
//! paths; `input` reads what comes, `transmit` writes what goes, `timers` does what is due,
//! `liveness` acts on what a path's health is, `freeze` keeps inner TCP alive while nothing gets through,
//! `takeover` hands what is left to the next session.

mod events;
mod freeze;
mod input;
mod liveness;
mod takeover;
mod timers;
mod transmit;

use std::time::{Duration, Instant};

pub use takeover::Unacknowledged;

use crate::compression::Worth;
use crate::message::Activate;
use crate::path::{Path, State};
use crate::pool::Pool;
use crate::queue::{Place, Queue, Record};
use crate::replay::Replay;
use crate::segment_budget::SegmentBudget;
use crate::{
    CloseCode, Hello, Limits, MAX_PACKET, Offload, Packet, PathId, ProtocolError, PushConfig, SessionId,
    Stats,
};

/// What became of a packet given to [`Session::enqueue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Enqueue {
    /// It will be sent.
    Queued,
    /// It was dropped, and counted.
    Dropped(DropReason),
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The queue has no room.
    QueueFull,
    /// Nothing gets through, and its data is held already: a fresher copy took the place of the older one at best.
    Duplicate,
    /// It is empty or longer than [`MAX_PACKET`].
    BadLength,
}

/// What the shell has to know or to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Client: WELCOME came, the path can be activated.
    PathReady {
        /// The path.
        path: PathId,
        /// False: the relay did not know the session (a new one, or the relay was restarted);
        /// unacknowledged records were renumbered and are sent again.
        resumed: bool,
    },
    /// Client: the relay's configuration is new or has changed.
    Config(PushConfig),
    /// Both sides: transmission moved to this path.
    PathActivated {
        /// The path.
        path: PathId,
        /// The path that was active until now.
        previous: Option<PathId>,
        /// Records that are sent again.
        replayed: u64,
        /// Packets dropped on this side since the switch before.
        dropped: u64,
    },
    /// Client: the relay has answered on the path that was activated last.
    PathConfirmed {
        /// The path.
        path: PathId,
    },
    /// The path is gone: the peer closed it, or it was freed. The shell drops the transport.
    PathClosed {
        /// The path.
        path: PathId,
        /// Why.
        code: CloseCode,
    },
    /// An answer is overdue. The path is being tried; it may well be alive. Said once for each
    /// time that this happens.
    PathProbing {
        /// The path.
        path: PathId,
    },
    /// The path is dead, by all evidence. Said once, until [`Event::PathRecovered`].
    PathUnresponsive {
        /// The path.
        path: PathId,
        /// How long nothing was answered.
        silent_for: Duration,
    },
    /// A path that was suspect delivers again.
    PathRecovered {
        /// The path.
        path: PathId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// One session, of a client or of a relay.
///
/// The shell calls in with the time and with bytes. After any call it may have to
/// [poll events](Self::poll_event), [send](Self::poll_transmit) on each path and set its timer
/// [anew](Self::poll_timeout).
#[derive(Debug)]
pub struct Session {
    role: Role,
    id: SessionId,
    limits: Limits,
    /// The relay's; a client's is 0 until the first WELCOME.
    epoch: u64,
    config: Option<PushConfig>,
    config_version: u64,
    /// Few, so a list is faster than a map; in no order.
    paths: Vec<Path>,
    active: Option<PathId>,
    /// Counts the client's switches; the relay has the highest it saw.
    switch: u64,
    pool: Pool,
    queue: Queue,
    replay: Replay,
    /// The number of the next record to deliver.
    rx_next: u64,
    ack: transmit::AckState,
    freeze: freeze::Freeze,
    worth: Worth,
    segments: SegmentBudget,
    events: events::Events,
    /// Client: when a DOUBT was last listened to.
    nudged: Option<Instant>,
    stats: Stats,
    /// What [`Stats::dropped`] was at the last switch.
    dropped_before: u64,
}

impl Session {
    /// A client's session. `id` is random, made when the agent starts.
    #[must_use]
    pub fn client(id: SessionId, limits: Limits) -> Self {
        Self::new(Role::Client, id, 0, limits, None)
    }

    /// A relay's session. `epoch` is random and not zero, made for this very object.
    #[must_use]
    pub fn server(id: SessionId, epoch: u64, limits: Limits, config: PushConfig) -> Self {
        Self::new(Role::Server, id, epoch, limits, Some(config))
    }

    fn new(role: Role, id: SessionId, epoch: u64, limits: Limits, config: Option<PushConfig>) -> Self {
        let queue = if limits.fair { Queue::fair(id.0, limits.target_delay) } else { Queue::fifo() };
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
            pool: Pool::default(),
            queue,
            replay: Replay::default(),
            rx_next: 0,
            ack: transmit::AckState::default(),
            freeze: freeze::Freeze::default(),
            worth: Worth::default(),
            segments: SegmentBudget::default(),
            events: events::Events::default(),
            nudged: None,
            stats: Stats::default(),
            dropped_before: 0,
        }
    }

    /// Client: queues HELLO on a new path. A path that is open under the same name is forgotten.
    pub fn open_path(&mut self, now: Instant, path: PathId) {
        self.forget(path);
        let mut new = Path::new(now, path, State::Connecting, self.epoch, self.switch);
        let (session, epoch, switch) = (self.id, self.epoch, self.switch);
        let compression = self.limits.compression;
        Hello { session, epoch, path, switch, compression }.put(&mut new.control);
        // An ACTIVATE that still waits will have a higher switch counter than this HELLO, so it has to name the path.
        for keep in self.paths.iter_mut().filter_map(|path| path.wish.as_mut()) {
            if keep.len() < Activate::MAX_KEEP && !keep.contains(&path) {
                keep.push(path);
            }
        }
        self.add(new);
    }

    /// Relay: takes up the path that sent `hello` and queues WELCOME on it. If a path is open under
    /// the same name, that one is closed with [`Event::PathClosed`]: the shell handles events before
    /// it files the new transport under the name. With as many paths as there may be, the standby
    /// path makes room on which nothing was heard for the longest time.
    pub fn accept_path(&mut self, now: Instant, hello: &Hello) -> Result<(), ProtocolError> {
        let path = hello.path;
        if self.role != Role::Server {
            return Err(ProtocolError::NotAServer(path));
        }
        if hello.session != self.id {
            return Err(ProtocolError::WrongSession { path, got: hello.session, expected: self.id });
        }
        if self.find(path).is_some() {
            self.closed(path, CloseCode::Replaced);
        }
        self.make_room_for(path)?;
        let mut new = Path::new(now, path, State::Ready, self.epoch, hello.switch);
        new.foreign = hello.epoch != self.epoch;
        new.stats.last_heard = Some(now);
        new.agree(hello.compression && self.limits.compression);
        self.put_welcome(new.outgoing.is_on(), &mut new.control);
        self.add(new);
        Ok(())
    }

    /// Client: makes a path active. The relay is told to keep `path` and `keep` and to free all
    /// others, but for those opened later than this. Own transmission moves to `path` and starts with the oldest
    /// unacknowledged record. If `path` is active already, only the list is sent.
    ///
    /// It need not be ready ([`Event::PathReady`]): if the relay's epoch is known, everything goes
    /// right behind HELLO, one round trip earlier; if it is not, this is done when WELCOME comes.
    pub fn activate(&mut self, now: Instant, path: PathId, keep: &[PathId]) {
        let chosen = self.find(path).filter(|&index| !self.paths[index].is_closing());
        if chosen.is_none() || self.role != Role::Client {
            return;
        }
        // The last word counts, also over one that still waits to be carried out.
        self.paths.iter_mut().for_each(|path| path.wish = None);
        let Some(mut chosen) = self.take(path) else { return };
        if chosen.is_ready() {
            self.carry_out(now, &mut chosen, keep);
        } else {
            chosen.wish = Some(keep.iter().copied().take(Activate::MAX_KEEP).collect());
            if self.epoch != 0 {
                self.carry_out(now, &mut chosen, keep);
            }
        }
        self.paths.push(chosen);
    }

    /// Queues CLOSE on a path, which is gone once [`Self::poll_transmit`] has written it. Until
    /// then its input is still good. If the path takes no more bytes, it is gone after some seconds.
    pub fn close_path(&mut self, now: Instant, path: PathId, code: CloseCode) {
        if let Some(index) = self.find(path) {
            self.paths[index].close(now, code, State::Closing);
            self.deactivate(path);
        }
    }

    /// The transport of a path is dead: forgets the path, keeps what is unacknowledged.
    pub fn path_lost(&mut self, _now: Instant, path: PathId) {
        self.forget(path);
    }

    /// Takes a packet from the TUN. Without an active path it waits for one.
    pub fn enqueue<'a>(&mut self, now: Instant, packet: impl Into<Packet<'a>>) -> Enqueue {
        let packet = packet.into();
        match self.place_for(now, packet) {
            Ok(place) => {
                let kept = self.pool.copy(packet.bytes);
                self.push(Record::new(kept, packet.offload, now, place))
            }
            Err(reason) => Enqueue::Dropped(reason),
        }
    }

    /// The same for a packet that is the first `length` bytes of `buffer`. A long one is not copied: it stays where it is, and
    /// another buffer takes the place of `buffer`, at least as long as it was, with whatever in it.
    pub fn enqueue_in_place(
        &mut self,
        now: Instant,
        buffer: &mut Vec<u8>,
        length: usize,
        offload: Offload,
    ) -> Enqueue {
        let bytes = buffer.get(..length).unwrap_or_default();
        match self.place_for(now, Packet { bytes, offload }) {
            Ok(place) => {
                let kept = self.pool.keep(buffer, length);
                self.push(Record::new(kept, offload, now, place))
            }
            Err(reason) => Enqueue::Dropped(reason),
        }
    }

    fn place_for(&mut self, now: Instant, packet: Packet<'_>) -> Result<Option<Place>, DropReason> {
        if packet.bytes.is_empty() || packet.len() > MAX_PACKET {
            self.stats.dropped_bad_length += 1;
            return Err(DropReason::BadLength);
        }
        let cost = self.pool.capacity_for(packet.len()) + size_of::<Record>();
        match self.admit(now, packet, cost) {
            freeze::Admission::Queue(place) => Ok(place),
            freeze::Admission::Drop(reason) => Err(reason),
        }
    }

    fn push(&mut self, mut record: Record) -> Enqueue {
        self.count_enqueued(record.packet.len());
        match self.queue.supersede(&mut record) {
            Some(needless) => {
                self.stats.thinned += 1;
                self.pool.give(needless);
            }
            None => self.queue.push(record),
        }
        Enqueue::Queued
    }

    /// Whether the shell should go on reading packets. A path that takes nearly all at once is given it as it comes. On a
    /// slower one whatever waits is to wait here, where a keystroke passes a bulk transfer, as long as it fits. Without a
    /// path, or with one that is suspected to be dead, packets are taken and the excess is dropped here: the TUN must never
    /// block an application for a whole outage.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let spare = self.limits.queue_bytes.saturating_sub(MAX_PACKET + size_of::<Record>());
        self.is_cut_off()
            || self.queue.is_empty()
            || self.queue.cost()
                < if self.queue.is_slow() { spare } else { self.limits.active_queue_bytes.min(spare) }
    }

    /// Whether flows take turns, so that little is to stand below the queue ([`Limits::fair`]).
    #[must_use]
    pub fn is_fair(&self) -> bool {
        self.limits.fair
    }

    /// Whether the active path will be faster soon: meanwhile nothing is dropped for its delay ([`Limits::target_delay`]),
    /// which is not its sender's fault.
    pub fn set_growing(&mut self, growing: bool) {
        self.queue.set_growing(growing);
    }

    /// Returns the next event. Of a state (the configuration, the active path, a path's health)
    /// only the latest value waits, and replaces an earlier one that was not taken.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Returns how many events wait to be taken. A shell that cannot take them must not read paths.
    #[must_use]
    pub fn pending_events(&self) -> usize {
        self.events.len()
    }

    /// Relay: pushes another configuration, to all paths.
    pub fn set_config(&mut self, config: PushConfig) {
        if self.role == Role::Server && self.config.as_ref() != Some(&config) {
            self.config = Some(config);
            self.config_version += 1;
            self.paths.iter_mut().for_each(|path| path.config_due = true);
        }
    }

    /// The session's counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The open paths, in no order.
    pub fn paths(&self) -> impl Iterator<Item = PathId> + '_ {
        self.paths.iter().map(|path| path.id)
    }

    /// The session's name.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The path that carries the packets sent here.
    #[must_use]
    pub fn active_path(&self) -> Option<PathId> {
        self.active
    }

    /// The relay's configuration, once it is known.
    #[must_use]
    pub fn config(&self) -> Option<&PushConfig> {
        self.config.as_ref()
    }

    /// The relay's epoch, 0 while it is not known.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes of packets sent and not acknowledged.
    #[must_use]
    pub fn unacked_bytes(&self) -> usize {
        self.replay.bytes()
    }

    /// Bytes of packets not sent yet.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// A list would make room for four at once, where nearly every session has one or two, and a relay thousands of sessions.
    fn add(&mut self, path: Path) {
        self.paths.reserve_exact(1);
        self.paths.push(path);
    }

    fn find(&self, path: PathId) -> Option<usize> {
        self.paths.iter().position(|open| open.id == path)
    }

    fn take(&mut self, path: PathId) -> Option<Path> {
        self.find(path).map(|index| self.paths.swap_remove(index))
    }

    fn make_room_for(&mut self, path: PathId) -> Result<(), ProtocolError> {
        if self.paths.len() >= self.limits.max_paths {
            let standby = self.paths.iter().filter(|open| self.active != Some(open.id));
            let quietest = standby.min_by_key(|open| open.stats.last_heard).map(|open| open.id);
            let max = self.limits.max_paths;
            self.closed(quietest.ok_or(ProtocolError::TooManyPaths { path, max })?, CloseCode::Replaced);
        }
        Ok(())
    }

    /// Drops a path without a word.
    fn forget(&mut self, path: PathId) {
        self.take(path);
        self.deactivate(path);
    }

    /// Drops a path and says so to the shell.
    fn closed(&mut self, path: PathId, code: CloseCode) {
        self.forget(path);
        self.events.push(Event::PathClosed { path, code });
    }

    fn deactivate(&mut self, path: PathId) {
        if self.active == Some(path) {
            self.active = None;
        }
    }

    /// Queues ACTIVATE on a path and moves transmission there.
    fn carry_out(&mut self, now: Instant, path: &mut Path, keep: &[PathId]) {
        self.switch += 1;
        let (epoch, switch, rx_next) = (self.epoch, self.switch, self.rx_next);
        Activate { epoch, switch, rx_next, keep: keep.to_vec() }.put(&mut path.control);
        path.ask(now, self.is_unanswered(path));
        path.confirmed_by = Some(path.next_nonce());
        path.early = path.state == State::Connecting && path.hello_sent.is_none();
        self.ack.done();
        self.move_to(path.id);
    }

    /// Transmission moves to `path`, unless it is there: then its stream is whole as it is.
    fn move_to(&mut self, path: PathId) {
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
