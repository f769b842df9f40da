//! Issues and redeems the invitations of a running relay.

use std::time::Duration;

use mobile_transport::invitation::TokenHash;
use mobile_transport::keys::PublicKey;

use super::Relay;
use crate::pool::Lease;
use crate::store::{self, Client, ListedClient, StoreError};

impl Relay {
    /// Creates an invitation, which is redeemed with the token whose hash is `token`.
    pub(in crate::server) async fn invite(
        &self,
        name: String,
        token: TokenHash,
        lifetime: Duration,
        wanted: Lease,
    ) -> Result<ListedClient, StoreError> {
        let _applied = self.applied.lock().await;
        let pools = self.pools;
        let invited = self
            .with_store(move |store| store.invite(&name, token, lifetime, wanted, &pools, store::now()))
            .await?;
        Ok(invited.into())
    }

    /// Redeems an invitation's token: makes the holder of `key` a client. Returns the client, and
    /// whether it is new. Must not be cancelled half-way, because store and registry must agree.
    pub(in crate::server) async fn redeem(
        &self,
        token: TokenHash,
        key: PublicKey,
    ) -> Result<(Client, bool), StoreError> {
        // Look the token up without the lock first: guessed tokens and admin commands then do not
        // wait for each other.
        let known = self.with_store(move |store| store.find_redeemed(token, &key, store::now())).await?;
        if let Some(client) = known {
            return Ok((client, false));
        }
        let _applied = self.applied.lock().await;
        let pools = self.pools;
        let client = self.with_store(move |store| store.redeem(token, &key, &pools, store::now())).await?;
        let is_new = self.registry.add(&client);
        Ok((client, is_new))
    }
}
