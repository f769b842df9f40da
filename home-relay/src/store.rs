//! Who may connect and which addresses they hold, on disk: one redb database in the state directory.
//!
//! A change is durable when the call returns, and a crash at any instant leaves the old or the new
//! state. Only one process has the database open: the running relay, else a command.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mobile_io::keys::PublicKey;
use mobile_io::owner;
use redb::{Database, DatabaseError, ReadableDatabase as _, TableDefinition};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pool::{Lease, PoolError, Pools};

/// Name → the client as JSON, so that a field can be added without another format.
const CLIENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("clients");
/// The database in the state directory.
const FILE: &str = "relay.redb";
/// Thousands of clients fit; redb's own default of 1 GiB suits a server of another kind.
const CACHE_BYTES: usize = 1 << 20;
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
            create(dir, &path).map_err(|cause| failed(&cause))?;
        }
        let patience = Instant::now() + BUSY_PATIENCE;
        loop {
            match builder().open(&path) {
                Ok(database) => return Ok(Self { database }),
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::Busy { path }),
                Err(error) => return Err(failed(&error)),
            }
        }
    }

    /// All clients, by name.
    pub(crate) fn clients(&self) -> Result<Vec<Client>, StoreError> {
        let transaction = self.database.begin_read().map_err(database)?;
        read_all(&transaction.open_table(CLIENTS).map_err(database)?)
    }

    /// Adds a client and leases its addresses. The same name with the same key again changes nothing
    /// and returns what it holds.
    pub(crate) fn authorize(&self, name: &str, key: &PublicKey, pools: &Pools) -> Result<Client, StoreError> {
        check_name(name)?;
        let transaction = self.database.begin_write().map_err(database)?;
        let client = {
            let mut table = transaction.open_table(CLIENTS).map_err(database)?;
            let clients = read_all(&table)?;
            if let Some(known) = clients.iter().find(|client| client.name == name) {
                if known.public_key != *key {
                    return Err(StoreError::NameTaken { name: name.into(), key: known.public_key });
                }
                return Ok(known.clone());
            }
            if let Some(known) = clients.iter().find(|client| client.public_key == *key) {
                return Err(StoreError::KeyTaken { name: known.name.clone() });
            }
            let used: Vec<Lease> = clients.iter().map(|client| client.lease).collect();
            let client = Client {
                name: name.into(),
                public_key: *key,
                lease: pools.lease(Lease::default(), &used)?,
                created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            };
            write(&mut table, &client)?;
            client
        };
        transaction.commit().map_err(database)?;
        Ok(client)
    }

    /// Removes a client; its addresses are free from now on.
    pub(crate) fn revoke(&self, name: &str) -> Result<Client, StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        let client = {
            let mut table = transaction.open_table(CLIENTS).map_err(database)?;
            let bytes = table.remove(name).map_err(database)?;
            let bytes = bytes.ok_or_else(|| StoreError::Unknown(name.into()))?;
            decode(name, bytes.value())?
        };
        transaction.commit().map_err(database)?;
        Ok(client)
    }

    /// Fits the leases to the pools as they are configured now: who is outside of a pool gets a new
    /// address, a family that was added is filled in. Returns those that changed.
    pub(crate) fn reconcile(&self, pools: &Pools) -> Result<Vec<Client>, StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        let mut changed = Vec::new();
        {
            let mut table = transaction.open_table(CLIENTS).map_err(database)?;
            let mut clients = read_all(&table)?;
            for index in 0..clients.len() {
                let others = clients.iter().enumerate().filter(|(other, _)| *other != index);
                let used: Vec<Lease> = others.map(|(_, client)| client.lease).collect();
                let lease = pools.lease(clients[index].lease, &used)?;
                if lease != clients[index].lease {
                    clients[index].lease = lease;
                    write(&mut table, &clients[index])?;
                    changed.push(clients[index].clone());
                }
            }
        }
        if !changed.is_empty() {
            transaction.commit().map_err(database)?;
        }
        Ok(changed)
    }
}

/// Makes an empty database beside its place and renames it there: one that a crash left half
/// initialised would never open again.
fn create(dir: &Path, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let unfinished = dir.join(format!("{FILE}.{}.new", std::process::id()));
    let made = (|| {
        let _ = std::fs::remove_file(&unfinished);
        let database = builder().create(&unfinished)?;
        let transaction = database.begin_write()?;
        transaction.open_table(CLIENTS)?;
        transaction.commit()?;
        database.close()?;
        owner::as_folder(&std::fs::File::open(&unfinished)?, &unfinished)?;
        // link() and not rename(): whoever was first keeps what it may have written since.
        match std::fs::hard_link(&unfinished, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        std::fs::File::open(dir)?.sync_all()?;
        Ok(())
    })();
    let _ = std::fs::remove_file(&unfinished);
    made
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    // redb may panic on a file damaged from outside unless told to look first; it is small.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn read_all(
    table: &impl redb::ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<Client>, StoreError> {
    let entries = table.iter().map_err(database)?;
    entries
        .map(|entry| {
            let (name, bytes) = entry.map_err(database)?;
            decode(name.value(), bytes.value())
        })
        .collect()
}

fn decode(name: &str, bytes: &[u8]) -> Result<Client, StoreError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Entry { name: name.into(), cause: error.to_string() })
}

fn write(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    client: &Client,
) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(client).map_err(database)?;
    table.insert(client.name.as_str(), bytes.as_slice()).map_err(database)?;
    Ok(())
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
