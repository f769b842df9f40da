//! The admin protocol: commands ask a running relay over a Unix socket, with one JSON line in each
//! direction.
//!
//! [`Request`] and [`AdminReply`] are the messages; `server::admin_socket` is the relay's end of
//! the socket, and the `cli` and `check` modules are the other end.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use mobile_host::control::{Client, ControlError};
use mobile_transport::invitation::TokenHash;
use mobile_transport::keys::PublicKey;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::announced::IdentityState;
use crate::config::Config;
use crate::pool::Lease;
use crate::status::RelayStatus;
use crate::store::{self, Forward, ListedClient, NewClient, Protocol, Snapshot};

/// The environment variable with the path of the admin socket, which overrides the configuration.
const SOCKET_VARIABLE: &str = "HOME_RELAY_ADMIN_SOCKET";

/// A request to the running relay.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verb", deny_unknown_fields)]
pub(crate) enum Request {
    /// Authorises the listed clients: all of them, or none if one is refused.
    Authorize {
        /// The clients to authorise.
        clients: Vec<NewClient>,
    },
    /// Creates an invitation. The relay learns only the hash of the token.
    Invite {
        /// The operator's name for the client.
        name: String,
        /// The token's hash.
        token: TokenHash,
        /// How long the invitation is valid, in seconds.
        lifetime: u64,
        /// The addresses requested for the client; the relay assigns a free one where none is
        /// requested.
        wanted: Lease,
    },
    /// Revokes a client and ends its session, or withdraws an invitation.
    Revoke {
        /// The name of the client or invitation.
        name: String,
    },
    /// Lists all clients and all redeemable invitations.
    Clients,
    /// Lists all running sessions.
    Sessions,
    /// Returns what `home-relay status` shows.
    Status,
    /// Returns the content of the store, in several replies.
    Snapshot,
    /// Reloads the configuration file.
    Reload,
    /// Returns the relay's keys and announced endpoint, and which clients know them.
    Identity,
    /// Reads the key files again.
    RereadKeys,
    /// Announces an endpoint to the clients, or withdraws it.
    Move {
        /// The endpoint as `host:port`; `None` withdraws it.
        endpoint: Option<String>,
    },
    /// Checks the home virtual device, its addresses, IP forwarding and the nftables rules, and
    /// restores what differs from the configuration.
    #[serde(rename = "look")]
    Reconcile,
    /// Returns the path of the relay's configuration file.
    Config,
    /// Returns the configuration in force, which may differ from the file.
    AppliedConfig,
    /// Forwards a port of this host to a client.
    Forward(Forward),
    /// Deletes a port forward.
    Unforward {
        /// The port's protocol.
        protocol: Protocol,
        /// The number of the port.
        port: u16,
    },
    /// Lists all port forwards.
    Forwards,
}

/// A reply of the running relay.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AdminReply {
    /// The authorised clients, in the order of the request.
    Authorized(Vec<store::Client>),
    /// The created invitation.
    Invited {
        /// The relay's public key.
        relay: PublicKey,
        /// The invited client's name and addresses.
        entry: ListedClient,
    },
    /// The client that was revoked, or the invitation that was withdrawn.
    Revoked(ListedClient),
    /// All clients and all redeemable invitations.
    Clients(Vec<ListedClient>),
    /// All running sessions.
    Sessions(Vec<SessionInfo>),
    /// The state of the relay.
    Status(Box<RelayStatus>),
    /// A part of the content of the store.
    Snapshot {
        /// The rows of this part.
        part: Snapshot,
        /// Whether another reply with a further part follows.
        more: bool,
    },
    /// The configuration was reloaded; lists the settings that changed.
    Reloaded(Reloaded),
    /// The parts of the kernel's network state that the relay restored, by name; empty if nothing
    /// differed.
    #[serde(rename = "looked")]
    Reconciled(Vec<String>),
    /// The relay's keys and announced endpoint, and which clients know them.
    Identity(IdentityState),
    /// The port forward that was added or deleted.
    Forward(Forward),
    /// The port forwards of every client.
    Forwards(Vec<Forward>),
    /// The path of the configuration file, without symbolic links.
    Config(PathBuf),
    /// The configuration in force.
    AppliedConfig(Box<Config>),
    /// The request failed; the text gives the reason.
    Error(String),
}

/// A running session, as `sessions --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionInfo {
    /// The client's name.
    pub(crate) client: String,
    /// The session id, in hexadecimal.
    pub(crate) session: String,
    /// The client's persistent IPv4 address; `None` if the relay serves no IPv4.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The client's persistent IPv6 address; `None` if the relay serves no IPv6.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// Seconds since the session began.
    pub(crate) age_seconds: u64,
    /// The open paths; empty while the client is unreachable.
    pub(crate) paths: Vec<PathInfo>,
    /// Bytes queued for the client and not yet sent.
    pub(crate) queued_bytes: u64,
    /// Bytes sent to the client and not yet acknowledged.
    pub(crate) unacknowledged_bytes: u64,
    /// Packets received from the client.
    pub(crate) rx_packets: u64,
    /// Bytes of the packets received from the client.
    pub(crate) rx_bytes: u64,
    /// Packets sent to the client.
    pub(crate) tx_packets: u64,
    /// Bytes of the packets sent to the client.
    pub(crate) tx_bytes: u64,
}

/// An open path of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PathInfo {
    /// The path number that the client chose.
    pub(crate) path: u32,
    /// The client's address and port outside the tunnel, as this host sees them; `None` if not
    /// known yet.
    pub(crate) peer: Option<SocketAddr>,
    /// Whether this is the active path, which carries the data.
    pub(crate) active: bool,
}

/// The outcome of a reload: the configuration keys whose values in the file differ from those in
/// force before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    /// The keys whose new values are in force.
    pub(crate) changed: Vec<String>,
    /// The keys that keep their values until a restart.
    pub(crate) kept: Vec<String>,
}

/// The reason why a command does not talk to the relay on an admin socket.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    /// The relay on the socket has another configuration file.
    #[error(
        "{} is the socket of the relay with the configuration {}, not {}: name that file with --config, or set \
         another [admin] socket in one of them",
        socket.display(), other.display(), config.display()
    )]
    OtherRelay {
        /// The admin socket.
        socket: PathBuf,
        /// The configuration file of the relay that answers.
        other: PathBuf,
        /// The configuration file of the command.
        config: PathBuf,
    },
    /// The socket cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Connects to the relay on `socket` whose configuration file is `config`, a path without symbolic
/// links; returns `None` if no relay is running.
///
/// A relay of an earlier version, which cannot tell its file, passes, and so does any relay whose
/// socket `HOME_RELAY_ADMIN_SOCKET` names.
pub(crate) fn connect(socket: &Path, config: &Path) -> Result<Option<Client>, ConnectError> {
    let mut relay = match Client::connect(socket) {
        Ok(relay) => relay,
        Err(ControlError::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if std::env::var_os(SOCKET_VARIABLE).is_some() {
        return Ok(Some(relay));
    }
    match relay.call(&Request::Config)? {
        AdminReply::Config(other) if other != config => {
            Err(ConnectError::OtherRelay { socket: socket.to_owned(), other, config: config.to_owned() })
        }
        _ => Ok(Some(relay)),
    }
}
