//! Reports the state of a running relay, and the content of its store.

use super::Relay;
use crate::config::Config;
use crate::status::{Activity, Process, RelayStatus, Setup, Traffic};
use crate::store::{self, Snapshot, Store, StoreError};

impl Relay {
    /// Returns the configuration in force.
    pub(in crate::server) async fn applied_config(&self) -> Config {
        self.applied.lock().await.config.clone()
    }

    /// Returns the state of this relay.
    pub(in crate::server) async fn status(&self) -> Result<RelayStatus, StoreError> {
        let (config, reloaded) = {
            let applied = self.applied.lock().await;
            (applied.config.clone(), applied.reloaded)
        };
        let public_key = self.public_key();
        let setup = self.with_store(move |store| {
            let mut setup = Setup::of(&config, Some(public_key));
            setup.add_store(store, store::now())?;
            Ok(setup)
        });
        let setup = setup.await?;
        let sessions = self.registry.sessions().await;
        let metrics = &self.metrics;
        let activity = Activity {
            sessions: Some(sessions.len()),
            connected: Some(sessions.iter().filter(|session| !session.paths.is_empty()).count()),
            traffic: Some(Traffic::of(metrics.from_clients.counts(), metrics.to_clients.counts())),
            drops: Some(metrics.drops_by_reason()),
        };
        let process = Process {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            pid: Some(std::process::id()),
            started: Some(self.started),
            reloaded,
        };
        Ok(RelayStatus { process, setup, activity })
    }

    /// Returns the content of the store.
    pub(in crate::server) async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.with_store(Store::snapshot).await
    }
}
