//! The client end of a control socket. All functions block, because a command-line program has
//! nothing else to do.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ControlError, MAX_REPLY, MAX_REQUEST, parse, peer, to_line};

/// A connection of a command-line program to a service.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the service that listens at `path`.
    ///
    /// # Errors
    /// When no service listens there, or when this user has no permission.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let path = path.to_owned();
        match UnixStream::connect(&path) {
            Ok(stream) if peer::service_has_ended(&stream) => {
                Err(ControlError::NotRunning { path, source: io::ErrorKind::ConnectionRefused.into() })
            }
            Ok(stream) => Ok(Self { path, reader: BufReader::new(stream) }),
            Err(source) => Err(match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused => {
                    ControlError::NotRunning { path, source }
                }
                io::ErrorKind::PermissionDenied => ControlError::not_allowed(path),
                _ => ControlError::Io { path, source },
            }),
        }
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// When the service disconnects, or when its reply cannot be parsed.
    pub fn call<Q: Serialize, A: DeserializeOwned>(&mut self, request: &Q) -> Result<A, ControlError> {
        self.send_request(request)?;
        self.read_reply()
    }

    /// Sends a request without waiting.
    ///
    /// The caller may do other work before it reads the reply with
    /// [`read_reply`](Self::read_reply).
    ///
    /// # Errors
    /// When the service has disconnected.
    pub fn send_request<Q: Serialize>(&mut self, request: &Q) -> Result<(), ControlError> {
        let line = to_line(request, MAX_REQUEST)?;
        self.reader.get_mut().write_all(&line).map_err(|source| self.io_error(source))
    }

    /// Waits for the reply to an earlier request.
    ///
    /// # Errors
    /// When the service disconnects, or when its reply cannot be parsed.
    pub fn read_reply<A: DeserializeOwned>(&mut self) -> Result<A, ControlError> {
        self.next_line()?.ok_or_else(|| ControlError::HungUp(self.path.clone()))
    }

    /// Reads the next line of a reply of several lines; returns `None` when the service has closed
    /// the connection after the last line.
    ///
    /// # Errors
    /// When the line is incomplete, too long or cannot be parsed.
    pub fn next_line<A: DeserializeOwned>(&mut self) -> Result<Option<A>, ControlError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.reader).take(MAX_REPLY as u64 + 1);
        bounded.read_until(b'\n', &mut line).map_err(|source| self.io_error(source))?;
        if line.is_empty() {
            return Ok(None);
        }
        if !line.ends_with(b"\n") {
            let cut_off = line.len() <= MAX_REPLY;
            return Err(if cut_off {
                ControlError::HungUp(self.path.clone())
            } else {
                ControlError::TooLong
            });
        }
        parse(&line).map(Some)
    }

    /// Converts the error of a system call on the connection. A service that ends resets the
    /// connection.
    fn io_error(&self, source: io::Error) -> ControlError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ControlError::HungUp(path),
            _ => ControlError::Io { path, source },
        }
    }
}
