//! The control socket of a daemon: lines of JSON over a Unix socket, with the peer's process and
//! user as reported by the kernel.
//!
//! A daemon binds a [`Listener`] and answers the requests on each [`Connection`]. A command-line
//! program uses the blocking [`Client`].

mod client;
mod peer;
mod user_limit;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, chown};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use crate::ownership;
pub use client::Client;
pub use peer::Peer;
pub use user_limit::{ConnectionPermit, UserConnectionLimit};

use crate::directory;

/// The maximum length of a request in bytes; real requests are less than a hundredth of it.
pub const MAX_REQUEST: usize = 64 * 1024;

/// The maximum length of a reply in bytes: enough for the sessions of some 50,000 clients.
pub const MAX_REPLY: usize = 16 * 1024 * 1024;

/// The time allowed for each of two steps: for the peer to send a whole request, counted from the
/// start of the wait, and to read a whole reply.
///
/// A command-line program needs milliseconds. A suspended or malicious one must not occupy a
/// connection for ever.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum length of a socket's path in bytes: `sun_path` has 108 with the final zero
/// (unix(7)).
const MAX_PATH: usize = 107;

/// The reason why an operation on a control socket failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process already listens on the socket.
    #[error("already running: another process answers on {0}")]
    AlreadyRunning(PathBuf),
    /// No process listens on the socket.
    #[error("cannot connect to {path}: {}", reason(source))]
    NotRunning {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The user has no permission to use the socket.
    #[error("not allowed to use {path}: {}", permission_hint(.group.as_deref()))]
    NotAllowed {
        /// The path of the socket.
        path: PathBuf,
        /// The group whose members may use the socket, if there is one besides root's.
        group: Option<String>,
    },
    /// The configured group does not exist.
    #[error("no group named `{0}`: create it, or change the group of the control socket")]
    NoSuchGroup(String),
    /// The path of the socket is longer than the kernel accepts.
    #[error(
        "the socket's path {path} has {length} bytes, but the kernel accepts at most {MAX_PATH}: set a \
         shorter path",
        path = .0.display(),
        length = .0.as_os_str().len()
    )]
    PathTooLong(PathBuf),
    /// A message is longer than [`MAX_REQUEST`] or [`MAX_REPLY`].
    #[error("message too long: at most {MAX_REQUEST} bytes for a request, {MAX_REPLY} for a reply")]
    TooLong,
    /// A line is not a valid message of the expected type.
    #[error("invalid message: {0}")]
    BadMessage(String),
    /// The service closed the connection before it sent a whole reply.
    #[error("the service on {0} closed the connection before it replied: see its log")]
    HungUp(PathBuf),
    /// A system call failed for another reason.
    #[error("control socket {path}: {source}")]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

/// Checks that the kernel accepts `path` as the path of a socket.
///
/// # Errors
/// When the path is too long.
pub fn check_path(path: &Path) -> Result<(), ControlError> {
    if path.as_os_str().len() > MAX_PATH { Err(ControlError::PathTooLong(path.to_owned())) } else { Ok(()) }
}

impl ControlError {
    fn not_allowed(path: PathBuf) -> Self {
        let group = group_of(&path);
        Self::NotAllowed { path, group }
    }
}

fn permission_hint(group: Option<&str>) -> String {
    match group {
        Some(group) => format!(
            "join the group `{group}` (`sudo usermod -aG {group} USER`, then log in again), or run the command \
             with sudo"
        ),
        None => "run the command with sudo, or set the group of the socket in the configuration \
                 ([control] group or [admin] group) and join it"
            .to_owned(),
    }
}

/// Returns the group of the socket, or of the nearest directory above it that this user can
/// examine; `None` if this is root's group.
fn group_of(socket: &Path) -> Option<String> {
    let gid = socket.ancestors().find_map(|path| fs::metadata(path).ok())?.gid();
    if gid == 0 {
        return None;
    }
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    Some(group.map_or_else(|| gid.to_string(), |group| group.name))
}

/// Checks that a group exists, as [`Listener::bind`] does.
///
/// # Errors
/// When no group has this name.
pub fn check_group(name: &str) -> Result<(), ControlError> {
    find_group(name).map(drop)
}

/// Returns the text of a system call's error without its number, which says nothing to users.
fn reason(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |code| Errno::from_raw(code).desc().to_owned())
}

/// The listening socket of a service; its file is removed on drop.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    step_timeout: Duration,
    /// The device and inode numbers of the socket file, by which drop avoids removing a file that
    /// another process has since bound at the same path.
    identity: (u64, u64),
}

/// A connection that a [`Listener`] accepted.
#[derive(Debug)]
pub struct Connection {
    /// The identity of the process that connected.
    pub peer: Peer,
    path: PathBuf,
    step_timeout: Duration,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    line: Vec<u8>,
}

impl Listener {
    /// Binds the socket at `path` with the permissions `mode`, and with `group` as its group if
    /// given.
    ///
    /// Creates the directory if it is missing, and replaces a socket that a terminated service left
    /// behind.
    ///
    /// # Errors
    /// When a running service listens on the socket, or when the socket cannot be created. If only
    /// its mode or group cannot be set, the socket is removed again.
    pub fn bind(path: &Path, mode: u32, group: Option<&str>) -> Result<Self, ControlError> {
        let io_error = |source| ControlError::Io { path: path.to_owned(), source };
        Self::check(path, group)?;
        let group = group.map(find_group).transpose()?;
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            // The mode of the socket decides who may use it.
            ownership::create_open_directory(directory).map_err(io_error)?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(|source| match source.kind() {
            // Another process bound the path after the check above.
            io::ErrorKind::AddrInUse => ControlError::AlreadyRunning(path.to_owned()),
            io::ErrorKind::PermissionDenied => ControlError::not_allowed(path.to_owned()),
            _ => io_error(source),
        })?;
        let metadata = fs::symlink_metadata(path).map_err(io_error)?;
        // From this point on, dropping `bound` on a failure removes the socket.
        let identity = (metadata.dev(), metadata.ino());
        let bound = Self { listener, path: path.to_owned(), step_timeout: STEP_TIMEOUT, identity };
        if let Some(group) = group {
            chown(path, None, Some(group.gid)).map_err(|errno| io_error(errno.into()))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_error)?;
        Ok(bound)
    }

    /// Checks, without changing anything, that [`bind`](Self::bind) could bind the socket at `path`
    /// with this group.
    ///
    /// # Errors
    /// When the path is too long or occupied, its directory cannot be created or written, or the
    /// group does not exist.
    pub fn check(path: &Path, group: Option<&str>) -> Result<(), ControlError> {
        let io_error = |source| ControlError::Io { path: path.to_owned(), source };
        check_path(path)?;
        group.map(find_group).transpose()?;
        match fs::symlink_metadata(path) {
            Ok(metadata) => assert_socket(path, &metadata),
            Err(_) => directory::check_creatable(path.parent().unwrap_or(path)).map_err(io_error),
        }
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// When the socket fails, or when the peer disconnected before the kernel could identify it.
    /// Callers may continue with the next connection.
    pub async fn accept(&self) -> Result<Connection, ControlError> {
        let io_error = |source| ControlError::Io { path: self.path.clone(), source };
        let (stream, _) = self.listener.accept().await.map_err(io_error)?;
        Connection::new(stream, &self.path, self.step_timeout).map_err(io_error)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours {
            // Ignore a failure: the next start replaces a stale socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Connection {
    fn new(stream: UnixStream, path: &Path, step_timeout: Duration) -> io::Result<Self> {
        let peer = Peer::of(&stream)?;
        let (reader, writer) = stream.into_split();
        let (path, reader) = (path.to_owned(), BufReader::new(reader));
        Ok(Self { peer, path, step_timeout, reader, writer, line: Vec::new() })
    }

    /// Waits up to 10 s for the next request.
    ///
    /// Returns `None` when the peer has disconnected or has not sent a whole line in that time.
    ///
    /// # Errors
    /// `BadMessage` for a line that is not a valid request: the caller may report that to the peer
    /// and continue. Any other error ends the connection.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        let io_error = |source| ControlError::Io { path: self.path.clone(), source };
        // If an earlier call was cancelled, the bytes that it read are still in `line`.
        let remaining = (MAX_REQUEST + 1).saturating_sub(self.line.len()) as u64;
        let mut bounded = (&mut self.reader).take(remaining);
        let read = bounded.read_until(b'\n', &mut self.line);
        match tokio::time::timeout(self.step_timeout, read).await {
            Ok(read) => read.map_err(io_error)?,
            Err(_idle) => return Ok(None),
        };
        if self.line.len() > MAX_REQUEST {
            return Err(ControlError::TooLong);
        }
        if !self.line.ends_with(b"\n") {
            // The peer disconnected; an incomplete line is not a request.
            return Ok(None);
        }
        let parsed = parse(&self.line);
        self.line.clear();
        parsed.map(Some)
    }

    /// Sends one reply to the peer.
    ///
    /// # Errors
    /// When the peer has disconnected or does not read the reply within 10 s, or when the reply is
    /// longer than [`MAX_REPLY`].
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ControlError> {
        let line = to_line(message, MAX_REPLY)?;
        let written = tokio::time::timeout(self.step_timeout, self.writer.write_all(&line)).await;
        written
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| ControlError::Io { path: self.path.clone(), source })
    }

    /// Waits until the peer disconnects, for a service that streams lines of a reply until then.
    pub async fn closed(&mut self) {
        let mut rest = [0; 256];
        while matches!(self.reader.read(&mut rest).await, Ok(1..)) {}
    }
}

/// Checks that the existing file at `path` is a socket.
fn assert_socket(path: &Path, metadata: &fs::Metadata) -> Result<(), ControlError> {
    use std::os::unix::fs::FileTypeExt;

    if metadata.file_type().is_socket() {
        return Ok(());
    }
    let text = "the path exists and is not a socket; move that file away";
    Err(ControlError::Io {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::AlreadyExists, text),
    })
}

/// Removes the socket file at `path` if no process listens on it.
fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let io_error = |source| ControlError::Io { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io_error)?,
    };
    assert_socket(path, &metadata)?;
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(stream) if !peer::service_has_ended(&stream) => Err(ControlError::AlreadyRunning(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(io_error),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io_error)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error(error)),
    }
}

fn find_group(name: &str) -> Result<Group, ControlError> {
    Group::from_name(name).ok().flatten().ok_or_else(|| ControlError::NoSuchGroup(name.to_owned()))
}

/// Parses one line of JSON, a request or a reply.
///
/// # Errors
/// `BadMessage` when the line is not valid JSON for `T`.
pub fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(line).map_err(|error| ControlError::BadMessage(error.to_string()))
}

fn to_line<T: Serialize>(message: &T, max: usize) -> Result<Vec<u8>, ControlError> {
    let mut line =
        serde_json::to_vec(message).map_err(|error| ControlError::BadMessage(error.to_string()))?;
    line.push(b'\n');
    if line.len() > max { Err(ControlError::TooLong) } else { Ok(line) }
}

#[cfg(test)]
mod tests;
