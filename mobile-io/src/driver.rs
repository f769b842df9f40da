//! Runs one session: moves bytes between its paths (TLS), its packets (a TUN or a queue) and its clock.
//!
//! One task and one poll function, so there are no locks and no order of events that cannot be read off the code.
//! The owner commands it through a [`Handle`] and hears of it through [`DriverEvent`]s.

mod congestion;
mod cross_traffic;
mod event_queue;
mod path;
mod send_limit;
mod task;
#[cfg(test)]
mod tests;

use std::io;
use std::task::{Context, Poll};

use mobile_proto::{
    CloseCode, Event, Hello, Offload, Packet, PathId, PathStats, PushConfig, Session, Stats, Unacknowledged,
};
use tokio::sync::{mpsc, oneshot};

use crate::tls::HandshakeFailure;
pub use crate::tls::TlsStream;

/// Where a session's inner packets come from and go to.
pub trait PacketIo: Send {
    /// The next packet to carry, into `buf`, which holds the longest packet there can be.
    ///
    /// # Errors
    /// An error is logged and the source asked again a second later: it never ends the session.
    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, Offload)>>;

    /// Delivers a packet the peer sent, now or at the next [`flush`](Self::flush). Must not block; counts its own errors.
    fn send(&mut self, packet: Packet<'_>);

    /// Delivers what was kept back: nothing more comes for now.
    fn flush(&mut self) {}
}

/// What the driver tells its owner.
#[derive(Debug)]
pub enum DriverEvent {
    /// The session says something. (After `PathClosed` the driver has dropped the transport already.)
    Session(Event),
    /// A path's transport died, or its peer broke the protocol; the session knows already.
    PathError {
        /// The path.
        path: PathId,
        /// What it means.
        cause: HandshakeFailure,
    },
    /// The driver has ended; nothing follows.
    Stopped,
}

/// What a session is doing, at one moment.
#[derive(Debug, Clone)]
pub struct SessionSnapshot {
    /// The session's counters.
    pub stats: Stats,
    /// Its open paths.
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
/// When the last clone is dropped, the driver shuts down.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
}

#[derive(Debug)]
enum Command {
    Open(PathId, Box<TlsStream>),
    Accept(Hello, Vec<u8>, Box<TlsStream>),
    Activate(PathId, Vec<PathId>),
    Probe,
    Close(PathId, CloseCode),
    SetConfig(PushConfig),
    Snapshot(oneshot::Sender<SessionSnapshot>),
    TakeOver(oneshot::Sender<Unacknowledged>),
    Shutdown(CloseCode, oneshot::Sender<()>),
}

/// Starts a driver on the current runtime, which sends its events to the returned receiver.
///
/// The channel is bounded. While the owner does not take the events in it, the driver handles
/// commands and transmits, but reads no path: a peer cannot cause events faster than they are
/// handled.
pub fn spawn(session: Session, io: impl PacketIo + 'static) -> (Handle, mpsc::Receiver<DriverEvent>) {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (sender, events) = mpsc::channel(event_queue::CAPACITY);
    // The driver bounds the work of a poll itself, and better than tokio's count of operations, which knows
    // nothing of batches.
    tokio::spawn(tokio::task::unconstrained(task::run(session, io, inbox, sender)));
    (Handle { commands }, events)
}

impl Handle {
    /// Client: begins a path over a connected transport.
    pub fn open_path(&self, path: PathId, stream: TlsStream) {
        self.command(Command::Open(path, Box::new(stream)));
    }

    /// Server: takes a path whose HELLO has been read; `leftover` is what came after it.
    pub fn accept_path(&self, hello: Hello, leftover: Vec<u8>, stream: TlsStream) {
        self.command(Command::Accept(hello, leftover, Box::new(stream)));
    }

    /// Client: data moves to this path; the relay frees every path not in `keep`.
    pub fn activate(&self, path: PathId, keep: Vec<PathId>) {
        self.command(Command::Activate(path, keep));
    }

    /// Client: asks every path for a sign of life.
    pub fn probe(&self) {
        self.command(Command::Probe);
    }

    /// Says goodbye on a path and drops its transport.
    pub fn close_path(&self, path: PathId, code: CloseCode) {
        self.command(Command::Close(path, code));
    }

    /// Server: pushes a new configuration to the client.
    pub fn set_config(&self, config: PushConfig) {
        self.command(Command::SetConfig(config));
    }

    /// What the session is doing; `None` when the driver has stopped.
    pub async fn snapshot(&self) -> Option<SessionSnapshot> {
        let (reply, response) = oneshot::channel();
        self.command(Command::Snapshot(reply));
        response.await.ok()
    }

    /// Stops the driver and gives what the peer has not acknowledged, for the session that replaces this one.
    /// The transports are dropped without a goodbye.
    pub async fn take_over(&self) -> Unacknowledged {
        let (reply, response) = oneshot::channel();
        self.command(Command::TakeOver(reply));
        response.await.unwrap_or_default()
    }

    /// Closes every path and stops; waits (briefly) until the peer can have heard it.
    pub async fn shutdown(&self, code: CloseCode) {
        let (reply, response) = oneshot::channel();
        self.command(Command::Shutdown(code, reply));
        // An error means that it had stopped already.
        let _ = response.await;
    }

    /// True once the driver has ended.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.commands.is_closed()
    }

    fn command(&self, command: Command) {
        // Whoever commands a stopped driver hears `Stopped`, or already has.
        let _ = self.commands.send(command);
    }
}
