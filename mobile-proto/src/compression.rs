//! Compression of inner packets, on the paths where both ends want it.
//!
//! It lies below numbering, replay and handover: a path is a byte stream that delivers in order or dies, so each direction of it
//! has one zstd stream with a history of its own, flushed behind each packet. A record that is sent again on another path is
//! compressed again, with that path's history. Headers that resemble those before them shrink to little more than what changed.

mod codec;
mod heuristic;

pub(crate) use codec::{Decoder, Encoder};
pub(crate) use heuristic::Heuristic;

use crate::Packet;

/// The name of zstd in HELLO and WELCOME.
pub(crate) const ZSTD: u8 = 1;

/// Shorter packets are sent as they are: acknowledgements, keystrokes. What could be saved is less than the headers around it.
pub(crate) const MIN_LENGTH: usize = 128;

/// What one end of a path does to what it sends.
#[derive(Debug, Default)]
pub(crate) enum SendCompression {
    /// The peer did not ask for it, or we do not want it, or it has failed.
    #[default]
    Off,
    /// From the first packet on.
    Agreed,
    /// Since the first packet.
    Active(Box<Encoder>),
}

impl SendCompression {
    /// Whether packets are compressed.
    pub(crate) fn is_on(&self) -> bool {
        !matches!(self, Self::Off)
    }

    /// Compresses a packet. If that is impossible, because there is no memory, none is any more on this path; what was
    /// compressed before stands.
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
