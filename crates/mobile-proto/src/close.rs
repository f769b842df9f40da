//! Reasons for closing a path.

use std::fmt;

/// The reason why a path was closed, sent as one byte. A code that only a later version defines is
/// kept as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The path is no longer needed.
    Normal,
    /// The client moved to another path, or another connection uses the same path id.
    Replaced,
    /// The client's key is no longer authorised.
    Revoked,
    /// The peer is shutting down.
    Shutdown,
    /// The peer received data that violates the protocol.
    ProtocolError,
    /// The relay's address pool is exhausted.
    NoAddress,
    /// The path was silent for too long.
    Timeout,
    /// The path belongs to a session that the relay no longer knows.
    SessionGone,
    /// The relay refuses further load for the moment.
    Busy,
    /// A code that this version does not know.
    Other(u8),
}

impl CloseCode {
    /// Returns the code as a byte for the wire.
    #[must_use]
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::Replaced => 1,
            Self::Revoked => 2,
            Self::Shutdown => 3,
            Self::ProtocolError => 4,
            Self::NoAddress => 5,
            Self::Timeout => 6,
            Self::SessionGone => 7,
            Self::Busy => 8,
            Self::Other(code) => code,
        }
    }

    /// Returns the code for a byte from the wire.
    #[must_use]
    pub fn from_wire(code: u8) -> Self {
        match code {
            0 => Self::Normal,
            1 => Self::Replaced,
            2 => Self::Revoked,
            3 => Self::Shutdown,
            4 => Self::ProtocolError,
            5 => Self::NoAddress,
            6 => Self::Timeout,
            7 => Self::SessionGone,
            8 => Self::Busy,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("closed normally"),
            Self::Replaced => f.write_str("replaced by another path"),
            Self::Revoked => f.write_str("the client's key is no longer authorised"),
            Self::Shutdown => f.write_str("the peer is stopping"),
            Self::ProtocolError => f.write_str("protocol error"),
            Self::NoAddress => f.write_str("the relay's address pool is exhausted"),
            Self::Timeout => f.write_str("no data received for too long"),
            Self::SessionGone => f.write_str("the relay no longer knows the session"),
            Self::Busy => f.write_str("the relay is busy"),
            Self::Other(code) => write!(f, "closed with unknown code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::CloseCode;

    #[test]
    fn every_byte_survives_a_round_trip() {
        for code in 0..=u8::MAX {
            assert_eq!(CloseCode::from_wire(code).to_wire(), code);
        }
    }
}
