//! HELLO: the first frame of a path, by which the client says what the path belongs to.

use crate::{PathId, ProtocolError, SessionId};

/// The first thing a client says on a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The session that the path belongs to.
    pub session: SessionId,
    /// The relay's epoch that the client knows, 0 if none.
    pub epoch: u64,
    /// The path's name.
    pub path: PathId,
    /// The client's switch counter when it opened the path: an ACTIVATE sent before that cannot
    /// know the path, and so does not free it.
    pub switch: u64,
}

/// Relay side, before the session is known: collects bytes until the HELLO is whole.
#[derive(Debug, Default)]
pub struct HelloReader {
    buffer: Vec<u8>,
}

impl HelloReader {
    /// A reader for a fresh path.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes decrypted bytes. When the HELLO is whole, returns it with the bytes after it, which
    /// belong to [`Session::handle_input`](crate::Session::handle_input).
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<(Hello, Vec<u8>)>, ProtocolError> {
        self.buffer.extend_from_slice(bytes);
        Ok(None)
    }
}
