//! The tables of addresses: who holds which, and who held one before. Assigns addresses to clients
//! and invitations.

use std::net::IpAddr;

use mobile_transport::keys::PublicKey;
use redb::{Table, WriteTransaction};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::schema::{CLIENTS, FREED, INVITATIONS, read_all, write};
use super::{Client, StoreError, StoredInvitation, database};
use crate::pool::{Lease, Pools, TakenAddresses};

/// The time for which packets may still be sent to the former holder of an address, in seconds.
///
/// Five days: Linux tracks an idle established TCP connection for that long
/// (`nf_conntrack_tcp_timeout_established`). This host deletes its own entries at once, but cannot
/// delete those of routers beyond it.
const QUARANTINE_SECONDS: u64 = 5 * 24 * 3600;

/// The number of freed addresses that are remembered, the latest ones: more than a /16 has.
const MAX_FREED: usize = 1 << 16;

/// An address that a client held before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FreedAddress {
    pub(super) address: IpAddr,
    /// The time at which the address became free, in seconds since 1970.
    since: u64,
    /// The key of the address's last holder.
    public_key: PublicKey,
}

/// The tables of a transaction that concern addresses, with their content in memory.
pub(super) struct AddressTables<'t> {
    freed_rows: Table<'t, &'static str, &'static [u8]>,
    freed: Vec<FreedAddress>,
    pub(super) client_rows: Table<'t, &'static str, &'static [u8]>,
    pub(super) invitation_rows: Table<'t, &'static str, &'static [u8]>,
    pub(super) clients: Vec<Client>,
    pub(super) invitations: Vec<StoredInvitation>,
}

impl<'t> AddressTables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        let client_rows = transaction.open_table(CLIENTS).map_err(database)?;
        let invitation_rows = transaction.open_table(INVITATIONS).map_err(database)?;
        let freed_rows = transaction.open_table(FREED).map_err(database)?;
        let (clients, invitations) = (read_all(&client_rows)?, read_all(&invitation_rows)?);
        let freed = read_all(&freed_rows)?;
        Ok(Self { freed_rows, freed, client_rows, invitation_rows, clients, invitations })
    }

    /// Returns the client of this name, if there is one.
    pub(super) fn client(&self, name: &str) -> Option<&Client> {
        self.clients.iter().find(|client| client.name == name)
    }

    /// Returns an error if the key belongs to a client of another name.
    pub(super) fn check_key(&self, name: &str, key: &PublicKey) -> Result<(), StoreError> {
        match self.clients.iter().find(|client| client.has_key(key) && client.name != name) {
            Some(known) => Err(StoreError::KeyTaken { name: known.name.clone() }),
            None => Ok(()),
        }
    }

    /// Returns the addresses that clients and redeemable invitations hold, and those that clients
    /// held before.
    pub(super) fn taken(&self, now: u64) -> TakenAddresses {
        let mut taken: TakenAddresses = self.holders(now).map(|(_, lease)| lease).collect();
        self.freed.iter().for_each(|freed| taken.insert_freed(freed.address, freed.since));
        taken
    }

    /// Returns the addresses that this key held when it was last a client, so that it can get them
    /// again.
    fn former_addresses(&self, key: &PublicKey) -> Lease {
        let own = || self.freed.iter().filter(|freed| freed.public_key == *key).map(|freed| freed.address);
        Lease {
            ipv4: own().find_map(|it| if let IpAddr::V4(address) = it { Some(address) } else { None }),
            ipv6: own().find_map(|it| if let IpAddr::V6(address) = it { Some(address) } else { None }),
        }
    }

    /// Completes the wanted addresses of a new client with those that its key held before, if they
    /// are free and in the pools.
    pub(super) fn prefer_former_addresses(
        &self,
        name: &str,
        wanted: Lease,
        key: &PublicKey,
        pools: &Pools,
        now: u64,
    ) -> Lease {
        if self.holders(now).any(|(holder, _)| holder == name) {
            return wanted;
        }
        let former = self.former_addresses(key);
        let is_free = |address: IpAddr| {
            !self.holders(now).any(|(_, lease)| lease.addresses().any(|held| held == address))
        };
        let ipv4 = former.ipv4.filter(|address| {
            is_free((*address).into()) && pools.check(Lease { ipv4: Some(*address), ipv6: None }).is_ok()
        });
        let ipv6 = former.ipv6.filter(|address| {
            is_free((*address).into()) && pools.check(Lease { ipv4: None, ipv6: Some(*address) }).is_ok()
        });
        Lease { ipv4: wanted.ipv4.or(ipv4), ipv6: wanted.ipv6.or(ipv6) }
    }

    /// Records that a client no longer holds these addresses.
    pub(super) fn record_freed(
        &mut self,
        key: &PublicKey,
        addresses: Vec<IpAddr>,
        now: u64,
    ) -> Result<(), StoreError> {
        for address in addresses {
            let freed = FreedAddress { address, since: now, public_key: *key };
            write(&mut self.freed_rows, &address.to_string(), &freed)?;
            self.freed.retain(|known| known.address != address);
            self.freed.push(freed);
        }
        self.freed.sort_by_key(|freed| freed.since);
        for freed in self.freed.drain(..self.freed.len().saturating_sub(MAX_FREED)) {
            self.freed_rows.remove(freed.address.to_string().as_str()).map_err(database)?;
        }
        Ok(())
    }

    fn holders(&self, now: u64) -> impl Iterator<Item = (&str, Lease)> {
        let clients = self.clients.iter().map(|client| (client.name.as_str(), client.lease));
        let pending = self.invitations.iter().filter(move |invited| invited.is_pending(now));
        clients.chain(pending.map(|invited| (invited.name.as_str(), invited.lease)))
    }

    /// Assigns addresses to the client or invitation `name`: the wanted ones, else those it holds,
    /// else free ones. `taken` must be the result of [`Self::taken`], and is updated.
    pub(super) fn assign_lease(
        &self,
        name: &str,
        wanted: Lease,
        pools: &Pools,
        now: u64,
        taken: &mut TakenAddresses,
    ) -> Result<Lease, StoreError> {
        pools.check(wanted)?;
        for address in wanted.addresses() {
            let mut others = self.holders(now).filter(|(holder, _)| *holder != name);
            if let Some((holder, _)) = others.find(|(_, lease)| lease.addresses().any(|it| it == address)) {
                return Err(StoreError::AddressTaken { address, name: holder.to_owned() });
            }
        }
        let own = self.holders(now).filter(|(holder, _)| *holder == name).map(|(_, lease)| lease);
        let own: Vec<Lease> = own.collect();
        own.iter().for_each(|lease| taken.remove(*lease));
        if self.client(name).is_none() {
            // Addresses set aside while the clock was wrong may have become a client's in the
            // meantime.
            let is_own = |address| own.iter().any(|lease| lease.addresses().any(|it| it == address));
            let shared = self.clients.iter().filter(|client| client.lease.addresses().any(is_own));
            shared.for_each(|client| taken.insert(client.lease));
        }
        let held = own.first().copied().unwrap_or_default();
        let held = Lease { ipv4: wanted.ipv4.or(held.ipv4), ipv6: wanted.ipv6.or(held.ipv6) };
        let lease = pools.lease(held, taken)?;
        for freed in self.freed.iter().filter(|freed| lease.without(held).contains(&freed.address)) {
            let seconds = now.saturating_sub(freed.since);
            if seconds < QUARANTINE_SECONDS {
                warn!(
                    client = name, address = %freed.address, freed_seconds_ago = seconds,
                    "[pool] has no unused address left: reassigning one to which its former peers may still send; widen \
                     the pool"
                );
            }
        }
        Ok(lease)
    }

    pub(super) fn put_client(&mut self, client: &Client) -> Result<(), StoreError> {
        for address in client.lease.addresses() {
            self.freed_rows.remove(address.to_string().as_str()).map_err(database)?;
            self.freed.retain(|freed| freed.address != address);
        }
        write(&mut self.client_rows, &client.name, client)?;
        match self.clients.iter_mut().find(|known| known.name == client.name) {
            Some(known) => known.clone_from(client),
            None => self.clients.push(client.clone()),
        }
        Ok(())
    }

    pub(super) fn put_invitation(&mut self, invited: &StoredInvitation) -> Result<(), StoreError> {
        write(&mut self.invitation_rows, &invited.token.to_string(), invited)
    }

    /// Removes the invitations that `which` selects.
    pub(super) fn withdraw(&mut self, which: impl Fn(&StoredInvitation) -> bool) -> Result<(), StoreError> {
        for invited in self.invitations.iter().filter(|invited| which(invited)) {
            self.invitation_rows.remove(invited.token.to_string().as_str()).map_err(database)?;
        }
        Ok(())
    }
}
