//! Authorises, revokes and lists the clients of a running relay.

use std::net::IpAddr;
use std::sync::PoisonError;

use super::{Relay, forwards};
use crate::config::Config;
use crate::network::connections;
use crate::store::{self, Client, ListedClient, NewClient, Store, StoreError, WantedReach};

impl Relay {
    /// Authorises clients, or changes their addresses; all of them, or none.
    pub(in crate::server) async fn authorize(
        &self,
        new_clients: Vec<NewClient>,
    ) -> Result<Vec<Client>, StoreError> {
        let mut applied = self.applied.lock().await;
        let pools = self.pools;
        let has_new_reach = new_clients.iter().any(|new_client| new_client.reach != WantedReach::Unchanged);
        let work = move |store: &Store| store.authorize_all(&new_clients, &pools, store::now());
        let clients = self.with_store(work).await?;
        let mut freed = Vec::new();
        for client in &clients {
            freed.extend(self.registry.add_or_move(client).await);
        }
        self.update_rules_for_clients(&mut applied).await;
        connections::delete_in_background(move || connections::delete_connections(&freed)).await;
        if has_new_reach {
            self.end_unreachable_connections(&applied.config).await?;
        }
        Ok(clients)
    }

    /// Revokes a client and waits for the end of its session, or withdraws an invitation.
    pub(in crate::server) async fn revoke(&self, name: String) -> Result<ListedClient, StoreError> {
        let mut applied = self.applied.lock().await;
        let entry = self.with_store(move |store| store.revoke(&name, store::now())).await?;
        if let Some(key) = &entry.public_key {
            self.registry.remove(key).await;
            self.limiter.lock().unwrap_or_else(PoisonError::into_inner).forget(key);
        }
        self.update_rules_for_clients(&mut applied).await;
        // Packets that the Internet still sends to this address must not reach the address's next
        // holder. An invitation that was never redeemed had no traffic.
        let freed: Vec<IpAddr> = entry.public_key.iter().flat_map(|_| entry.lease.addresses()).collect();
        connections::delete_in_background(move || connections::delete_connections(&freed)).await;
        Ok(entry)
    }

    /// Deletes tracked connections of clients to destinations outside their reach, because the
    /// nftables rules accept packets of established connections.
    pub(super) async fn end_unreachable_connections(&self, config: &Config) -> Result<(), StoreError> {
        let clients = self.with_store(Store::clients).await?;
        let cut = forwards::out_of_reach(config, &self.served_pools, &clients);
        connections::delete_in_background(move || {
            if let Some(cut) = cut {
                connections::delete_connections_where(cut);
            }
        })
        .await;
        Ok(())
    }

    /// Returns all clients and all redeemable invitations.
    pub(in crate::server) async fn clients(&self) -> Result<Vec<ListedClient>, StoreError> {
        self.with_store(|store| store.entries(store::now())).await
    }
}
