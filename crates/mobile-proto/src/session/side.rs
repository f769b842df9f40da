//! The state of a session that only one of the two roles has.

use super::client::Client;
use super::relay::Relay;
use crate::PushConfig;

/// The role of a session, with the state that only this role has.
#[derive(Debug)]
pub(super) enum Side {
    /// The agent's end, which opens paths and chooses the active one.
    Client(Client),
    /// The relay's end, which accepts paths and pushes the configuration.
    Relay(Relay),
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
