//! What commands say to a running relay: one JSON line each way over the admin socket.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use mobile_io::invitation::TokenHash;
use mobile_io::keys::PublicKey;
use serde::{Deserialize, Serialize};

use crate::pool::Lease;
use crate::server::Reloaded;
use crate::store::{Client, Entry, Forward, Newcomer, Protocol};

mod server;

pub(crate) use server::run;

/// A command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verb", deny_unknown_fields)]
pub(crate) enum Request {
    /// Let clients in, all or none.
    Authorize {
        /// Who.
        clients: Vec<Newcomer>,
    },
    /// Let in whoever brings a token. The relay learns its hash only.
    Invite {
        /// The operator's name for it.
        name: String,
        /// The token's hash.
        token: TokenHash,
        /// How long it holds, in seconds.
        lifetime: u64,
        /// The addresses it is to have; free ones where none is named.
        wanted: Lease,
    },
    /// Shut a client out, its live session included, or withdraw an invitation.
    Revoke {
        /// Its name.
        name: String,
    },
    /// All clients, and who is invited.
    Clients,
    /// All live sessions.
    Sessions,
    /// Read the configuration anew.
    Reload,
    /// Look whether device, addresses, forwarding and rules are as they should be, and put back what is not.
    Look,
    /// Lead a port of this host to a client.
    Forward(Forward),
    /// No longer.
    Unforward {
        /// The port's protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
    /// All ports that lead to clients.
    Forwards,
}

/// The relay's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The clients that were authorised, in the order asked.
    Authorized(Vec<Client>),
    /// Who was invited, and by whom.
    Invited {
        /// The relay's identity.
        relay: PublicKey,
        /// Who was invited.
        entry: Entry,
    },
    /// The client that was revoked, or the invitation that was withdrawn.
    Revoked(Entry),
    /// All clients, and who is invited.
    Clients(Vec<Entry>),
    /// All live sessions.
    Sessions(Vec<SessionInfo>),
    /// What has changed.
    Reloaded(Reloaded),
    /// What was not as it should be, and is again.
    Looked(Vec<String>),
    /// The port that leads to a client now, or did until now.
    Forward(Forward),
    /// All ports that lead to clients.
    Forwards(Vec<Forward>),
    /// It could not be done; the text says why.
    Error(String),
}

/// One live session, as `sessions --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionInfo {
    /// The client's name.
    pub(crate) client: String,
    /// The session's id, in hexadecimal.
    pub(crate) session: String,
    /// The persistent addresses.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The persistent addresses.
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// Seconds since the session began.
    pub(crate) age_seconds: u64,
    /// The client's connections; none while it is out of reach.
    pub(crate) paths: Vec<PathInfo>,
    /// Bytes for the client not yet sent.
    pub(crate) queued_bytes: u64,
    /// Bytes sent to the client and not yet acknowledged.
    pub(crate) unacknowledged_bytes: u64,
    /// Packets received from the client.
    pub(crate) rx_packets: u64,
    /// Bytes of them.
    pub(crate) rx_bytes: u64,
    /// Packets sent to the client.
    pub(crate) tx_packets: u64,
    /// Bytes of them.
    pub(crate) tx_bytes: u64,
}

/// One path of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PathInfo {
    /// The number the client gave it.
    pub(crate) path: u32,
    /// The client's address, as this host sees it.
    pub(crate) peer: Option<SocketAddr>,
    /// Does it carry the data now?
    pub(crate) active: bool,
}
