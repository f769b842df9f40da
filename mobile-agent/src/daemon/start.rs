//! Starts the agent step by step.
//!
//! Steps that can fail without a trace come first (rights, keys, sockets). The kernel objects
//! follow, then the tunnel, and the tasks are last.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use mobile_host::confine::Confinement;
use mobile_host::control::Listener;
use mobile_host::registry::Registration;
use mobile_host::state_file::StateFile;
use mobile_netlink::Netlink;
use mobile_proto::Limits;
use mobile_transport::keys::PrivateKey;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::kernel_objects::{self, KernelObjects};
use super::network::NetworkThread;
use crate::agent::{Agent, BypassList, CleanUpRequest, Identity, MobileProcesses, SessionHandles};
use crate::claims::Claims;
use crate::config::{Config, load_key};
use crate::metrics::Server as MetricsServer;
use crate::processes::Job;
use crate::routing::RouteSettings;
use crate::selection::cgroup_lock::CgroupLock;
use crate::tunnel::Tunnel;
use crate::tunnel::connect::Dialer;
use crate::tunnel::io::TunIo;
use crate::tunnel::known_relay::KnownRelay;
use crate::tunnel::machine::Preferences;
use crate::uplinks::{self, UplinkSettings};
use crate::{check, control, routing};

/// The file mode of the control socket: every user may connect, and the credentials of the peer
/// decide what it may request.
const SOCKET_MODE: u32 = 0o666;

/// A running agent with its tasks.
pub(super) struct RunningAgent {
    /// The state shared with the control socket and the metrics.
    pub(super) agent: Arc<Agent>,
    /// The background tasks of the agent. Each ends only with the reason why the agent cannot
    /// continue.
    pub(super) tasks: JoinSet<anyhow::Error>,
    /// Receives requests of `mobile cleanup`.
    pub(super) clean_ups: mpsc::Receiver<CleanUpRequest>,
    /// The runtime of the tasks that read and change the kernel's network configuration.
    pub(super) network: NetworkThread,
    /// The lock that keeps other agents out of the mobile cgroup.
    pub(super) cgroup_lock: CgroupLock,
    /// The registration that keeps other agents from all that this one uses.
    pub(super) registration: Registration,
    _metrics: Option<MetricsServer>,
}

/// Starts the agent with the configuration `config`, read from the file `path` or the default one
/// if `None`. On an error, removes every object that this start made.
pub(super) async fn start(
    config: Config,
    path: Option<&Path>,
    state_file: &StateFile,
    confinement: &Confinement,
) -> anyhow::Result<RunningAgent> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the agent creates a device, routes and eBPF programs, so it must run as root: try it with sudo"
    );
    let key = load_key(&config.identity.private_key_file).context("[identity] private_key_file");
    let own_key = key.as_ref().ok().map(PrivateKey::public);
    let registration = Claims::of(&config, path, own_key).register()?;
    let listener = listen(&config)?;
    check::before_start(&config).await?;
    let (relay, key) = (config.relay_identity()?, key?);
    let preferences = Preferences::of(&config.uplink)?;
    let serve_metrics = |listen| MetricsServer::start(listen, &config.metrics.hosts);
    let metrics = config.metrics.listen.map(serve_metrics).transpose()?;
    let network = NetworkThread::start(confinement)?;
    let netlink = network.enter(Netlink::new)?;
    let dialer = Dialer::new(KnownRelay::load(&config.state.dir, &relay), &key);
    let (links, watch_links) =
        network.run(uplinks::watch(uplink_settings(&config, &preferences), dialer.addresses())).await?;
    let networks = routing::networks::watch(config.tunnel.device.clone(), dialer.addresses());
    let (networks, watch_networks) = network.run(networks).await?;

    let kernel = kernel_objects::make((&config, path), &relay, &netlink, networks, state_file).await?;
    let KernelObjects { cgroup, lock, tun, reconciler, route, mut selector, delivery, processes, helper } =
        kernel;
    let finder = processes.clone();
    links.set_reader_lookup(move |device| {
        Ok(finder.run(&Job::FindTunHolder { device: device.to_owned() }, None)?)
    });
    // Messages of the eBPF programs help with diagnosis, but nothing depends on them.
    let logs = selector.spawn_logs();
    if let Err(error) = logs {
        tracing::warn!(%error, "cannot read the log of the eBPF programs: their messages are not shown");
    }

    let (uplink_reads, device) = (Arc::clone(&links.reads), TunIo::new(tun, Arc::clone(&delivery)));
    let (tunnel, manage) = Tunnel::start(dialer, preferences, limits(&config), device, links);
    let pushed_config = tunnel.pushed_config.clone();
    let follow_announcements = tunnel.follow_announcements(config.state.dir.clone());
    let (route_bypass, bypasses) = mpsc::channel(1);
    let bypass = BypassList::new(&config.routing.bypass, route_bypass);
    let (configure_route, route_settings) = watch::channel(RouteSettings::of(&config, &relay));
    let identity = Identity { relay, own_key: key.public() };
    let session = SessionHandles { tunnel, uplink_reads, delivery };
    let processes = MobileProcesses::new(cgroup, selector, processes);
    let (agent, clean_ups) =
        Agent::new((config, identity), session, route, bypass, processes, configure_route);
    if let Some(metrics) = &metrics {
        metrics.set_agent(&agent);
    }

    let mut tasks = JoinSet::new();
    tasks.spawn(follow_helper(helper));
    tasks.spawn_on(watch_links, network.handle());
    tasks.spawn_on(watch_networks, network.handle());
    tasks.spawn_on(follow_announcements, network.handle());
    tasks.spawn(manage);
    tasks.spawn_on(reconciler.run(pushed_config, bypasses, route_settings), network.handle());
    agent.spawn_tasks(&mut tasks);
    tasks.spawn(serve_control(listener, Arc::clone(&agent)));
    Ok(RunningAgent { agent, tasks, clean_ups, network, cgroup_lock: lock, registration, _metrics: metrics })
}

fn uplink_settings(config: &Config, preferences: &Preferences) -> UplinkSettings {
    UplinkSettings {
        own_device: config.tunnel.device.clone(),
        relay_table: config.routing.relay_table,
        prefer: preferences.prefer.clone(),
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        compression: config.tunnel.compression.is_on(),
        fair: config.tunnel.queue.is_fair(),
        ..Limits::default()
    }
}

async fn serve_control(listener: Listener, agent: Arc<Agent>) -> anyhow::Error {
    control::server::serve(listener, agent).await;
    anyhow::anyhow!("the control socket has stopped")
}

fn listen(config: &Config) -> anyhow::Result<Listener> {
    let socket = &config.control.socket;
    Listener::bind(socket, SOCKET_MODE, config.control.group.as_deref())
        .context("cannot open the control socket")
}

/// Returns an error when the process helper ends. The agent then stops, because no process can
/// become mobile without the helper.
async fn follow_helper(mut helper: Child) -> anyhow::Error {
    match helper.wait().await {
        Ok(status) => anyhow::anyhow!("the process helper of the agent ended ({status})"),
        Err(error) => anyhow::Error::new(error).context("cannot wait for the process helper of the agent"),
    }
}
