//! Runs one session: moves bytes between its paths (TLS), its packets (a TUN or a queue) and its clock.

use std::io;
use std::task::{Context, Poll};

use mobile_proto::{CloseCode, Event, Hello, PathId, PathStats, PushConfig, Session, Stats};
use tokio::sync::mpsc;

use crate::tls::Cause;
pub use crate::tls::TlsStream;

/// Where a session's inner packets come from and go to.
pub trait PacketIo: Send {
    /// The next packet to carry, into `buf`.
    ///
    /// # Errors
    /// An error is logged and the source tried again later: it never ends the session.
    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Delivers a packet the peer sent. Must not block; counts its own errors.
    fn send(&mut self, packet: &[u8]);
}

/// What the driver tells its owner.
#[derive(Debug)]
pub enum DriverEvent {
    /// The session says something.
    Session(Event),
    /// A path's transport died; the session knows already.
    PathError {
        /// The path.
        path: PathId,
        /// What it means.
        cause: Cause,
        /// The whole story, for a log.
        error: String,
    },
    /// The driver has ended; nothing follows.
    Stopped,
}

/// What a session is doing, at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The session's counters.
    pub stats: Stats,
    /// The paths with an open transport.
    pub paths: Vec<(PathId, PathStats)>,
    /// The path that carries data.
    pub active: Option<PathId>,
    /// Bytes waiting to be sent.
    pub queued_bytes: usize,
    /// Bytes sent and not yet acknowledged.
    pub unacked_bytes: usize,
    /// The epoch of the relay's session.
    pub epoch: u64,
    /// What the relay assigned.
    pub config: Option<PushConfig>,
}

/// Commands a running driver. Clones command the same one; when it has stopped, commands do nothing.
#[derive(Debug, Clone)]
pub struct Handle(());

/// Starts a driver on the current runtime.
pub fn spawn(
    _session: Session,
    _io: impl PacketIo + 'static,
    _events: mpsc::UnboundedSender<DriverEvent>,
) -> Handle {
    unimplemented!()
}

impl Handle {
    /// Client: begins a path over a connected transport.
    pub fn open_path(&self, _path: PathId, _stream: TlsStream) {
        unimplemented!()
    }

    /// Server: takes a path whose HELLO has been read; `leftover` is what came after it.
    pub fn accept_path(&self, _hello: Hello, _leftover: Vec<u8>, _stream: TlsStream) {
        unimplemented!()
    }

    /// Client: data moves to this path; the relay frees every path not in `keep`.
    pub fn activate(&self, _path: PathId, _keep: Vec<PathId>) {
        unimplemented!()
    }

    /// Says goodbye on a path and drops its transport.
    pub fn close_path(&self, _path: PathId, _code: CloseCode) {
        unimplemented!()
    }

    /// Server: pushes a new configuration to the client.
    pub fn set_config(&self, _config: PushConfig) {
        unimplemented!()
    }

    /// What the session is doing; `None` when the driver has stopped.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        unimplemented!()
    }

    /// Stops the driver and gives what the peer has not acknowledged, for the session that replaces this one.
    pub async fn take_over(&self) -> Vec<Box<[u8]>> {
        unimplemented!()
    }

    /// Closes every path and stops; waits (briefly) until the peer can have heard it.
    pub async fn shutdown(&self, _code: CloseCode) {
        unimplemented!()
    }
}
