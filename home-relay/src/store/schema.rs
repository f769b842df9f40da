//! The tables of the database and their format, the creation of a database, and the upgrade of an
//! older one.
//!
//! To add a table: define it, add it to `tables`, and increment [`VERSION`].

use std::path::Path;

use mobile_host::ownership;
use redb::backends::InMemoryBackend;
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable, Table, TableDefinition, TableError,
    TableHandle as _, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{StoreError, database};

/// The name of the database file in the state directory.
pub(super) const FILE: &str = "relay.redb";
/// The version of the database format. Format 1 had only clients, and no version. Format 2 added
/// invitations, format 3 added forwards, format 4 added a table of freed
/// addresses, and format 5 added announcements.
pub(super) const VERSION: u64 = 5;
/// The definition of a table whose rows are JSON, so that a field can be added without a new
/// format.
pub(super) type Rows = TableDefinition<'static, &'static str, &'static [u8]>;
/// The table of clients, keyed by name.
pub(super) const CLIENTS: Rows = TableDefinition::new("clients");
/// The table of invitations, keyed by the hash of the token.
pub(super) const INVITATIONS: Rows = TableDefinition::new("invitations");
/// The table of port forwards, keyed by protocol and port.
pub(super) const FORWARDS: Rows = TableDefinition::new("forwards");
/// The table of freed addresses, keyed by address, each with the time at which it became free and
/// the last holder's public key.
pub(super) const FREED: Rows = TableDefinition::new("freed");
/// The table with one row: what the relay announces to its clients.
pub(super) const ANNOUNCED: Rows = TableDefinition::new("announced");
/// The table that holds the version of the database format, under the key [`FORMAT`].
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// The key of the format version in the table [`META`].
pub(super) const FORMAT: &str = "format";
/// The size of redb's cache: thousands of clients fit, and redb's default of 1 GiB suits larger
/// servers.
const CACHE_BYTES: usize = 1 << 20;

/// Creates an empty database under a temporary name and links it into place, because redb would
/// never open one that a crash left half initialised.
pub(super) fn create(dir: &Path, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let unfinished = dir.join(format!("{FILE}.{}.new", std::process::id()));
    let created = (|| {
        let _ = std::fs::remove_file(&unfinished);
        let database = builder().create(&unfinished)?;
        upgrade(&database)?;
        database.close()?;
        ownership::inherit_from_directory(&std::fs::File::open(&unfinished)?, &unfinished)?;
        // Link rather than rename: if two processes race, the first one's file and its content
        // stay.
        match std::fs::hard_link(&unfinished, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        std::fs::File::open(dir)?.sync_all()?;
        Ok(())
    })();
    let _ = std::fs::remove_file(&unfinished);
    created
}

pub(super) fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    // redb may panic on a file damaged from outside unless it checks the file first; the file is
    // small.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Upgrades a database of any earlier format, also an empty one, in one transaction.
pub(super) fn upgrade(opened: &Database) -> Result<(), StoreError> {
    let found = format_of(&opened.begin_read().map_err(database)?)?;
    if found == VERSION {
        return Ok(());
    }
    if found > VERSION {
        return Err(StoreError::NewerFormat { found, known: VERSION });
    }
    let transaction = opened.begin_write().map_err(database)?;
    create_tables(&transaction)?;
    transaction.open_table(META).map_err(database)?.insert(FORMAT, VERSION).map_err(database)?;
    transaction.commit().map_err(database)
}

/// Returns the format of the database.
pub(super) fn format_of(transaction: &ReadTransaction) -> Result<u64, StoreError> {
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get(FORMAT).map_err(database)?.map_or(1, |format| format.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(1),
        Err(error) => Err(database(error)),
    }
}

/// Returns the names of the tables with rows of the present format.
pub(super) fn table_names() -> Result<Vec<String>, StoreError> {
    let empty = builder().create_with_backend(InMemoryBackend::new()).map_err(database)?;
    upgrade(&empty)?;
    let transaction = empty.begin_read().map_err(database)?;
    let tables = transaction.list_tables().map_err(database)?;
    Ok(tables.map(|table| table.name().to_owned()).filter(|name| name != META.name()).collect())
}

/// Creates the missing tables of the database.
fn create_tables(transaction: &WriteTransaction) -> Result<(), StoreError> {
    for table in [CLIENTS, INVITATIONS, FORWARDS, FREED, ANNOUNCED] {
        transaction.open_table(table).map_err(database)?;
    }
    Ok(())
}

/// Reads every row of a table.
pub(super) fn read_all<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<T>, StoreError> {
    let entries = table.iter().map_err(database)?;
    entries
        .map(|entry| {
            let (key, bytes) = entry.map_err(database)?;
            parse(key.value(), bytes.value())
        })
        .collect()
}

/// Reads the row of `key` from a table, or returns `None` if there is none.
pub(super) fn read_one<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, StoreError> {
    let row = table.get(key).map_err(database)?;
    row.map(|bytes| parse(key, bytes.value())).transpose()
}

pub(super) fn parse<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Entry { name: key.into(), cause: error.to_string() })
}

/// Writes one row of a table.
pub(super) fn write(
    table: &mut Table<'_, &'static str, &'static [u8]>,
    key: &str,
    row: &impl Serialize,
) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(row).map_err(database)?;
    table.insert(key, bytes.as_slice()).map_err(database)?;
    Ok(())
}
