//! Compression of inner packets on paths where both ends agreed to it.
//!
//! Packets are compressed after they were numbered, for one path, so that replay and handover are
//! not affected. A path is a byte stream that delivers in order or fails, so each direction has one
//! zstd stream with its own history, flushed after each packet. A record that is retransmitted on
//! another path is compressed again with that path's history. Headers that resemble the previous
//! ones shrink to little more than their differences.

mod codec;
mod heuristic;

pub(crate) use codec::{Decoder, Encoder};
pub(crate) use heuristic::Heuristic;

use crate::{Packet, ProtocolError};

/// The identifier of zstd in HELLO and WELCOME, the first frames of a path.
pub(crate) const ZSTD: u8 = 1;

/// Minimum length of a packet to compress, in bytes. Compression would save less of shorter packets
/// (acknowledgements, keystrokes) than the size of the headers around them.
pub(crate) const MIN_LENGTH: usize = 128;

/// The state of compression for the packets sent on a path.
#[derive(Debug, Default)]
pub(crate) enum SendCompression {
    /// Packets are sent as they are: compression was not agreed, or it failed.
    #[default]
    Off,
    /// Both ends agreed; the encoder is created with the first packet.
    Agreed,
    /// The encoder is running since the first packet.
    Active(Box<Encoder>),
}

impl SendCompression {
    /// Returns whether packets are compressed.
    pub(crate) fn is_on(&self) -> bool {
        !matches!(self, Self::Off)
    }

    /// Compresses a packet. If the encoder fails for lack of memory, compression stays off on this
    /// path and `None` is returned; packets compressed before remain valid.
    pub(crate) fn encode(&mut self, packet: Packet<'_>) -> Option<&[u8]> {
        if let Self::Agreed = self {
            *self = Encoder::new().map_or(Self::Off, |encoder| Self::Active(Box::new(encoder)));
        }
        let Self::Active(encoder) = self else { return None };
        if encoder.encode(packet.bytes) {
            // Matched again for the borrow checker.
            let Self::Active(encoder) = self else { return None };
            return Some(encoder.output());
        }
        *self = Self::Off;
        None
    }
}

/// The state of compression for the packets received on a path.
#[derive(Debug, Default)]
pub(crate) enum ReceiveCompression {
    /// The peer may send no compressed packets: compression was not agreed.
    #[default]
    Off,
    /// The peer may send compressed packets; the decoder is created with the first one.
    Agreed,
    /// The decoder is running since the first compressed packet.
    Active(Box<Decoder>),
}

impl ReceiveCompression {
    /// Returns the state of a new path, given whether compression was `agreed`.
    pub(crate) fn new(agreed: bool) -> Self {
        if agreed { Self::Agreed } else { Self::Off }
    }

    /// Returns the decoder of the path's compressed packets; `None` if compression was not agreed.
    ///
    /// # Errors
    /// If memory is exhausted.
    pub(crate) fn decoder(&mut self) -> Result<Option<&mut Decoder>, ProtocolError> {
        if let Self::Agreed = self {
            *self = Self::Active(Box::new(Decoder::new()?));
        }
        match self {
            Self::Active(decoder) => Ok(Some(decoder)),
            Self::Off | Self::Agreed => Ok(None),
        }
    }
}
