//! The database of clients, invitations, their addresses, and port forwards: one redb file in the
//! state directory.
//!
//! A change is durable when the call returns, and a crash at any instant leaves the old or the new
//! state. Only one process has the database open: the running relay, or otherwise a command.

use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mobile_transport::invitation::TokenHash;
use mobile_transport::keys::PublicKey;
use redb::{Database, DatabaseError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use self::announced::Confirmed;
pub(crate) use self::forwards::{Forward, Protocol};
use self::schema::FILE;
pub(crate) use self::snapshot::Snapshot;
use crate::pool::{Lease, PoolError};
use crate::reach::Reach;

mod address_tables;
mod announced;
mod clients;
mod forwards;
mod invitations;
mod schema;
mod snapshot;

/// How long a command waits while another process has the database open; other commands need it for
/// milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest name of a client, in bytes. Names appear in logs, tables and file names, and the
/// length of a DNS label is enough for any machine.
const MAX_NAME: usize = 63;

/// An authorised client: its name for people, its key for the handshake, and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Client {
    /// The operator's name for the client.
    pub(crate) name: String,
    /// The client's public key.
    pub(crate) public_key: PublicKey,
    /// The persistent addresses of the client.
    #[serde(flatten)]
    pub(crate) lease: Lease,
    /// The time of the authorisation, in seconds since 1970.
    pub(crate) created: u64,
    /// The client's own reach; `None` follows `[clients] reach`.
    #[serde(default)]
    pub(crate) reach: Option<Reach>,
    /// The key that replaces `public_key` once it has opened a session.
    #[serde(default)]
    pub(crate) next_key: Option<PublicKey>,
    /// The announcement of the relay that the client has stored.
    #[serde(default)]
    pub(crate) confirmed: Confirmed,
}

impl Client {
    /// Creates a client that has confirmed no announcement.
    pub(crate) fn new(name: String, public_key: PublicKey, lease: Lease, created: u64) -> Self {
        let confirmed = Confirmed::default();
        Self { name, public_key, lease, created, reach: None, next_key: None, confirmed }
    }

    /// Returns whether the key is this client's, now or next.
    pub(crate) fn has_key(&self, key: &PublicKey) -> bool {
        self.public_key == *key || self.next_key == Some(*key)
    }
}

/// A request to authorise a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewClient {
    /// The operator's name for the client.
    pub(crate) name: String,
    /// The client's public key.
    pub(crate) public_key: PublicKey,
    /// The addresses requested for the client; where none is requested, a known client keeps its
    /// address and a new one gets a free address.
    #[serde(default)]
    pub(crate) wanted: Lease,
    /// The reach that the client is to have. Without one, a known client keeps its reach, and a new
    /// client has that of `[clients] reach`.
    #[serde(default)]
    pub(crate) reach: WantedReach,
}

/// A change of a client's reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WantedReach {
    /// Keeps the present reach.
    #[default]
    Unchanged,
    /// Follows `[clients] reach`, without a reach of the client's own.
    Default,
    /// Uses this reach as the client's own.
    Own(Reach),
}

impl WantedReach {
    /// Returns a client's own reach after this change, where `before` was its own reach before;
    /// `None` follows `[clients] reach`.
    fn apply_to(&self, before: Option<Reach>) -> Option<Reach> {
        match self {
            Self::Unchanged => before,
            Self::Default => None,
            Self::Own(reach) => Some(reach.clone()),
        }
    }
}

/// A stored invitation: a name that the holder of a token may claim, with the addresses set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredInvitation {
    /// The operator's name for the future client.
    pub(crate) name: String,
    /// The hash of the token; only the invitation itself has the token.
    pub(crate) token: TokenHash,
    /// The addresses set aside for the client.
    #[serde(flatten)]
    pub(crate) lease: Lease,
    /// The time of the invitation, in seconds since 1970.
    pub(crate) created: u64,
    /// The time at which the invitation expires, in seconds since 1970.
    pub(crate) expires: u64,
    /// The key that redeemed the invitation, or `None` if it is unused. With this key, a used token
    /// is told from an unknown one, and a repeated request of the same key from another key's
    /// request.
    pub(crate) used_by: Option<PublicKey>,
}

/// A client or an invitation, as `clients --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListedClient {
    /// The operator's name for the client.
    pub(crate) name: String,
    /// The client's public key; `None` for an invitation.
    pub(crate) public_key: Option<PublicKey>,
    /// The persistent addresses that the client holds or that are set aside for the invitation.
    #[serde(flatten)]
    pub(crate) lease: Lease,
    /// The time of the authorisation or invitation, in seconds since 1970.
    pub(crate) created: u64,
    /// The time at which the invitation expires, in seconds since 1970; `None` for a client.
    pub(crate) expires: Option<u64>,
    /// The client's own reach; `None` follows `[clients] reach`.
    #[serde(default)]
    pub(crate) reach: Option<Reach>,
}

impl From<Client> for ListedClient {
    fn from(client: Client) -> Self {
        let Client { name, public_key, lease, created, reach, .. } = client;
        Self { name, public_key: Some(public_key), lease, created, expires: None, reach }
    }
}

impl From<StoredInvitation> for ListedClient {
    fn from(invited: StoredInvitation) -> Self {
        let StoredInvitation { name, lease, created, expires, .. } = invited;
        Self { name, public_key: None, lease, created, expires: Some(expires), reach: None }
    }
}

/// An error of the store.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// The database cannot be opened or created.
    #[error("cannot open the client store {}: {cause}; check [state] dir and its permissions", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// The error of the system or of redb.
        cause: String,
    },
    /// Another process has the database open.
    #[error(
        "the client store {} is in use by another home-relay that does not answer on the admin socket: \
         stop it, or use the same --config",
        path.display()
    )]
    Busy {
        /// The database file.
        path: PathBuf,
    },
    /// A read or a write failed.
    #[error("the client store failed: {0}; nothing was changed")]
    Database(String),
    /// A row of the database cannot be parsed.
    #[error(
        "the client store's entry {name:?} cannot be read: {cause}; restore the state directory from a backup"
    )]
    Entry {
        /// The key of the row.
        name: String,
        /// The parser's error.
        cause: String,
    },
    /// The rows of a snapshot contradict each other.
    #[error("the clients, invitations and forwards contradict each other: {0}")]
    Inconsistent(String),
    /// The name is not allowed.
    #[error(
        "{0:?} cannot be a client name: use 1 to 63 of a-z, A-Z, 0-9, '.', '_', '-', not starting with '-'"
    )]
    BadName(String),
    /// The name belongs to a client with another key.
    #[error(
        "client {name:?} is already authorised with the key {key}: revoke it first, or choose another name"
    )]
    NameTaken {
        /// The client's name.
        name: String,
        /// The client's present key.
        key: PublicKey,
    },
    /// The key belongs to a client with another name.
    #[error("this key is already authorised as client {name:?}: one identity has one name and one address")]
    KeyTaken {
        /// The name of the client that has the key.
        name: String,
    },
    /// No client has this name.
    #[error("there is no client named {0:?}; `home-relay clients` lists them")]
    Unknown(String),
    /// The key to replace is no client's.
    #[error("the key to replace is not a client's: it was revoked, or never enrolled")]
    NotAClient,
    /// The invited name is already a client's.
    #[error("{0:?} is a client already: revoke it first, or choose another name")]
    AlreadyClient(String),
    /// A requested address is held by another client.
    #[error("{address} is the persistent address of {name:?}: choose another, or revoke {name:?} first")]
    AddressTaken {
        /// The requested address.
        address: IpAddr,
        /// The name of the address's holder.
        name: String,
    },
    /// No invitation has this token.
    #[error("no invitation has this token: it was withdrawn or replaced, or never existed")]
    TokenUnknown,
    /// The invitation has expired.
    #[error("the invitation for {0:?} has expired; `home-relay invite {0}` creates another one")]
    TokenExpired(String),
    /// The clock was set back to before the invitation was made, so its age is unknown.
    #[error(
        "this host's clock shows a time before the invitation for {0:?} was made: set the clock, or make another \
         invitation with `home-relay invite {0}`"
    )]
    TokenFromFuture(String),
    /// The token was already redeemed.
    #[error("the invitation for {0:?} is already used; `home-relay invite` creates another one")]
    TokenUsed(String),
    /// The database was written by a later version.
    #[error(
        "the client store has format {found}, but this version supports at most {known}: use the newer home-relay"
    )]
    NewerFormat {
        /// The format of the file.
        found: u64,
        /// The newest format that this version knows.
        known: u64,
    },
    /// The port is already forwarded to a client.
    #[error("{0}: delete that forward first with `home-relay forward del`, or choose another port")]
    PortTaken(Forward),
    /// The port is not forwarded.
    #[error("{protocol} port {port} leads to no client; `home-relay forward list` shows the forwarded ports")]
    NotForwarded {
        /// The protocol of the port.
        protocol: Protocol,
        /// The port number.
        port: u16,
    },
    /// No address could be assigned.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// The open database of the relay.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    /// Opens the database in a state directory, creating the directory and the database as needed.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let failed =
            |cause: &dyn std::fmt::Display| StoreError::Open { path: path.clone(), cause: cause.to_string() };
        // Owner only: the directory says who uses this relay, and redb follows the umask.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| failed(&error))?;
        if !path.try_exists().map_err(|error| failed(&error))? {
            schema::create(dir, &path).map_err(|cause| failed(&cause))?;
        }
        let deadline = Instant::now() + BUSY_TIMEOUT;
        loop {
            match schema::builder().open(&path) {
                Ok(database) => return Self::new(database),
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::Busy { path }),
                Err(error) => return Err(failed(&error)),
            }
        }
    }

    /// Checks, without changing anything, that the database in a state directory can be opened, or
    /// created if it is missing.
    pub(crate) fn check(dir: &Path) -> Result<(), StoreError> {
        let path = dir.join(FILE);
        let failed =
            |cause: &dyn std::fmt::Display| StoreError::Open { path: path.clone(), cause: cause.to_string() };
        if !path.try_exists().map_err(|error| failed(&error))? {
            return mobile_host::directory::check_creatable(dir).map_err(|error| failed(&error));
        }
        match schema::builder().open_read_only(&path) {
            // A database that was not closed is repaired when it is opened for writing.
            Ok(_) | Err(DatabaseError::RepairAborted) => Ok(()),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::Busy { path }),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Upgrades an open database to the present format if needed.
    fn new(database: Database) -> Result<Self, StoreError> {
        schema::upgrade(&database)?;
        Ok(Self { database })
    }
}

/// Returns the seconds since 1970 by the system clock.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn database(error: impl std::fmt::Display) -> StoreError {
    StoreError::Database(error.to_string())
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with('-') || !name.chars().all(good) {
        return Err(StoreError::BadName(name.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
