//! The whole content of the database as JSON, for `home-relay backup` and `restore`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use redb::backends::InMemoryBackend;
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition, TableHandle as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::address_tables::FreedAddress;
use super::schema::{self, CLIENTS, FILE, FORMAT, FORWARDS, FREED, INVITATIONS, META, VERSION, write};
use super::{Client, Forward, Store, StoreError, StoredInvitation, check_name, database, forwards};

/// The content of the database: the rows of every table at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    /// The version of the database format.
    pub(crate) format: u64,
    /// The rows of each table, by table and key.
    pub(crate) tables: BTreeMap<String, BTreeMap<String, Value>>,
}

/// The numbers of rows in a snapshot that a person wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) clients: usize,
    /// The redeemable invitations.
    pub(crate) invitations: usize,
    pub(crate) forwards: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number =
            |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let Self { clients, invitations, forwards } = *self;
        let (clients, invitations) = (number(clients, "client"), number(invitations, "pending invitation"));
        write!(f, "{clients}, {invitations}, {}", number(forwards, "forward"))
    }
}

impl Snapshot {
    /// Splits the snapshot into parts of at most `rows` rows, at least one part, whose
    /// [`Self::append`] in order results in the snapshot.
    pub(crate) fn split(self, rows: usize) -> Vec<Self> {
        let empty = Self { format: self.format, tables: BTreeMap::new() };
        let mut parts = vec![empty.clone()];
        let mut used = 0;
        for (table, content) in self.tables {
            // An empty table is a part of the snapshot too.
            let last = parts.len() - 1;
            parts[last].tables.entry(table.clone()).or_default();
            for (key, row) in content {
                if used == rows {
                    parts.push(empty.clone());
                    used = 0;
                }
                let last = parts.len() - 1;
                parts[last].tables.entry(table.clone()).or_default().insert(key, row);
                used += 1;
            }
        }
        parts
    }

    /// Adds the rows of another part of the same snapshot.
    pub(crate) fn append(&mut self, part: Self) {
        self.format = part.format;
        for (table, content) in part.tables {
            self.tables.entry(table).or_default().extend(content);
        }
    }

    /// Counts the rows; `now` tells which invitations are redeemable.
    pub(crate) fn counts(&self, now: u64) -> Result<Counts, StoreError> {
        let invitations: Vec<StoredInvitation> =
            self.rows(INVITATIONS)?.into_iter().map(|row| row.1).collect();
        let len = |table: schema::Rows| self.tables.get(table.name()).map_or(0, BTreeMap::len);
        Ok(Counts {
            clients: len(CLIENTS),
            invitations: invitations.iter().filter(|invited| invited.is_pending(now)).count(),
            forwards: len(FORWARDS),
        })
    }

    /// Checks that the rows could have been written by a relay: every name, key and address has one
    /// holder, and every forward leads to a client.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.format > VERSION {
            return Err(StoreError::NewerFormat { found: self.format, known: VERSION });
        }
        let known = schema::table_names()?;
        if let Some(unknown) = self.tables.keys().find(|name| !known.contains(name)) {
            return Err(StoreError::Inconsistent(format!("there is no table {unknown:?}")));
        }
        let clients: Vec<(&str, Client)> = self.rows(CLIENTS)?;
        let mut keys = HashSet::new();
        let mut addresses = HashSet::new();
        for (key, client) in &clients {
            same_key(CLIENTS, key, &client.name)?;
            check_name(&client.name)?;
            if !keys.insert(client.public_key) {
                return Err(StoreError::Inconsistent(format!(
                    "two clients have the key {}",
                    client.public_key
                )));
            }
            for address in client.lease.addresses() {
                if !addresses.insert(address) {
                    return Err(StoreError::Inconsistent(format!("two clients have the address {address}")));
                }
            }
        }
        for (key, invited) in self.rows::<StoredInvitation>(INVITATIONS)? {
            same_key(INVITATIONS, key, &invited.token.to_string())?;
            check_name(&invited.name)?;
        }
        for (key, forward) in self.rows::<Forward>(FORWARDS)? {
            same_key(FORWARDS, key, &forwards::key(forward.protocol, forward.port))?;
            if !clients.iter().any(|(name, _)| *name == forward.client) {
                return Err(StoreError::Unknown(forward.client));
            }
            if forward.port == 0 || forward.to == 0 {
                return Err(StoreError::Inconsistent(format!("port 0 in {forward}")));
            }
        }
        for (key, freed) in self.rows::<FreedAddress>(FREED)? {
            same_key(FREED, key, &freed.address.to_string())?;
        }
        Ok(())
    }

    /// Returns the rows of a table, each with its key.
    fn rows<T: DeserializeOwned>(&self, table: schema::Rows) -> Result<Vec<(&str, T)>, StoreError> {
        let rows = self.tables.get(table.name()).into_iter().flatten();
        rows.map(|(key, row)| match T::deserialize(row) {
            Ok(row) => Ok((key.as_str(), row)),
            Err(error) => Err(StoreError::Entry { name: key.clone(), cause: error.to_string() }),
        })
        .collect()
    }

    /// Returns the content of a new database.
    pub(crate) fn empty() -> Result<Self, StoreError> {
        Self { format: VERSION, tables: BTreeMap::new() }.upgraded()
    }

    /// Returns the snapshot as a database of the present format has it.
    pub(crate) fn upgraded(&self) -> Result<Self, StoreError> {
        let database = schema::builder().create_with_backend(InMemoryBackend::new()).map_err(database)?;
        self.fill(&database)?;
        Store { database }.snapshot()
    }

    /// Writes the rows into an empty database and upgrades it to the present format.
    fn fill(&self, empty: &redb::Database) -> Result<(), StoreError> {
        let transaction = empty.begin_write().map_err(database)?;
        for (name, rows) in &self.tables {
            let table: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(name);
            let mut table = transaction.open_table(table).map_err(database)?;
            for (key, row) in rows {
                write(&mut table, key, row)?;
            }
        }
        transaction.open_table(META).map_err(database)?.insert(FORMAT, self.format).map_err(database)?;
        transaction.commit().map_err(database)?;
        schema::upgrade(empty)
    }

    /// Writes the snapshot to a new database file.
    pub(crate) fn write_to(&self, path: &Path) -> Result<(), StoreError> {
        let created = schema::builder().create(path).map_err(database)?;
        self.fill(&created)?;
        created.close().map_err(database)
    }
}

impl Store {
    /// Returns the path of the database file in a state directory.
    pub(crate) fn file_in(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Opens the database in a state directory, or returns `None` if there is none.
    pub(crate) fn open_existing(dir: &Path) -> Result<Option<Self>, StoreError> {
        match Self::file_in(dir).try_exists() {
            Ok(false) => Ok(None),
            // Opening tells why the file cannot be examined.
            _ => Self::open(dir).map(Some),
        }
    }

    /// Returns the rows of all tables at one instant.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let transaction = self.database.begin_read().map_err(database)?;
        let mut tables = BTreeMap::new();
        for handle in transaction.list_tables().map_err(database)? {
            let name = handle.name().to_owned();
            if name == META.name() {
                continue;
            }
            let table: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(&name);
            let table = transaction.open_table(table).map_err(database)?;
            let rows = table.iter().map_err(database)?.map(|row| {
                let (key, bytes) = row.map_err(database)?;
                Ok((key.value().to_owned(), schema::parse(key.value(), bytes.value())?))
            });
            let rows = rows.collect::<Result<BTreeMap<String, Value>, StoreError>>()?;
            tables.insert(name, rows);
        }
        Ok(Snapshot { format: schema::format_of(&transaction)?, tables })
    }
}

fn same_key(table: schema::Rows, key: &str, expected: &str) -> Result<(), StoreError> {
    if key == expected {
        return Ok(());
    }
    Err(StoreError::Inconsistent(format!("the row {key:?} of {} is that of {expected:?}", table.name())))
}
