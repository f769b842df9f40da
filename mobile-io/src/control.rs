//! The control socket: JSON lines over a unix socket, with the peer known by the kernel's word.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Who is at the other end, by the kernel's word.
#[derive(Debug)]
pub struct Peer {
    /// Its process.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Names the process for good, where the pid may be used again.
    pub pidfd: Option<OwnedFd>,
}

/// Why a control socket failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A live one holds the socket.
    #[error("already running: somebody answers on {0}")]
    AlreadyRunning(PathBuf),
    /// Nobody is there.
    #[error("nobody answers on {path} ({source}): is the service running?")]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// This user may not talk to it.
    #[error("not allowed to use {0}: ask for membership of the socket's group, or run as root")]
    NotAllowed(PathBuf),
    /// The group is not known.
    #[error("no group named `{0}`: create it, or change the group of the control socket")]
    NoSuchGroup(String),
    /// A line is longer than any request or answer can be.
    #[error("a line of more than {0} bytes")]
    TooLong(usize),
    /// A line is not what was expected.
    #[error("not understood: {0}")]
    BadMessage(String),
    /// Anything else.
    #[error("control socket {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The listening end; its socket is removed when dropped.
#[derive(Debug)]
pub struct Listener(());

/// One accepted connection.
#[derive(Debug)]
pub struct Connection {
    /// Who is at the other end.
    pub peer: Peer,
}

/// The asking end, blocking, for commands.
#[derive(Debug)]
pub struct Client(());

impl Listener {
    /// Binds the socket with this mode, and this group if one is named.
    ///
    /// # Errors
    /// When a live service holds it, or it cannot be made.
    pub fn bind(_path: &Path, _mode: u32, _group: Option<&str>) -> Result<Self, ControlError> {
        unimplemented!()
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn accept(&self) -> Result<Connection, ControlError> {
        unimplemented!()
    }
}

impl Connection {
    /// The next request; `None` when the peer has gone. After `BadMessage` the next line may be fine: answer it.
    ///
    /// # Errors
    /// `BadMessage` for a line that is no such request; anything else ends the connection.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        unimplemented!()
    }

    /// Sends one answer.
    ///
    /// # Errors
    /// When the peer has gone.
    pub async fn send<T: Serialize + Sync>(&mut self, _message: &T) -> Result<(), ControlError> {
        unimplemented!()
    }
}

impl Client {
    /// Connects to a service.
    ///
    /// # Errors
    /// When nobody answers or this user may not.
    pub fn connect(_path: &Path) -> Result<Self, ControlError> {
        unimplemented!()
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// When the service goes away or its answer is not understood.
    pub fn call<Q: Serialize, A: DeserializeOwned>(&mut self, _request: &Q) -> Result<A, ControlError> {
        unimplemented!()
    }

    /// The next line of an answer that goes on (`--watch`); `None` at its end.
    ///
    /// # Errors
    /// When the service's line is not understood.
    pub fn recv<A: DeserializeOwned>(&mut self) -> Result<Option<A>, ControlError> {
        unimplemented!()
    }
}
