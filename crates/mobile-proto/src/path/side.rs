//! The state of a path that only one end has.

use std::time::Instant;

use crate::PathId;

/// The end of a path at which this session is, with the state that only this end has. The client's
/// state is boxed, because a relay has thousands of paths and a client a few.
#[derive(Debug)]
pub(crate) enum PathSide {
    /// The end that opened the path and decides when to activate it.
    Client(Box<ClientPath>),
    /// The end that accepted the path.
    Relay(RelayPath),
}

/// The client's state of a path: its HELLO and its ACTIVATE, and the relay's answers to them.
#[derive(Debug, Default)]
pub(crate) struct ClientPath {
    /// The epoch named in HELLO, then the one named in WELCOME.
    pub(crate) epoch: u64,
    /// When HELLO was sent; `None` before.
    pub(crate) hello_sent_at: Option<Instant>,
    /// The paths to keep, of an activation that waits for WELCOME or may have to be repeated then.
    pub(crate) pending_activation: Option<Vec<PathId>>,
    /// The nonce of the PING sent with ACTIVATE. A PONG with this nonce, or a later one, is the
    /// relay's answer to ACTIVATE.
    pub(crate) confirming_nonce: Option<u64>,
    /// Whether ACTIVATE was written directly after HELLO, so that WELCOME answers both.
    pub(crate) activated_early: bool,
}

/// The relay's state of a path: what its HELLO said, and the frames that only a relay sends.
#[derive(Debug, Default)]
pub(crate) struct RelayPath {
    /// The client's switch counter when it opened the path.
    pub(crate) switch: u64,
    /// Whether received records are numbered for another epoch, until an ACTIVATE for this epoch
    /// arrives.
    pub(crate) stale_epoch: bool,
    /// Whether the configuration has to be sent.
    pub(crate) config_due: bool,
    /// Whether DOUBT has to be sent, because the active path is probing or unresponsive.
    pub(crate) doubt_due: bool,
}

impl PathSide {
    /// Returns the client's state, if this is the client's end.
    pub(crate) fn client(&self) -> Option<&ClientPath> {
        match self {
            Self::Client(client) => Some(client),
            Self::Relay(_) => None,
        }
    }

    /// Returns the client's state for a change, if this is the client's end.
    pub(crate) fn client_mut(&mut self) -> Option<&mut ClientPath> {
        match self {
            Self::Client(client) => Some(client),
            Self::Relay(_) => None,
        }
    }

    /// Returns the relay's state, if this is the relay's end.
    pub(crate) fn relay(&self) -> Option<&RelayPath> {
        match self {
            Self::Client(_) => None,
            Self::Relay(relay) => Some(relay),
        }
    }

    /// Returns the relay's state for a change, if this is the relay's end.
    pub(crate) fn relay_mut(&mut self) -> Option<&mut RelayPath> {
        match self {
            Self::Client(_) => None,
            Self::Relay(relay) => Some(relay),
        }
    }
}
