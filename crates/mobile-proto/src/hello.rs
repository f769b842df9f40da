//! HELLO, the first frame of a path, with which the client names the session of the path.

use crate::compression::ZSTD;
use crate::frame::{self, Decoded, PayloadReader};
use crate::{PathId, ProtocolError, SessionId, config, varint};

/// The first message of a client on a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The session that the path belongs to.
    pub session: SessionId,
    /// The relay's epoch as known to the client; 0 if unknown.
    pub epoch: u64,
    /// The id of the path.
    pub path: PathId,
    /// The client's switch counter when it opened the path. An ACTIVATE sent earlier does not list
    /// the path as one to keep, and still must not free it.
    pub switch: u64,
    /// Whether the client can read compressed packets, and wants to send them.
    pub compression: bool,
}

/// Tag of the item of HELLO with one byte for each kind of compression that the client can read.
const TAG_COMPRESSION: u64 = 1;

impl Hello {
    /// Appends the HELLO frame.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(40);
        payload.extend_from_slice(&self.session.0);
        payload.extend_from_slice(&self.epoch.to_be_bytes());
        payload.extend_from_slice(&self.path.0.to_be_bytes());
        varint::put(&mut payload, self.switch);
        if self.compression {
            config::put_item(&mut payload, TAG_COMPRESSION, &[ZSTD]);
        }
        frame::put(out, frame::HELLO, &payload);
    }

    fn decode(payload: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = PayloadReader::new("HELLO", payload);
        let mut hello = Self {
            session: SessionId(reader.array()?),
            epoch: u64::from_be_bytes(reader.array()?),
            path: PathId(u32::from_be_bytes(reader.array()?)),
            switch: reader.counter()?,
            compression: false,
        };
        // Items of a later version are skipped; each must be complete.
        while !reader.is_empty() {
            if let (TAG_COMPRESSION, kinds) = config::item(&mut reader)? {
                hello.compression = kinds.contains(&ZSTD);
            }
        }
        Ok(hello)
    }
}

/// Collects the bytes of a path until its HELLO is complete.
///
/// The relay uses a reader while the session of the path is not known yet. A reader holds no more
/// than one HELLO and the bytes of one call to [`feed`](Self::feed).
#[derive(Debug, Default)]
pub struct HelloReader {
    buffer: Vec<u8>,
}

impl HelloReader {
    /// Creates a reader for a new path.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends decrypted bytes of the path. When the HELLO is complete, returns it with the bytes
    /// after it, which belong to [`Session::handle_input`](crate::Session::handle_input).
    ///
    /// # Errors
    /// If the path does not start with a valid HELLO.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<(Hello, Vec<u8>)>, ProtocolError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.first().is_some_and(|&kind| kind != frame::HELLO) {
            return Err(ProtocolError::Unexpected { frame: "first", place: "other than HELLO" });
        }
        match frame::decode(&self.buffer)? {
            Decoded::Incomplete { .. } => Ok(None),
            Decoded::Frame { payload, consumed, .. } => {
                let hello = Hello::decode(payload)?;
                Ok(Some((hello, self.buffer.split_off(consumed))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            session: SessionId([9; 16]),
            epoch: u64::MAX,
            path: PathId(70_000),
            switch: 300,
            compression: true,
        }
    }

    #[test]
    fn hello_is_read_from_any_pieces() {
        let mut wire = Vec::new();
        hello().put(&mut wire);
        let whole = wire.len();
        wire.extend_from_slice(b"rest");
        for cut in 0..wire.len() {
            let mut reader = HelloReader::new();
            let first = reader.feed(&wire[..cut]).unwrap();
            assert_eq!(first.is_some(), cut >= whole);
            let (got, rest) = match first {
                Some(found) => found,
                None => reader.feed(&wire[cut..]).unwrap().unwrap(),
            };
            assert_eq!(got, hello());
            assert_eq!(&rest[..], if cut >= whole { &wire[whole..cut] } else { b"rest" });
        }
    }

    #[test]
    fn other_first_frames_are_refused_at_once() {
        assert!(HelloReader::new().feed(b"GET / HTTP/1.1").is_err());
        let mut long = vec![frame::HELLO];
        varint::put(&mut long, 5000);
        assert!(HelloReader::new().feed(&long).is_err());
        assert!(HelloReader::new().feed(&[frame::HELLO, 3, 1, 2, 3]).is_err());
    }

    #[test]
    fn items_of_a_later_version_are_skipped() {
        let mut wire = Vec::new();
        hello().put(&mut wire);
        let Decoded::Frame { payload, .. } = frame::decode(&wire).unwrap() else { panic!("whole") };
        let mut payload = payload.to_vec();
        config::put_item(&mut payload, 77, b"x");
        let mut later = Vec::new();
        frame::put(&mut later, frame::HELLO, &payload);
        assert_eq!(HelloReader::new().feed(&later).unwrap().unwrap().0, hello());
    }
}
