//! The keys of a client: while it replaces its key, it has two.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use mobile_transport::keys::PublicKey;

use super::Registry;
use super::client_entry::{ClientEntry, ClientKeys};
use crate::store::Client;

/// The entries of clients by each of their keys.
#[derive(Default)]
pub(super) struct Entries(HashMap<PublicKey, Arc<ClientEntry>>);

impl Entries {
    pub(super) fn get(&self, key: &PublicKey) -> Option<&Arc<ClientEntry>> {
        self.0.get(key)
    }

    /// Adds an entry, or replaces the one with the same keys.
    pub(super) fn insert(&mut self, entry: &Arc<ClientEntry>) {
        for key in entry.keys().all() {
            self.0.insert(key, Arc::clone(entry));
        }
    }

    /// Removes the entry with this key under all of its keys.
    pub(super) fn remove(&mut self, key: &PublicKey) -> Option<Arc<ClientEntry>> {
        let entry = self.0.remove(key)?;
        entry.keys().all().for_each(|key| drop(self.0.remove(&key)));
        Some(entry)
    }

    /// Returns every entry once.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<ClientEntry>> {
        self.0.iter().filter(|(key, entry)| entry.keys().current == **key).map(|(_, entry)| entry)
    }
}

impl Registry {
    /// Sets the keys of a client, which has the key `known`: both may open sessions.
    pub(crate) fn set_keys(&self, known: &PublicKey, client: &Client) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        // A client that was revoked in the meantime stays so.
        let Some(entry) = entries.remove(known) else { return };
        entry.set_keys(ClientKeys::of(client));
        entries.insert(&entry);
    }

    /// Returns whether `key` is to replace its client's present key.
    pub(crate) fn is_next_key(&self, key: &PublicKey) -> bool {
        self.entry(key).is_some_and(|entry| entry.keys().next == Some(*key))
    }

    /// Makes `key` the only key of its client if it is the next one. Returns the former key.
    pub(crate) fn adopt_key(&self, key: &PublicKey) -> Option<PublicKey> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|entry| entry.keys().next == Some(*key))?;
        let entry = entries.remove(key)?;
        let former = entry.keys().current;
        entry.set_keys(ClientKeys { current: *key, next: None });
        entries.insert(&entry);
        Some(former)
    }
}
