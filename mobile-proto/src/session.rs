//! A session: both sides of the protocol in one type.

use std::time::{Duration, Instant};

use crate::{CloseCode, Hello, Limits, PathId, PathStats, ProtocolError, PushConfig, SessionId, Stats};

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
    /// It is empty or longer than [`MAX_PACKET`](crate::MAX_PACKET).
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
    Activated {
        /// The path.
        path: PathId,
        /// The path that was active before.
        previous: Option<PathId>,
        /// Records that are sent again.
        replayed: u64,
    },
    /// The path is gone: the peer closed it, or it was freed. The shell drops the transport.
    PathClosed {
        /// The path.
        path: PathId,
        /// Why.
        code: CloseCode,
    },
    /// Something is unanswered and nothing at all was heard: the path may be dead.
    PathSuspect {
        /// The path.
        path: PathId,
        /// How long nothing was heard.
        silent_for: Duration,
    },
}

/// One session, of a client or of a relay.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    epoch: u64,
    config: Option<PushConfig>,
    stats: Stats,
}

#[expect(unused_variables, clippy::needless_pass_by_value, reason = "signatures only, the bodies come next")]
impl Session {
    /// A client's session.
    pub fn client(id: SessionId, limits: Limits) -> Self {
        Self { id, epoch: 0, config: None, stats: Stats::default() }
    }
    /// A relay's session.
    pub fn server(id: SessionId, epoch: u64, limits: Limits, config: PushConfig) -> Self {
        Self { id, epoch, config: Some(config), stats: Stats::default() }
    }
    /// Client: opens a path.
    pub fn open_path(&mut self, now: Instant, path: PathId) {}
    /// Relay: accepts a path.
    pub fn accept_path(&mut self, now: Instant, hello: &Hello) -> Result<(), ProtocolError> {
        Ok(())
    }
    /// Client: moves to a path.
    pub fn activate(&mut self, now: Instant, path: PathId, keep: &[PathId]) {}
    /// Closes a path.
    pub fn close_path(&mut self, now: Instant, path: PathId, code: CloseCode) {}
    /// The transport of a path is dead.
    pub fn path_lost(&mut self, now: Instant, path: PathId) {}
    /// Takes a packet from the TUN.
    pub fn enqueue(&mut self, now: Instant, packet: &[u8]) -> Enqueue {
        Enqueue::Queued
    }
    /// Whether the shell should go on reading packets.
    pub fn has_room(&self) -> bool {
        true
    }
    /// Takes decrypted bytes of a path.
    pub fn handle_input(
        &mut self,
        now: Instant,
        path: PathId,
        bytes: &[u8],
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<(), ProtocolError> {
        Ok(())
    }
    /// Appends frames for a path until about `limit` bytes are in `out`.
    pub fn poll_transmit(&mut self, now: Instant, path: PathId, out: &mut Vec<u8>, limit: usize) {}
    /// Whether there is something to send on a path.
    pub fn wants_transmit(&self, path: PathId) -> bool {
        false
    }
    /// When `handle_timeout` is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {}
    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }
    /// Relay: pushes another configuration.
    pub fn set_config(&mut self, config: PushConfig) {}
    /// What the peer has not acknowledged, then what was not sent yet.
    pub fn into_unacknowledged(self) -> Vec<Box<[u8]>> {
        Vec::new()
    }
    /// Puts packets in front of the queue.
    pub fn requeue(&mut self, now: Instant, packets: Vec<Box<[u8]>>) {}
    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
    /// The counters of a path.
    pub fn path_stats(&self, path: PathId) -> Option<PathStats> {
        None
    }
    /// The open paths.
    pub fn paths(&self) -> impl Iterator<Item = PathId> + '_ {
        std::iter::empty()
    }
    /// The session's name.
    pub fn id(&self) -> SessionId {
        self.id
    }
    /// The active path.
    pub fn active_path(&self) -> Option<PathId> {
        None
    }
    /// The configuration.
    pub fn config(&self) -> Option<&PushConfig> {
        self.config.as_ref()
    }
    /// The relay's epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
    /// Bytes sent and not acknowledged.
    pub fn unacked_bytes(&self) -> usize {
        0
    }
    /// Bytes not sent yet.
    pub fn queued_bytes(&self) -> usize {
        0
    }
}
