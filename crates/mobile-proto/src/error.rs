//! Errors in data received from the peer.

use crate::{PathId, SessionId};

/// A violation of the protocol by the peer; the errors about paths and sessions may also be the
/// caller's.
///
/// The path on which it occurred is closed. The session continues with its unacknowledged records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A frame announces a longer payload than any frame may have.
    #[error(
        "frame type {kind:#04x} announces a payload of {length} bytes, above the maximum of {max}: the peer speaks another protocol or is broken"
    )]
    FrameTooLong {
        /// The type of the frame.
        kind: u8,
        /// The announced length in bytes.
        length: u64,
        /// The maximum length in bytes.
        max: usize,
    },
    /// A frame type below 0x80 that this version does not know.
    #[error("unknown frame type {0:#04x}: the peer is newer than its ALPN name says, or is broken")]
    UnknownFrame(u8),
    /// A known frame that is not allowed from this peer or in this state.
    #[error("unexpected {frame} frame {place}")]
    Unexpected {
        /// The name of the frame.
        frame: &'static str,
        /// The circumstances in which the frame is not allowed.
        place: &'static str,
    },
    /// The payload of a frame cannot be parsed.
    #[error("malformed {frame} frame: {what}")]
    Malformed {
        /// The name of the frame.
        frame: &'static str,
        /// The defect of the payload.
        what: &'static str,
    },
    /// The peer acknowledges records that were never sent.
    #[error("the peer acknowledges records up to {acked}, but only {sent} were sent")]
    AckBeyondSent {
        /// The number of the record that the peer claims to expect next.
        acked: u64,
        /// The number of the next record to send.
        sent: u64,
    },
    /// A HELLO for another session was passed to this one.
    #[error("path {path} belongs to session {got}, not to {expected}")]
    WrongSession {
        /// The path id in the HELLO.
        path: PathId,
        /// The session id in the HELLO.
        got: SessionId,
        /// The id of this session.
        expected: SessionId,
    },
    /// The session already has the maximum number of paths.
    #[error("path {path} refused: the session already has {max} paths; close one first")]
    TooManyPaths {
        /// The path that was refused.
        path: PathId,
        /// The maximum number of paths.
        max: usize,
    },
    /// A path was to be accepted by a client's session, which only opens paths.
    #[error("path {0} refused: a client session opens paths and cannot accept one")]
    NotAServer(PathId),
}
