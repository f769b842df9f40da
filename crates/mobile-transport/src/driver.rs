//! Runs one session of mobile-proto over sockets: the driver passes to the session the bytes that
//! its paths receive, the packets of a TUN device and the current time.
//!
//! A driver is one task with one poll function, so it needs no locks, and the code shows the order
//! of all events. Its owner controls it through a [`Handle`] and receives [`DriverEvent`]s.

mod event_queue;
mod path;
mod task;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use mobile_proto::{
    Announcement, CloseCode, Event, Hello, InnerPacket, PacketHeaders, PathId, PathStats, PushConfig,
    Session, Stats, Unacknowledged,
};
use tokio::sync::{mpsc, oneshot};

use crate::tls::HandshakeFailure;
pub use crate::tls::TlsStream;

/// The source and sink of a session's inner packets, such as a TUN device.
pub trait PacketIo: Send {
    /// Reads the next packet for the peer into `buf`, which has room for the longest possible
    /// packet; returns where the packet's headers are.
    ///
    /// # Errors
    /// The driver logs the error and polls again after a second; the session continues.
    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<PacketHeaders>>;

    /// Delivers a packet from the peer, immediately or at the next [`flush`](Self::flush).
    ///
    /// Must not block. The implementation counts its own errors.
    fn send(&mut self, packet: InnerPacket<'_>);

    /// Delivers the packets that [`send`](Self::send) kept back. Called when no more packets follow
    /// for now.
    fn flush(&mut self) {}
}

/// An event that the driver reports to its owner.
#[derive(Debug)]
pub enum DriverEvent {
    /// An event that the session reports.
    ///
    /// When the event is `PathClosed`, the driver has already closed the path's transport.
    Session(Event),
    /// The transport of a path failed, or its peer violated the protocol.
    ///
    /// The session does not use the path any longer.
    PathError {
        /// The path that failed.
        path: PathId,
        /// The reason for the failure.
        cause: Box<HandshakeFailure>,
    },
    /// The driver has stopped; no event follows.
    Stopped,
}

/// The state of a session at one moment.
#[derive(Debug, Clone)]
pub struct SessionSnapshot {
    /// The counters of the session.
    pub stats: Stats,
    /// The open paths with their statistics.
    pub paths: Vec<(PathId, PathStats)>,
    /// The active path, which carries the session's packets; `None` if there is none.
    pub active: Option<PathId>,
    /// The number of bytes in the session's queue, waiting to be sent.
    pub queued_bytes: usize,
    /// The number of bytes sent but not yet acknowledged.
    pub unacked_bytes: usize,
    /// The epoch, a random number of the relay's session object; 0 while it is unknown.
    pub epoch: u64,
    /// The addresses and other settings that the relay pushed to the client; `None` before that.
    pub config: Option<PushConfig>,
}

/// Controls a running driver.
///
/// Clones control the same driver, which shuts down when the last one is dropped. Commands to a
/// stopped driver have no effect.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
}

/// A call of the owner. Small, because the channel has room for 32 of them from its start.
#[derive(Debug)]
enum Command {
    Open(PathId, Box<TlsStream>),
    Accept(Box<AcceptedPath>),
    Activate(PathId, Vec<PathId>),
    Probe,
    Close(PathId, CloseCode),
    SetConfig(Box<PushConfig>),
    Confirm(Arc<Announcement>),
    Snapshot(oneshot::Sender<SessionSnapshot>),
    TakeOver(oneshot::Sender<Unacknowledged>),
    Shutdown(CloseCode, oneshot::Sender<()>),
}

/// A path of which the relay has read the HELLO.
#[derive(Debug)]
struct AcceptedPath {
    hello: Hello,
    /// The bytes received after the HELLO.
    leftover: Vec<u8>,
    stream: TlsStream,
}

/// Starts a driver on the current tokio runtime and returns its handle and the receiver of its
/// events.
///
/// The channel for events is bounded. While the channel is full, the driver executes commands and
/// transmits, but reads from no path, so that a peer cannot cause events faster than the owner
/// receives them.
pub fn spawn(session: Session, io: impl PacketIo + 'static) -> (Handle, mpsc::Receiver<DriverEvent>) {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (sender, events) = mpsc::channel(event_queue::CAPACITY);
    // The driver limits the work of each poll itself. tokio's cooperative budget counts operations
    // and knows nothing of batches.
    tokio::spawn(tokio::task::unconstrained(task::run(session, io, inbox, sender)));
    (Handle { commands }, events)
}

impl Handle {
    /// Opens a path over a connected transport. For the client's driver only.
    pub fn open_path(&self, path: PathId, stream: TlsStream) {
        self.command(Command::Open(path, Box::new(stream)));
    }

    /// Accepts a path whose HELLO has been read from `stream`; `leftover` holds the bytes received
    /// after the HELLO. For the relay's driver only.
    pub fn accept_path(&self, hello: Hello, leftover: Vec<u8>, stream: TlsStream) {
        self.command(Command::Accept(Box::new(AcceptedPath { hello, leftover, stream })));
    }

    /// Makes `path` the active path; the relay closes every path that is not in `keep`. For the
    /// client's driver only.
    pub fn activate(&self, path: PathId, keep: Vec<PathId>) {
        self.command(Command::Activate(path, keep));
    }

    /// Probes every path for liveness. For the client's driver only.
    pub fn probe(&self) {
        self.command(Command::Probe);
    }

    /// Sends CLOSE with `code` on a path and closes its transport.
    pub fn close_path(&self, path: PathId, code: CloseCode) {
        self.command(Command::Close(path, code));
    }

    /// Pushes a new configuration to the client. For the relay's driver only.
    pub fn set_config(&self, config: PushConfig) {
        self.command(Command::SetConfig(Box::new(config)));
    }

    /// Confirms to the relay that its announcement is stored. For the client's driver only.
    pub fn confirm(&self, stored: Arc<Announcement>) {
        self.command(Command::Confirm(stored));
    }

    /// Returns the counters, paths and queue lengths of the session at this moment; `None` if the
    /// driver has stopped.
    pub async fn snapshot(&self) -> Option<SessionSnapshot> {
        let (reply, response) = oneshot::channel();
        self.command(Command::Snapshot(reply));
        response.await.ok()
    }

    /// Stops the driver and returns the packets that the peer has not acknowledged, for the session
    /// that replaces this one.
    ///
    /// The transports are dropped without a CLOSE.
    pub async fn take_over(&self) -> Unacknowledged {
        let (reply, response) = oneshot::channel();
        self.command(Command::TakeOver(reply));
        response.await.unwrap_or_default()
    }

    /// Closes every path and stops the driver; waits up to 0.5 s for the CLOSE to be delivered.
    pub async fn shutdown(&self, code: CloseCode) {
        let (reply, response) = oneshot::channel();
        self.command(Command::Shutdown(code, reply));
        // An error means that the driver had already stopped.
        let _ = response.await;
    }

    /// Returns whether the driver has stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.commands.is_closed()
    }

    fn command(&self, command: Command) {
        // The driver may have stopped; the owner learns that from `DriverEvent::Stopped`.
        let _ = self.commands.send(command);
    }
}
