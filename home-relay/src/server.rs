//! The `serve` command: starts the relay and stops it.
//!
//! Everything that can fail without touching the kernel's network state is checked first, so that a
//! failed start leaves nothing behind. [`Relay`] holds the state that the admin socket acts on; the
//! submodules are the listener and its handshake limits, the registry of clients and their
//! sessions, the packet path, and the reconciler that keeps the kernel's state as configured.

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context as _;
use mobile_host::confine::Confinement;
use mobile_host::{allocator, control, descriptors, notify};
use mobile_transport::keys::{PrivateKey, PublicKey};
use mobile_transport::transport;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use tracing::{info, warn};

use self::demux::Demux;
use self::limiter::HandshakeLimiter;
use self::listener::{Acceptor, SharedLimiter};
use self::registry::{Registry, Settings};
use crate::config::Config;
use crate::confine::confinement;
use crate::footprint::{self, Footprint};
use crate::metrics::Metrics;
use crate::network::HomeNetwork;
use crate::pool::{PoolError, Pools};
use crate::store::{self, Client, ListedClient, NewClient, Store, StoreError, WantedReach};
use crate::{admin, network};

mod client_io;
mod demux;
mod device;
mod enroll;
mod forwards;
mod limiter;
mod listener;
mod log_rate_limiter;
mod queue;
mod reconciler;
mod registry;
mod reload;
mod session;
mod source_filter;

pub(crate) use self::reload::Reloaded;

/// The pause after a failed `accept()`, because the usual reason, a shortage of resources, outlasts
/// an immediate retry.
pub(crate) const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The largest number of processors on which the relay runs on one thread.
///
/// With two processors, the kernel's part of a bulk transfer fills the one that the thread leaves
/// free, and a second worker thread would be woken for every packet only to find that the first one
/// has read it. With more processors, sessions are spread over all of them.
const MAX_PROCESSORS_FOR_ONE_THREAD: NonZero<usize> = NonZero::new(2).expect("two");
/// How long a stopping relay waits for its clients to accept the messages that close their
/// sessions.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves clients until SIGTERM or SIGINT.
pub(crate) fn serve(path: &Path, config: Config) -> anyhow::Result<()> {
    allocator::retain_freed_memory();
    descriptors::raise_limit();
    let mut runtime = match available_parallelism() {
        Ok(processors) if processors > MAX_PROCESSORS_FOR_ONE_THREAD => {
            tokio::runtime::Builder::new_multi_thread()
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let confinement = confinement(path, &config);
    let thread_confinement = confinement.clone();
    // The first thread is confined later, after it has set up the network.
    runtime.on_thread_start(move || thread_confinement.apply().expect("a thread drops its privileges"));
    let runtime = runtime.enable_all().build()?;
    let result = runtime.block_on(run(path, config, &confinement));
    // A blocking task must not keep a stopped relay alive.
    runtime.shutdown_background();
    result
}

/// A running relay: the state that admin commands act on.
pub(crate) struct Relay {
    /// The public key by which clients know this relay.
    public_key: PublicKey,
    store: Arc<Store>,
    pools: Pools,
    /// The pools that this host can serve: without IPv6 on a host that has none.
    served_pools: Pools,
    registry: Arc<Registry>,
    limiter: SharedLimiter,
    metrics: Arc<Metrics>,
    path: PathBuf,
    /// The applied configuration, locked during a change so that store, registry and rules agree.
    applied: Mutex<AppliedState>,
}

/// The configuration in force and the kernel state made from it.
struct AppliedState {
    config: Config,
    network: HomeNetwork,
}

impl Relay {
    /// Authorises clients, or changes their addresses; all of them, or none.
    pub(crate) async fn authorize(&self, new_clients: Vec<NewClient>) -> Result<Vec<Client>, StoreError> {
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
        delete_in_background(move || network::delete_connections(&freed)).await;
        if has_new_reach {
            self.end_unreachable_connections(&applied.config).await?;
        }
        Ok(clients)
    }

    /// Revokes a client and waits for the end of its session, or withdraws an invitation.
    pub(crate) async fn revoke(&self, name: String) -> Result<ListedClient, StoreError> {
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
        delete_in_background(move || network::delete_connections(&freed)).await;
        Ok(entry)
    }

    /// Deletes tracked connections of clients to destinations outside their reach, because the
    /// nftables rules accept packets of established connections.
    async fn end_unreachable_connections(&self, config: &Config) -> Result<(), StoreError> {
        let clients = self.with_store(Store::clients).await?;
        let cut = forwards::out_of_reach(config, &self.served_pools, &clients);
        delete_in_background(move || {
            if let Some(cut) = cut {
                network::delete_connections_where(cut);
            }
        })
        .await;
        Ok(())
    }

    /// Returns all clients and all redeemable invitations.
    pub(crate) async fn clients(&self) -> Result<Vec<ListedClient>, StoreError> {
        self.with_store(|store| store.entries(store::now())).await
    }

    /// Returns the registry of clients and their sessions.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
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

async fn run(path: &Path, config: Config, confinement: &Confinement) -> anyhow::Result<()> {
    // Check everything that can fail without touching the kernel's network state first.
    let key = PrivateKey::load(&config.identity.private_key_file)?;
    let pools = config.pools()?;
    let served_pools = network::servable(pools)?;
    // Subscribe before any kernel state is made: from here on SIGTERM is an orderly stop.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    let admin = bind_admin(&config)?;
    let listener = transport::listen(config.listen.address)?;
    let store = Store::open(&config.state.dir)?;
    let mut freed: HashSet<IpAddr> = HashSet::new();
    for moved in store.reconcile(&pools, store::now())? {
        warn!(
            client = moved.name, from = %moved.from, to = %moved.to,
            "[pool] changed: assigned new addresses to this client"
        );
        freed.extend(moved.from.without(moved.to));
    }
    let clients = store.clients()?;
    let leased: HashSet<IpAddr> = clients.iter().flat_map(|client| client.lease.addresses()).collect();
    // Addresses of clients that were revoked or moved while no relay was running.
    let is_freed = move |address: IpAddr| {
        freed.contains(&address)
            || (pools.contains(address) && !pools.is_own(address) && !leased.contains(&address))
    };
    delete_in_background(move || {
        network::delete_connections_where(|connection| connection.involves(&is_freed));
    })
    .await;
    let metrics = Arc::new(Metrics::new()?);
    let _metrics_server = match config.metrics.listen {
        Some(address) => {
            let [text, health] = [&metrics; 2].map(Arc::clone);
            let hosts = &config.metrics.hosts;
            Some(mobile_host::metrics::serve(address, hosts, move || text.text(), move || health.health())?)
        }
        None => None,
    };

    let ruleset = forwards::rules(&config, &served_pools, &store.forwards()?, &clients);
    let inbound_datagrams = ruleset.accepts_inbound_datagrams();
    if let Err(error) = footprint::state_file(path).and_then(|state_file| {
        state_file.add(Footprint::of(&config.tunnel, &config.admin, &config.nat, &config.state))
    }) {
        warn!(%error, "cannot record the names of the kernel objects: keep this configuration for `home-relay cleanup`");
    }
    let (home, tun) = HomeNetwork::set_up(&config, &served_pools, ruleset).await?;
    let tun = Arc::new(tun);
    let demux = Arc::new(Demux::default());
    let settings = Settings::of(&config);
    let registry = Registry::new(
        served_pools,
        settings,
        Arc::clone(&demux),
        Arc::clone(&tun) as _,
        Arc::clone(&metrics),
    );
    let registry = Arc::new(registry);
    registry.set_inbound_datagrams(inbound_datagrams);
    for client in &clients {
        registry.add(client);
    }
    let address = config.listen.address;
    let relay = Arc::new(Relay {
        public_key: key.public(),
        store: Arc::new(store),
        pools,
        served_pools,
        registry: Arc::clone(&registry),
        limiter: Arc::new(std::sync::Mutex::new(HandshakeLimiter::new(config.limits.clone()))),
        metrics: Arc::clone(&metrics),
        path: path.to_owned(),
        applied: Mutex::new(AppliedState { config, network: home }),
    });

    let acceptor = Acceptor::new(&key, &relay, &metrics);
    let accepting = tokio::spawn(acceptor.run(listener));
    let administering = tokio::spawn(admin::run(admin, Arc::clone(&relay)));
    tokio::spawn(reload_on(hangup, Arc::clone(&relay)));
    let janitor = Arc::clone(&registry);
    tokio::spawn(async move { janitor.run_janitor().await });
    feed_watchdog();
    // Confine this thread before any client is accepted; the other threads were confined at their
    // start.
    confinement.apply().context("cannot drop the privileges that a serving relay does not need")?;
    info!(%address, public_key = %key.public(), clients = clients.len(), "serving");
    notify::ready();

    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        result = demux::run(&tun, &demux, &metrics) => result,
        result = relay.run_reconciler() => result,
    };
    notify::stopping();
    accepting.abort();
    administering.abort();
    // Ending the task closes the listener and its socket; the cancellation error carries nothing
    // new.
    let _ = administering.await;
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, registry.shut_down()).await.is_err() {
        warn!("timed out closing sessions: the remaining clients notice when their paths fail");
    }
    if result.is_ok() {
        info!(
            "stopped; the device and the nftables rules stay for the next start (`home-relay cleanup` removes them)"
        );
    }
    result
}

/// Runs `work`, which deletes tracked connections, on a blocking thread: the connection tracking
/// table may be large, and packets must not wait for it.
async fn delete_in_background(work: impl FnOnce() + Send + 'static) {
    let _ = tokio::task::spawn_blocking(work).await;
}

/// Reloads the configuration at each SIGHUP; the outcome is logged.
async fn reload_on(mut hangup: Signal, relay: Arc<Relay>) {
    while hangup.recv().await.is_some() {
        notify::reloading();
        let _ = relay.reload().await;
        notify::ready();
    }
}

fn bind_admin(config: &Config) -> anyhow::Result<control::Listener> {
    // Root may always connect; members of the group may too if one is configured.
    let mode = if config.admin.group.is_some() { 0o660 } else { 0o600 };
    Ok(control::Listener::bind(&config.admin.socket, mode, config.admin.group.as_deref())?)
}

fn feed_watchdog() {
    if let Some(period) = notify::watchdog_interval() {
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(period);
            loop {
                ticks.tick().await;
                notify::keep_alive();
            }
        });
    }
}

#[cfg(test)]
mod tests;
