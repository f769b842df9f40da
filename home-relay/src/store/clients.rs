//! Authorises, revokes and lists clients, and fits their addresses to the pools.

use redb::ReadableDatabase as _;

use super::address_tables::AddressTables;
use super::schema::{CLIENTS, INVITATIONS, read_all};
use super::{
    Client, ListedClient, NewClient, Store, StoreError, StoredInvitation, check_name, database, forwards,
};
use crate::pool::{Lease, Pools};

/// A change of the lease of a client or an invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseChange {
    /// The name of the client or invitation.
    pub(crate) name: String,
    /// The lease before the change.
    pub(crate) from: Lease,
    /// The lease after the change.
    pub(crate) to: Lease,
}

impl Store {
    /// Returns all clients, sorted by name.
    pub(crate) fn clients(&self) -> Result<Vec<Client>, StoreError> {
        let transaction = self.database.begin_read().map_err(database)?;
        read_all(&transaction.open_table(CLIENTS).map_err(database)?)
    }

    /// Returns all clients and all redeemable invitations, sorted by name.
    pub(crate) fn entries(&self, now: u64) -> Result<Vec<ListedClient>, StoreError> {
        let transaction = self.database.begin_read().map_err(database)?;
        let clients: Vec<Client> = read_all(&transaction.open_table(CLIENTS).map_err(database)?)?;
        let invitations: Vec<StoredInvitation> =
            read_all(&transaction.open_table(INVITATIONS).map_err(database)?)?;
        let pending =
            invitations.into_iter().filter(|invited| invited.is_pending(now)).map(ListedClient::from);
        let mut entries: Vec<ListedClient> =
            clients.into_iter().map(ListedClient::from).chain(pending).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Authorises clients and assigns their addresses; all of them, or none. Repeating the same
    /// name and key changes only the addresses, if others are wanted, and the reach. An unused
    /// invitation of the same name is removed.
    pub(crate) fn authorize_all(
        &self,
        new_clients: &[NewClient],
        pools: &Pools,
        now: u64,
    ) -> Result<Vec<Client>, StoreError> {
        new_clients.iter().try_for_each(|new_client| check_name(&new_client.name))?;
        let transaction = self.database.begin_write().map_err(database)?;
        let mut clients = Vec::with_capacity(new_clients.len());
        let mut changed = false;
        {
            let mut tables = AddressTables::open(&transaction)?;
            let mut taken = tables.taken(now);
            for NewClient { name, public_key, wanted, reach } in new_clients {
                let known = tables.client(name).cloned();
                if let Some(known) = known.as_ref().filter(|known| known.public_key != *public_key) {
                    return Err(StoreError::NameTaken { name: name.clone(), key: known.public_key });
                }
                tables.check_key(name, public_key)?;
                let lease = match &known {
                    Some(known) if *wanted == Lease::default() => known.lease,
                    Some(_) => tables.assign_lease(name, *wanted, pools, now, &mut taken)?,
                    None => {
                        let wanted = tables.prefer_former_addresses(name, *wanted, public_key, pools, now);
                        tables.assign_lease(name, wanted, pools, now, &mut taken)?
                    }
                };
                let reach = reach.apply_to(known.as_ref().and_then(|known| known.reach.clone()));
                let former = known.clone();
                let former = former.unwrap_or_else(|| Client::new(name.clone(), *public_key, lease, now));
                let client = Client { lease, reach, ..former };
                if known.as_ref() != Some(&client) {
                    if let Some(known) = known {
                        tables.record_freed(public_key, known.lease.without(lease), now)?;
                    }
                    tables.put_client(&client)?;
                    tables.withdraw(|invited| invited.is_unused_of(name))?;
                    changed = true;
                }
                clients.push(client);
            }
        }
        if changed {
            transaction.commit().map_err(database)?;
        }
        Ok(clients)
    }

    /// Removes a client with its port forwards, or the unused invitation of that name, whether or
    /// not it has expired. The addresses are free at once; those of a client are assigned to others
    /// last.
    pub(crate) fn revoke(&self, name: &str, now: u64) -> Result<ListedClient, StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        let entry = {
            let mut tables = AddressTables::open(&transaction)?;
            let client = tables.client(name).cloned().map(ListedClient::from);
            let invited = || tables.invitations.iter().find(|invited| invited.is_unused_of(name));
            let entry = client.or_else(|| invited().cloned().map(ListedClient::from));
            let entry = entry.ok_or_else(|| StoreError::Unknown(name.into()))?;
            if let Some(key) = &entry.public_key {
                tables.record_freed(key, entry.lease.addresses().collect(), now)?;
            }
            tables.client_rows.remove(name).map_err(database)?;
            forwards::remove_for_client(&transaction, name)?;
            tables.withdraw(|invited| invited.is_unused_of(name))?;
            entry
        };
        transaction.commit().map_err(database)?;
        Ok(entry)
    }

    /// Fits the leases of clients and invitations to the configured pools: replaces addresses
    /// outside of the pools, and assigns addresses of a family that was added. Returns the changed
    /// leases.
    pub(crate) fn reconcile(&self, pools: &Pools, now: u64) -> Result<Vec<LeaseChange>, StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        let mut moved = Vec::new();
        {
            let mut tables = AddressTables::open(&transaction)?;
            let mut taken = tables.taken(now);
            for index in 0..tables.clients.len() {
                let Client { name, lease: from, .. } = tables.clients[index].clone();
                let to = tables.assign_lease(&name, Lease::default(), pools, now, &mut taken)?;
                if to != from {
                    let client = Client { lease: to, ..tables.clients[index].clone() };
                    tables.record_freed(&client.public_key, from.without(to), now)?;
                    tables.put_client(&client)?;
                    moved.push(LeaseChange { name, from, to });
                }
            }
            for index in 0..tables.invitations.len() {
                let StoredInvitation { name, lease: from, .. } = tables.invitations[index].clone();
                if !tables.invitations[index].is_pending(now) {
                    continue;
                }
                let to = tables.assign_lease(&name, Lease::default(), pools, now, &mut taken)?;
                if to != from {
                    tables.invitations[index].lease = to;
                    let invited = tables.invitations[index].clone();
                    tables.put_invitation(&invited)?;
                    moved.push(LeaseChange { name, from, to });
                }
            }
        }
        if !moved.is_empty() {
            transaction.commit().map_err(database)?;
        }
        Ok(moved)
    }
}
