//! The `serve` command: starts the relay and stops it.
//!
//! Everything that can fail without touching the kernel's network state is checked first, so that a
//! failed start leaves nothing behind. [`Relay`] holds the state that the admin socket acts on, and
//! keeps the kernel's state as configured; the other submodules are the listener and its handshake
//! limits, the admin socket, the registry of clients and their sessions, and the packet path.

use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context as _;
use mobile_host::confine::Confinement;
use mobile_host::metrics::{MetricsError, Server as MetricsServer};
use mobile_host::{allocator, control, descriptors, notify};
use mobile_transport::key_rotation;
use mobile_transport::keys::{PrivateKey, RelayKeys};
use mobile_transport::transport;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use self::demux::Demux;
use self::listener::Acceptor;
use self::registry::{Registry, Settings};
use self::relay::{AppliedState, Relay, forwards};
use crate::check;
use crate::config::Config;
use crate::confine::confinement;
use crate::footprint::{self, Footprint};
use crate::metrics::Metrics;
use crate::network::{self, HomeNetwork, connections};
use crate::pool::Pools;
use crate::store::{self, Client, Store};

mod admin_socket;
mod client_io;
mod demux;
mod device;
mod enroll;
mod limiter;
mod listener;
mod queue;
mod registry;
mod relay;
mod session;
mod source_filter;

/// The pause after a failed `accept()`, because the usual reason, a shortage of resources, outlasts
/// an immediate retry.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
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

async fn run(path: &Path, config: Config, confinement: &Confinement) -> anyhow::Result<()> {
    // Subscribe before any file or kernel state is made: from here on SIGTERM is an orderly stop.
    let (mut stop, hangup) = (StopSignals::subscribe()?, signal(SignalKind::hangup())?);
    // Check everything that can fail without touching the kernel's network state first.
    let admin = bind_admin(&config)?;
    check::before_start(&config).await?;
    let (key, keys) = load_keys(&config)?;
    let pools = config.pools()?;
    let served_pools = network::servable(pools)?;
    let listener = transport::listen(config.listen.address)?;
    let store = Store::open(&config.state.dir)?;
    let (clients, metrics) = (fit_leases(&store, pools).await?, Arc::new(Metrics::new()?));
    let _metrics_server = serve_metrics(&config, &metrics)?;
    let ruleset = forwards::rules(&config, &served_pools, &store.forwards()?, &clients);
    let inbound_datagrams = ruleset.accepts_inbound_datagrams();
    record_footprint(path, &config);
    let (home, tun) = HomeNetwork::set_up(&config, &served_pools, ruleset).await?;
    let tun = Arc::new(tun);
    let demux = Arc::new(Demux::default());
    let registry = Registry::new(
        served_pools,
        Settings::of(&config),
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
    let relay = Arc::new(Relay::new(
        keys,
        path.to_owned(),
        pools,
        AppliedState::new(config, home),
        store,
        Arc::clone(&registry),
        Arc::clone(&metrics),
    ));
    relay.announce().await?;
    let acceptor = Acceptor::new(&key, &relay, &metrics);
    let tasks = Tasks::start(&relay, acceptor, listener, admin, hangup);
    // Confine this thread before any client is accepted; the other threads were confined at their
    // start.
    confinement.apply().context("cannot drop the privileges that a serving relay does not need")?;
    info!(%address, public_key = %key.public(), clients = clients.len(), "serving");
    notify::ready();
    let result = tokio::select! {
        () = stop.received() => Ok(()),
        result = demux::run(&tun, &demux, &metrics) => result,
        result = relay.run_reconciler() => result,
    };
    tasks.stop(&registry).await;
    if result.is_ok() {
        info!(
            "stopped; the device and the nftables rules stay for the next start (`home-relay cleanup` removes them)"
        );
    }
    result
}

/// Loads the relay's key pair, and the public keys by which clients know the relay.
fn load_keys(config: &Config) -> anyhow::Result<(PrivateKey, RelayKeys)> {
    let file = &config.identity.private_key_file;
    let key = config.identity.load_key().context("[identity] private_key_file")?;
    let next = key_rotation::load_next(file)?.map(|next| next.public());
    let keys = RelayKeys { current: key.public(), next };
    Ok((key, keys))
}

/// The signals that end the relay.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn subscribe() -> std::io::Result<Self> {
        let [terminate, interrupt] = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        Ok(Self { terminate: terminate?, interrupt: interrupt? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Fits the leases to the pools, and returns all clients. Deletes the tracked connections of
/// addresses that no client holds any more, also of clients that were revoked or moved while no
/// relay was running.
async fn fit_leases(store: &Store, pools: Pools) -> anyhow::Result<Vec<Client>> {
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
    let is_freed = move |address: IpAddr| {
        freed.contains(&address)
            || (pools.contains(address) && !pools.is_own(address) && !leased.contains(&address))
    };
    connections::delete_in_background(move || {
        connections::delete_connections_where(|connection| connection.involves(&is_freed));
    })
    .await;
    Ok(clients)
}

/// Serves the metrics at `[metrics] listen`, if it is set, until the returned server is dropped.
fn serve_metrics(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<MetricsServer>, MetricsError> {
    let Some(address) = config.metrics.listen else { return Ok(None) };
    let [text, health] = [metrics; 2].map(Arc::clone);
    let hosts = &config.metrics.hosts;
    mobile_host::metrics::serve(address, hosts, move || text.text(), move || health.health()).map(Some)
}

/// Records the names of the kernel objects that are about to be made, for `home-relay cleanup`.
fn record_footprint(path: &Path, config: &Config) {
    if let Err(error) =
        footprint::state_file(path).and_then(|state_file| state_file.add(Footprint::of(config)))
    {
        warn!(%error, "cannot record the names of the kernel objects: keep this configuration for `home-relay cleanup`");
    }
}

/// The tasks that accept clients and admin commands.
struct Tasks {
    accepting: JoinHandle<()>,
    administering: JoinHandle<()>,
}

impl Tasks {
    /// Starts the tasks of a relay, and those that need no orderly end: reloading at SIGHUP, ending
    /// idle sessions, and feeding systemd's watchdog.
    fn start(
        relay: &Arc<Relay>,
        acceptor: Acceptor,
        listener: TcpListener,
        admin: control::Listener,
        hangup: Signal,
    ) -> Self {
        let accepting = tokio::spawn(acceptor.run(listener));
        let administering = tokio::spawn(admin_socket::run(admin, Arc::clone(relay)));
        tokio::spawn(reload_on(hangup, Arc::clone(relay)));
        let recorder = Arc::clone(relay);
        tokio::spawn(async move { recorder.record_confirmations().await });
        let janitor = Arc::clone(relay.registry());
        tokio::spawn(async move { janitor.run_janitor().await });
        feed_watchdog();
        Self { accepting, administering }
    }

    /// Stops the tasks and closes all sessions.
    async fn stop(self, registry: &Registry) {
        notify::stopping();
        self.accepting.abort();
        self.administering.abort();
        // The end of the task closes the listener and its socket. A cancellation error is expected.
        let _ = self.administering.await;
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, registry.shut_down()).await.is_err() {
            warn!("timed out closing sessions: the remaining clients notice when their paths fail");
        }
    }
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
