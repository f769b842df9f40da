//! What the relay announces to its clients, what they have confirmed, and the replacement of a
//! client's key.

use mobile_proto::Announcement;
use mobile_transport::keys::PublicKey;
use redb::{ReadableDatabase as _, TableError};
use serde::{Deserialize, Serialize};

use super::address_tables::AddressTables;
use super::schema::{ANNOUNCED, CLIENTS, read_one, write};
use super::{Client, Store, StoreError, database};

/// The row of the table of announcements.
const ROW: &str = "relay";

/// What the relay announces, besides the keys in its key files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announced {
    /// Whether the relay's key was ever replaced or about to be. Since then the relay announces the
    /// key that clients are to know.
    pub(crate) key: bool,
    /// The endpoint that `home-relay move` named last; empty after `--cancel`.
    pub(crate) endpoint: Option<String>,
}

/// The announcement that a client has confirmed to have stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confirmed {
    /// The relay's key.
    pub(crate) key: Option<PublicKey>,
    /// The relay's endpoint.
    pub(crate) endpoint: Option<String>,
}

impl Announced {
    /// Returns the announcement of a relay whose clients are to know `key`.
    pub(crate) fn with_key(&self, key: &PublicKey) -> Announcement {
        Announcement { key: self.key.then(|| *key.as_bytes()), endpoint: self.endpoint.clone() }
    }

    /// Returns the endpoint that clients are to use, if one is announced.
    pub(crate) fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())
    }
}

impl From<&Announcement> for Confirmed {
    fn from(announcement: &Announcement) -> Self {
        Self { key: announcement.key.map(PublicKey::from_bytes), endpoint: announcement.endpoint.clone() }
    }
}

impl From<&Confirmed> for Announcement {
    fn from(confirmed: &Confirmed) -> Self {
        Self { key: confirmed.key.map(|key| *key.as_bytes()), endpoint: confirmed.endpoint.clone() }
    }
}

impl Store {
    /// Returns what the relay announces.
    pub(crate) fn announced(&self) -> Result<Announced, StoreError> {
        let transaction = self.database.begin_read().map_err(database)?;
        match transaction.open_table(ANNOUNCED) {
            Ok(table) => Ok(read_one(&table, ROW)?.unwrap_or_default()),
            Err(TableError::TableDoesNotExist(_)) => Ok(Announced::default()),
            Err(error) => Err(database(error)),
        }
    }

    /// Changes what the relay announces, and returns the result.
    pub(crate) fn change_announced(
        &self,
        change: impl FnOnce(&mut Announced),
    ) -> Result<Announced, StoreError> {
        let former = self.announced()?;
        let mut announced = former.clone();
        change(&mut announced);
        if announced != former {
            let transaction = self.database.begin_write().map_err(database)?;
            write(&mut transaction.open_table(ANNOUNCED).map_err(database)?, ROW, &announced)?;
            transaction.commit().map_err(database)?;
        }
        Ok(announced)
    }

    /// Records what clients, by name, have confirmed. Clients that no longer exist are skipped.
    pub(crate) fn record_confirmed(&self, confirmed: &[(String, Confirmed)]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        {
            let mut rows = transaction.open_table(CLIENTS).map_err(database)?;
            for (name, confirmed) in confirmed {
                let client: Option<Client> = read_one(&rows, name)?;
                if let Some(client) = client {
                    write(&mut rows, name, &Client { confirmed: confirmed.clone(), ..client })?;
                }
            }
        }
        transaction.commit().map_err(database)
    }

    /// Stores `new` as the key that replaces `old`, which is a client's, once it has opened a
    /// session. A repeated request changes nothing, and a later one replaces the new key.
    pub(crate) fn change_key(&self, old: &PublicKey, new: &PublicKey) -> Result<Client, StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        let client = {
            let mut tables = AddressTables::open(&transaction)?;
            let found = tables.clients.iter().find(|client| client.has_key(old));
            let mut client = found.ok_or(StoreError::NotAClient)?.clone();
            tables.check_key(&client.name, new)?;
            // Whoever proves the next key holds it: the client lost the reply to its first request.
            if client.next_key == Some(*old) {
                client.public_key = *old;
            }
            client.next_key = Some(*new).filter(|new| *new != client.public_key);
            tables.put_client(&client)?;
            client
        };
        transaction.commit().map_err(database)?;
        Ok(client)
    }

    /// Makes the next key `key` of a client its only key. Changes nothing if it is no client's next
    /// key.
    pub(crate) fn adopt_key(&self, key: &PublicKey) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        {
            let mut tables = AddressTables::open(&transaction)?;
            let found = tables.clients.iter().find(|client| client.next_key == Some(*key));
            let Some(mut client) = found.cloned() else { return Ok(()) };
            (client.public_key, client.next_key) = (*key, None);
            tables.put_client(&client)?;
        }
        transaction.commit().map_err(database)
    }
}
