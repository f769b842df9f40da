//! What can be wrong with a peer's bytes.

use crate::{PathId, SessionId};

/// The peer (or, for the path errors, the caller) broke the protocol. The path it happened on is
/// closed; the session and its unacknowledged records live on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A frame announces more payload than any frame may have.
    #[error(
        "frame type {kind:#04x} announces {length} bytes of payload, more than {max}: the peer speaks another protocol or is broken"
    )]
    FrameTooLong {
        /// The frame's type.
        kind: u8,
        /// What it announces.
        length: u64,
        /// What it may announce.
        max: usize,
    },
    /// A frame type below 0x80 that this version does not know.
    #[error("unknown frame type {0:#04x}: the peer is newer than its ALPN name says, or is broken")]
    UnknownFrame(u8),
    /// A known frame in a place where it means nothing.
    #[error("{frame} frame {place}")]
    Unexpected {
        /// The frame's name.
        frame: &'static str,
        /// Where it came.
        place: &'static str,
    },
    /// The payload of a frame cannot be read.
    #[error("malformed {frame} frame: {what}")]
    Malformed {
        /// The frame's name.
        frame: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The peer acknowledges records that were never sent.
    #[error("the peer acknowledges records up to {acked}, but only {sent} were sent")]
    AckBeyondSent {
        /// The number it says it expects next.
        acked: u64,
        /// The number that will be sent next.
        sent: u64,
    },
    /// A HELLO for another session was given to this one.
    #[error("path {path} belongs to session {got}, not to {expected}")]
    WrongSession {
        /// The path in the HELLO.
        path: PathId,
        /// The session in the HELLO.
        got: SessionId,
        /// This session.
        expected: SessionId,
    },
    /// The session has as many paths as it may have.
    #[error("path {path} refused: the session already has {max} paths; close one first")]
    TooManyPaths {
        /// The path that asked.
        path: PathId,
        /// The bound.
        max: usize,
    },
    /// A client's session cannot accept paths.
    #[error("path {0} refused: a client opens paths, it does not accept them")]
    NotAServer(PathId),
}
