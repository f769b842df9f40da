//! The running relay: the state that admin commands and enrolments act on, with one method for each
//! of them.
//!
//! Every change keeps the store, the registry, the handshake limiter and the kernel's network state
//! in agreement: it holds the lock on the applied configuration from its first step to its last.

use std::path::{Path, PathBuf};
use std::sync::{self, Arc, OnceLock, PoisonError, RwLock};

use mobile_transport::keys::{PublicKey, RelayKeys};
use mobile_transport::tls::RelayConfig;
use tokio::sync::Mutex;
use tracing::warn;

use super::limiter::{HandshakeLimiter, SharedLimiter};
use super::registry::Registry;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::network::HomeNetwork;
use crate::pool::{PoolError, Pools};
use crate::store::{self, Store, StoreError};

mod clients;
pub(super) mod forwards;
mod invitations;
mod reconciler;
mod reload;
mod rotation;
mod status;

/// A running relay: the state that admin commands act on.
pub(crate) struct Relay {
    /// The keys by which clients know this relay.
    keys: RwLock<RelayKeys>,
    /// The TLS configuration of the acceptor, which proves the key.
    tls: OnceLock<RelayConfig>,
    store: Arc<Store>,
    pools: Pools,
    /// The pools that this host can serve: without IPv6 on a host that has none.
    served_pools: Pools,
    registry: Arc<Registry>,
    limiter: SharedLimiter,
    metrics: Arc<Metrics>,
    /// The time at which the relay started, in seconds since 1970.
    started: u64,
    /// The configuration file.
    path: PathBuf,
    /// The path of the configuration file without symbolic links.
    file: PathBuf,
    /// The applied configuration, locked during a change so that store, registry and rules agree.
    applied: Mutex<AppliedState>,
}

/// The configuration in force and the kernel state made from it.
pub(super) struct AppliedState {
    config: Config,
    network: HomeNetwork,
    /// The time of the last successful reload, in seconds since 1970.
    reloaded: Option<u64>,
}

impl AppliedState {
    /// Creates the state of a relay that serves `config`, with the network state made from it.
    pub(super) fn new(config: Config, network: HomeNetwork) -> Self {
        Self { config, network, reloaded: None }
    }
}

impl Relay {
    /// Creates the relay of the configuration file `path`.
    pub(super) fn new(
        keys: RelayKeys,
        path: PathBuf,
        pools: Pools,
        applied: AppliedState,
        store: Store,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limits = applied.config.limits.clone();
        let file = applied.config.file.clone();
        Self {
            keys: RwLock::new(keys),
            tls: OnceLock::new(),
            store: Arc::new(store),
            pools,
            served_pools: applied.network.pools(),
            registry,
            limiter: Arc::new(sync::Mutex::new(HandshakeLimiter::new(limits))),
            metrics,
            started: store::now(),
            path,
            file,
            applied: Mutex::new(applied),
        }
    }

    /// Returns the public key that this relay proves.
    pub(super) fn public_key(&self) -> PublicKey {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).current
    }

    /// Returns the configuration file, by which the relay is known to other programs.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the registry of clients and their sessions.
    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Returns the handshake limiter, whose limits follow the configuration.
    pub(super) fn limiter(&self) -> &SharedLimiter {
        &self.limiter
    }

    /// Runs `work` on the store in a blocking thread, because packets must not wait for the disk.
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        let done = done.unwrap_or_else(|error| Err(StoreError::Database(error.to_string())));
        if let Err(StoreError::Pool(error @ PoolError::Exhausted { .. })) = &done {
            self.metrics.pool_exhausted.inc();
            warn!("{error}");
        }
        done
    }
}
