//! Who may connect, who is invited, and which addresses they hold, on disk: one redb database in the state directory.
//!
//! A change is durable when the call returns, and a crash at any instant leaves the old or the new
//! state. Only one process has the database open: the running relay, else a command.

use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mobile_io::invitation::TokenHash;
use mobile_io::keys::PublicKey;
use redb::{Database, DatabaseError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use self::forwards::{Forward, Protocol};
use self::schema::FILE;
use crate::pool::{Lease, PoolError};
use crate::reach::Reach;

mod clients;
mod forwards;
mod invitations;
mod schema;

/// Commands hold the database for milliseconds: one that finds it busy waits rather than fails.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
/// A name appears in logs, tables and file names; a DNS label's length is enough for any machine.
const MAX_NAME: usize = 63;

/// One client: a name for people, a key for the handshake, the addresses it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Client {
    /// The operator's name for it.
    pub(crate) name: String,
    /// Its identity.
    pub(crate) public_key: PublicKey,
    /// The persistent addresses.
    #[serde(flatten)]
    pub(crate) lease: Lease,
    /// When it was authorised, in seconds since 1970.
    pub(crate) created: u64,
    /// Reach of this client; `None` follows `[clients] reach`.
    #[serde(default)]
    pub(crate) reach: Option<Reach>,
}

/// Who is to be a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Newcomer {
    /// The operator's name for it.
    pub(crate) name: String,
    /// Its identity.
    pub(crate) public_key: PublicKey,
    /// The addresses it is to have; free ones where none is named.
    #[serde(default)]
    pub(crate) wanted: Lease,
    /// Change of the reach of this client.
    #[serde(default)]
    pub(crate) reach: WantedReach,
}

/// Change of the reach of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WantedReach {
    /// Keep the present reach.
    #[default]
    Unchanged,
    /// Follow `[clients] reach`, without a reach of the client's own.
    Default,
    /// Use this reach as the client's own.
    Own(Reach),
}

impl WantedReach {
    /// Returns the new reach of a client that had `before`.
    fn over(&self, before: Option<Reach>) -> Option<Reach> {
        match self {
            Self::Unchanged => before,
            Self::Default => None,
            Self::Own(reach) => Some(reach.clone()),
        }
    }
}

/// A name that somebody may claim by a token, with the addresses that wait for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Invited {
    /// The operator's name for it.
    pub(crate) name: String,
    /// The token's hash; the token itself is known to the invitation alone.
    pub(crate) token: TokenHash,
    /// The addresses it will have.
    #[serde(flatten)]
    pub(crate) lease: Lease,
    /// When it was made, in seconds since 1970.
    pub(crate) created: u64,
    /// When it ends.
    pub(crate) expires: u64,
    /// The key that redeemed it: kept, to tell a used token from an unknown one, and the same key again from another.
    pub(crate) used_by: Option<PublicKey>,
}

/// What is known under a name: a client, or an invitation for one. As `clients --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The operator's name for it.
    pub(crate) name: String,
    /// The client's identity; none while it is only invited.
    pub(crate) public_key: Option<PublicKey>,
    /// The persistent addresses.
    #[serde(flatten)]
    pub(crate) lease: Lease,
    /// When it was authorised or invited, in seconds since 1970.
    pub(crate) created: u64,
    /// When the invitation ends, in seconds since 1970; none for a client.
    pub(crate) expires: Option<u64>,
    /// Reach of this client; `None` follows `[clients] reach`.
    #[serde(default)]
    pub(crate) reach: Option<Reach>,
}

impl From<Client> for Entry {
    fn from(client: Client) -> Self {
        let Client { name, public_key, lease, created, reach } = client;
        Self { name, public_key: Some(public_key), lease, created, expires: None, reach }
    }
}

impl From<Invited> for Entry {
    fn from(invited: Invited) -> Self {
        let Invited { name, lease, created, expires, .. } = invited;
        Self { name, public_key: None, lease, created, expires: Some(expires), reach: None }
    }
}

/// What can go wrong with the store.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// Cannot be opened or created.
    #[error("cannot open the client store {}: {cause}; check [state] dir and its permissions", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// What the system or redb said.
        cause: String,
    },
    /// Another process has it.
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
    /// An entry is not what we wrote.
    #[error(
        "the client store's entry {name:?} cannot be read: {cause}; restore the state directory from a backup"
    )]
    Entry {
        /// The entry's name.
        name: String,
        /// Why.
        cause: String,
    },
    /// A name we refuse.
    #[error(
        "{0:?} cannot be a client name: use 1 to 63 of a-z, A-Z, 0-9, '.', '_', '-', not starting with '-'"
    )]
    BadName(String),
    /// The name has another key.
    #[error(
        "client {name:?} is already authorised with the key {key}: revoke it first, or choose another name"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The key it has.
        key: PublicKey,
    },
    /// The key has another name.
    #[error("this key is already authorised as client {name:?}: one identity has one name and one address")]
    KeyTaken {
        /// The name it has.
        name: String,
    },
    /// No such client.
    #[error("there is no client named {0:?}; `home-relay clients` lists them")]
    Unknown(String),
    /// An invitation for a client that is there.
    #[error("{0:?} is a client already: revoke it first, or choose another name")]
    Present(String),
    /// An address that was asked for is another's.
    #[error("{address} is the persistent address of {name:?}: choose another, or revoke {name:?} first")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        name: String,
    },
    /// No invitation has this token.
    #[error("no invitation has this token: it was withdrawn or replaced, or never was")]
    TokenUnknown,
    /// The invitation's time is over, or the clock was set back to before it was made.
    #[error("the invitation for {0:?} has expired; `home-relay invite {0}` makes another")]
    TokenExpired(String),
    /// The token was redeemed before.
    #[error("the invitation for {0:?} was used already; `home-relay invite` makes another")]
    TokenUsed(String),
    /// Written by a later version.
    #[error(
        "the client store has format {found}, and this version knows up to {known}: use the newer home-relay"
    )]
    Newer {
        /// The file's format.
        found: u64,
        /// The newest known here.
        known: u64,
    },
    /// The port leads to a client already.
    #[error("{0}: delete that forward first, `home-relay forward del`, or choose another port")]
    PortTaken(Forward),
    /// No such forward.
    #[error("{protocol} port {port} leads to no client; `home-relay forward list` shows those that do")]
    NotForwarded {
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
    /// No address for it.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// The open database.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    /// Opens the store of a state directory, creating both as needed.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let failed =
            |cause: &dyn std::fmt::Display| StoreError::Open { path: path.clone(), cause: cause.to_string() };
        // Owner only: the directory says who uses this relay, and redb follows the umask.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| failed(&error))?;
        if !path.try_exists().map_err(|error| failed(&error))? {
            schema::create(dir, &path).map_err(|cause| failed(&cause))?;
        }
        let patience = Instant::now() + BUSY_PATIENCE;
        loop {
            match schema::builder().open(&path) {
                Ok(database) => return Self::new(database),
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::Busy { path }),
                Err(error) => return Err(failed(&error)),
            }
        }
    }

    /// On an open database, of this or an earlier format.
    fn new(database: Database) -> Result<Self, StoreError> {
        schema::upgrade(&database)?;
        Ok(Self { database })
    }
}

/// Seconds since 1970, by the machine's clock.
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
