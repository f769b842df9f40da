//! The admin protocol: commands ask a running relay over a Unix socket, with one JSON line in each
//! direction.
//!
//! [`Request`] and [`AdminReply`] are the messages; `server` is the relay's end of the socket, and
//! the `cli` module is the other end.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use mobile_io::invitation::TokenHash;
use mobile_io::keys::PublicKey;
use serde::{Deserialize, Serialize};

use crate::pool::Lease;
use crate::server::Reloaded;
use crate::store::{Client, Forward, ListedClient, NewClient, Protocol};

mod server;

pub(crate) use server::run;

/// A request to the running relay.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verb", deny_unknown_fields)]
pub(crate) enum Request {
    /// Authorises clients; all of them, or none.
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
        /// The addresses that the client is to have; free ones where none is named.
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
    /// Reloads the configuration file.
    Reload,
    /// Checks device, addresses, forwarding and rules, and restores what differs.
    #[serde(rename = "look")]
    Reconcile,
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
    Authorized(Vec<Client>),
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
    /// The clients that have a session now.
    Sessions(Vec<SessionInfo>),
    /// The outcome of the reload.
    Reloaded(Reloaded),
    /// The names of what was restored.
    #[serde(rename = "looked")]
    Reconciled(Vec<String>),
    /// The port forward that was added or deleted.
    Forward(Forward),
    /// The port forwards of every client.
    Forwards(Vec<Forward>),
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
    /// The client's persistent IPv4 address.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The client's persistent IPv6 address.
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
    /// The client's address, as this host sees it.
    pub(crate) peer: Option<SocketAddr>,
    /// Whether this is the active path, which carries the data.
    pub(crate) active: bool,
}
