//! The state of a session that only one of the two roles has.

use std::sync::Arc;
use std::time::Instant;

use crate::message::VersionedConfig;
use crate::{Announcement, PushConfig};

/// The role of a session, with the state that only this role has.
#[derive(Debug)]
pub(super) enum Side {
    /// The agent's end, which opens paths and chooses the active one.
    Client(Client),
    /// The relay's end, which accepts paths and pushes the configuration.
    Relay(Relay),
}

/// The state that only a client's session has.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// The relay's configuration; `None` before the first WELCOME.
    pub(super) config: Option<VersionedConfig>,
    /// When the session last acted on DOUBT, the relay's report that it gets no answers on the
    /// active path.
    pub(super) last_doubt: Option<Instant>,
    /// The relay's announcement that the owner of the session has stored.
    pub(super) stored: Option<Arc<Announcement>>,
}

/// The state that only a relay's session has.
#[derive(Debug)]
pub(super) struct Relay {
    /// The configuration that is pushed to the client.
    pub(super) config: VersionedConfig,
}

impl Relay {
    /// Creates the state with the first configuration.
    pub(super) fn new(config: PushConfig) -> Self {
        Self { config: VersionedConfig { version: 0, config } }
    }
}

impl Side {
    /// Returns whether this is the agent's end.
    pub(super) fn is_client(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    /// Returns the relay's configuration, once it is known.
    pub(super) fn config(&self) -> Option<&PushConfig> {
        match self {
            Self::Client(client) => client.config.as_ref().map(|known| &known.config),
            Self::Relay(relay) => Some(&relay.config.config),
        }
    }
}
