//! Replaces the relay's key and announces its endpoint, and replaces the keys of clients.
//!
//! `home-relay key` changes the key files; the running relay reads them again. It proves the key of
//! its key file, and announces the next one, if there is one, to its clients.

use std::sync::PoisonError;

use anyhow::ensure;
use mobile_transport::invitation::is_endpoint;
use mobile_transport::key_rotation;
use mobile_transport::keys::{PrivateKey, PublicKey, RelayKeys};
use mobile_transport::tls::RelayConfig;
use tracing::{debug, info, warn};

use super::Relay;
use crate::announced::IdentityState;
use crate::config::Identity;
use crate::store::{Client, StoreError};

/// The relay's key pair and its next public key, as read from the key files.
pub(super) struct LoadedKeys {
    key: PrivateKey,
    next: Option<PublicKey>,
}

impl Relay {
    /// Sets the TLS configuration in which a new key takes effect.
    pub(in crate::server) fn set_tls(&self, tls: RelayConfig) {
        // There is one acceptor, so nothing was set before.
        let _ = self.tls.set(tls);
    }

    /// Announces the key and the endpoint, as the key files and the store say; at the start.
    pub(in crate::server) async fn announce(&self) -> anyhow::Result<()> {
        let keys = self.keys();
        let announced = self
            .with_store(move |store| store.change_announced(|announced| announced.key |= keys.next.is_some()))
            .await?;
        self.registry.announce(announced.with_key(&keys.next.unwrap_or(keys.current))).await;
        Ok(())
    }

    /// Reads the key files again: new connections prove the key, and clients learn the next one.
    pub(in crate::server) async fn reread_keys(&self) -> anyhow::Result<IdentityState> {
        let loaded = {
            let applied = self.applied.lock().await;
            load_keys(&applied.config.identity)?
        };
        self.apply_keys(loaded).await?;
        self.identity_state().await
    }

    /// Puts keys that were read from the key files in force.
    pub(super) async fn apply_keys(&self, loaded: LoadedKeys) -> anyhow::Result<()> {
        let LoadedKeys { key, next } = loaded;
        let keys = RelayKeys { current: key.public(), next };
        let former = std::mem::replace(&mut *self.keys.write().unwrap_or_else(PoisonError::into_inner), keys);
        if let Some(tls) = self.tls.get().filter(|_| former.current != keys.current) {
            tls.set_key(&key);
            info!(public_key = %keys.current, former = %former.current, "new connections prove the new key");
        }
        if former.next != keys.next {
            match next {
                Some(next) => info!(%next, "announcing the next key to clients"),
                None => debug!("no next key is announced any longer"),
            }
        }
        self.announce().await
    }

    /// Announces an endpoint to all clients, or withdraws it.
    pub(in crate::server) async fn move_to(&self, endpoint: Option<String>) -> anyhow::Result<IdentityState> {
        let endpoint = endpoint.unwrap_or_default();
        // Clients refuse a path on which anything else is announced.
        ensure!(endpoint.is_empty() || is_endpoint(&endpoint), "{endpoint:?} is not HOST:PORT");
        self.with_store(move |store| store.change_announced(|announced| announced.endpoint = Some(endpoint)))
            .await?;
        self.announce().await?;
        self.identity_state().await
    }

    /// Returns which keys and which endpoint are announced, and which clients know them.
    pub(in crate::server) async fn identity_state(&self) -> anyhow::Result<IdentityState> {
        let keys = self.keys();
        Ok(self.with_store(move |store| IdentityState::read(store, keys)).await?)
    }

    /// Returns the keys by which clients know this relay.
    fn keys(&self) -> RelayKeys {
        *self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores what clients confirm, until the task is dropped.
    pub(in crate::server) async fn record_confirmations(&self) {
        loop {
            let confirmed = self.registry.next_confirmations().await;
            if let Err(error) = self.with_store(move |store| store.record_confirmed(&confirmed)).await {
                warn!("cannot record which clients know the announcement: {error}");
            }
        }
    }

    /// Lets a client open sessions with the key `new` too, which then replaces the key `old`. Must
    /// not be cancelled half-way, because store and registry must agree.
    pub(in crate::server) async fn change_key(
        &self,
        old: PublicKey,
        new: PublicKey,
    ) -> Result<Client, StoreError> {
        let _applied = self.applied.lock().await;
        let client = self.with_store(move |store| store.change_key(&old, &new)).await?;
        self.registry.set_keys(&old, &client);
        Ok(client)
    }

    /// Makes the key with which a client has opened a path its only key, if it is its next one.
    pub(in crate::server) async fn adopt_key(&self, key: PublicKey) {
        if !self.registry.is_next_key(&key) {
            return;
        }
        let _applied = self.applied.lock().await;
        if let Err(error) = self.with_store(move |store| store.adopt_key(&key)).await {
            warn!(%key, "cannot record the new key of a client, both are accepted until it connects next: {error}");
            return;
        }
        let Some(former) = self.registry.adopt_key(&key) else { return };
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner).forget(&former);
        info!(%key, %former, "a client has replaced its key: the former one is refused from now on");
    }
}

/// Reads the key files.
pub(super) fn load_keys(identity: &Identity) -> anyhow::Result<LoadedKeys> {
    let next = key_rotation::load_next(&identity.private_key_file)?.map(|key| key.public());
    Ok(LoadedKeys { key: identity.load_key()?, next })
}
