//! Starting: each step in its order, and back again when one fails.
//!
//! First what can fail without a trace (rights, keys, sockets), then the kernel's objects so that nothing marked can
//! ever go direct (the closed table before the programs that mark), then the tunnel.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use mobile_io::confine::Confinement;
use mobile_io::control::Listener;
use mobile_io::keys::PrivateKey;
use mobile_io::netlink::Netlink;
use mobile_io::state_file::StateFile;
use mobile_io::tun::{self, Tun};
use mobile_proto::Limits;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::Agent;
use super::accounts;
use super::extent::Joining;
use super::failure::{self, Opening};
use super::network::NetworkThread;
use crate::config::{Config, RelayIdentity, globs};
use crate::footprint::Footprint;
use crate::metrics::Server as MetricsServer;
use crate::processes::{ProcessHelper, Setup};
use crate::routing::claim::HostNetworks;
use crate::routing::lease::{Assigned, Lease};
use crate::routing::{self, Keeper, Report};
use crate::selection::addresses::Addresses;
use crate::selection::bpf::{Marking, Selector};
use crate::selection::cgroup::MobileCgroup;
use crate::selection::owner::{self, Claim};
use crate::selection::slice::SliceWatch;
use crate::tunnel::Tunnel;
use crate::tunnel::connect::Dialer;
use crate::tunnel::io::{DeviceSide, TunIo};
use crate::tunnel::machine::Wishes;
use crate::{control, uplinks};

/// Anybody may ask; who may do what is decided by who asks.
const SOCKET_MODE: u32 = 0o666;

/// What the programs could not be told is told again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// An agent that works.
pub(super) struct Running {
    /// What the control socket and metrics use.
    pub(super) agent: Arc<Agent>,
    /// Each ends only with a reason why the agent cannot go on.
    pub(super) tasks: JoinSet<anyhow::Error>,
    /// `mobile cleanup`.
    pub(super) clean_ups: mpsc::Receiver<oneshot::Sender<Result<(), String>>>,
    /// The runtime of the tasks that read and change the kernel's network configuration.
    pub(super) network: NetworkThread,
    /// The lock that keeps other agents out of the mobile cgroup.
    pub(super) claim: Claim,
    _metrics: Option<MetricsServer>,
}

/// What this start has made, as opposed to found.
#[derive(Default)]
struct Made {
    record: bool,
    cgroup: bool,
    device: bool,
    route: bool,
}

/// The kernel's objects, ready.
struct Kernel {
    cgroup: MobileCgroup,
    claim: Claim,
    tun: Tun,
    keeper: Keeper,
    report: Report,
    selector: Selector,
    side: Arc<DeviceSide>,
    processes: ProcessHelper,
    helper: Child,
}

/// Starts the agent, or leaves nothing behind that was not there before.
pub(super) async fn start(
    config: Config,
    record: &StateFile,
    confinement: &Confinement,
) -> anyhow::Result<Running> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the agent makes a device, routes and eBPF programs, so it must run as root: try it with sudo"
    );
    let relay = config.relay_identity()?;
    let key = PrivateKey::load(&config.identity.private_key_file)
        .context("the agent has no identity: make one with `mobile keygen`")?;
    let wishes = Wishes {
        prefer: globs("[uplink] prefer", &config.uplink.prefer)?,
        exclude: globs("[uplink] exclude", &config.uplink.exclude)?,
        standby: globs("[uplink] standby", &config.uplink.standby)?,
    };
    let listener = listen(&config)?;
    let serve_metrics = |listen| MetricsServer::start(listen, &config.metrics.hosts);
    let metrics = config.metrics.listen.map(serve_metrics).transpose()?;
    let network = NetworkThread::start(confinement)?;
    let netlink = network.enter(Netlink::new)?;
    let dialer = Dialer::new(&relay, &key);
    let settings = uplinks::Settings {
        own_device: config.tunnel.device.clone(),
        relay_table: config.routing.relay_table,
        prefer: wishes.prefer.clone(),
    };
    let (links, watch_links) = network.run(uplinks::watch(settings, dialer.addresses())).await?;
    let looks = Arc::clone(&links.looks);

    let networks = routing::networks::watch(config.tunnel.device.clone(), dialer.addresses());
    let (networks, watch_networks) = network.run(networks).await?;

    let mut made = Made { record: write_record(record, &config), ..Made::default() };
    let kernel = match kernel(&config, &relay, &netlink, networks, &mut made).await {
        Ok(kernel) => kernel,
        Err(error) => {
            undo(&config, &netlink, made, record).await;
            return Err(error);
        }
    };
    let Kernel { cgroup, claim, tun, keeper, report, mut selector, side, processes, helper } = kernel;
    links.set_helper(processes.clone());
    // Messages of the programs help to understand, nothing depends on them.
    let logs = selector.spawn_logs();
    if let Err(error) = logs {
        tracing::warn!(%error, "messages of the eBPF programs are not shown");
    }

    let own_key = key.public();
    let limits = Limits {
        compression: config.tunnel.compression.is_on(),
        fair: config.tunnel.queue.is_fair(),
        ..Limits::default()
    };
    let device = TunIo::new(tun, Arc::clone(&side));
    let (tunnel, manage) = Tunnel::start(dialer, wishes, limits, device, links);
    let assigned = tunnel.assigned.clone();
    let (clean_up, clean_ups) = mpsc::channel(1);
    let (route_bypass, bypasses) = mpsc::channel(1);
    let bypass = tokio::sync::Mutex::new(config.routing.bypass.iter().map(IpNet::trunc).collect());
    let agent = Arc::new(Agent {
        config,
        relay,
        own_key,
        cgroup,
        tunnel,
        route: report,
        looks,
        side,
        processes,
        selector: Mutex::new(selector),
        joining: Joining::default(),
        started: Instant::now(),
        opening: Opening::default(),
        clean_up,
        bypass,
        route_bypass,
    });
    if let Some(metrics) = &metrics {
        metrics.show(&agent);
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_helper(helper));
    tasks.spawn_on(watch_links, network.handle());
    tasks.spawn_on(watch_networks, network.handle());
    tasks.spawn(manage);
    tasks.spawn_on(keeper.run(assigned, bypasses), network.handle());
    tasks.spawn(follow_assigned(Arc::clone(&agent)));
    tasks.spawn(follow_slice(Arc::clone(&agent)));
    tasks.spawn(failure::keep_deadline(Arc::clone(&agent)));
    tasks.spawn(accounts::keep(Arc::clone(&agent)));
    let for_server = Arc::clone(&agent);
    tasks.spawn(async move {
        control::server::serve(listener, for_server).await;
        anyhow::anyhow!("the control socket is gone")
    });
    Ok(Running { agent, tasks, clean_ups, network, claim, _metrics: metrics })
}

/// The resolvers and persistent addresses that the programs go by.
fn programs_view(assigned: Option<&Assigned>) -> (Addresses, Addresses) {
    assigned.map(|it| (Addresses::resolvers(it), Addresses::persistent(it))).unwrap_or_default()
}

/// Queries go where the relay says now, and from the addresses it assigns now.
async fn follow_assigned(agent: Arc<Agent>) -> anyhow::Error {
    let mut assigned = agent.route.assigned.clone();
    let mut in_force = None;
    loop {
        let view = programs_view(assigned.borrow_and_update().as_ref());
        if in_force != Some(view) {
            let (resolvers, persistent) = view;
            tracing::debug!(?resolvers, ?persistent, "addresses of mobile processes");
            let mut selector = agent.selector();
            let (asked, sent) = (selector.set_resolvers(resolvers), selector.set_persistent(persistent));
            if let Err(error) = &asked {
                tracing::warn!(%error, "queries of mobile processes go where they went before, for now");
            }
            if let Err(error) = &sent {
                tracing::warn!(%error, "datagrams of sockets made before `mobile attach` have their former source, for now");
            }
            in_force = (asked.is_ok() && sent.is_ok()).then_some(view);
        }
        let changed = if in_force == Some(view) {
            assigned.changed().await
        } else {
            tokio::time::timeout(AGAIN, assigned.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            // The keeper's own task ends with the reason, perhaps a moment later on another thread.
            return std::future::pending().await;
        }
    }
}

/// systemd makes and removes the slice as it likes.
async fn follow_slice(agent: Arc<Agent>) -> anyhow::Error {
    let slice = agent.cgroup.slice();
    let mut watch = match SliceWatch::new(slice) {
        Ok(watch) => watch,
        Err(error) => {
            let dir = slice.dir().display();
            tracing::warn!(%error, "cannot watch for {dir}: should it come later, its processes are not mobile");
            return std::future::pending().await;
        }
    };
    let mut in_force = None;
    loop {
        let id = slice.id();
        if in_force != Some(id) {
            tracing::debug!(slice = %slice.dir().display(), id, "the slice whose processes are mobile");
            match agent.selector().set_slice(id) {
                Ok(()) => in_force = Some(id),
                Err(error) => {
                    tracing::warn!(%error, "processes of {} are not mobile yet", slice.dir().display());
                }
            }
        }
        let changed = if in_force == Some(id) {
            watch.changed().await
        } else {
            tokio::time::timeout(AGAIN, watch.changed()).await.unwrap_or(Ok(()))
        };
        if let Err(error) = changed {
            return anyhow::Error::new(error)
                .context("cannot watch for the slice of mobile processes any more");
        }
    }
}

fn listen(config: &Config) -> anyhow::Result<Listener> {
    let socket = &config.control.socket;
    if let Some(dir) = socket.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {} for the control socket", dir.display()))?;
    }
    Listener::bind(socket, SOCKET_MODE, config.control.group.as_deref())
        .context("cannot open the control socket")
}

async fn kernel(
    config: &Config,
    relay: &RelayIdentity,
    netlink: &Netlink,
    networks: watch::Receiver<HostNetworks>,
    made: &mut Made,
) -> anyhow::Result<Kernel> {
    let path = config.cgroup.path.as_deref();
    made.cgroup = MobileCgroup::existing(path)?.is_none();
    let cgroup = MobileCgroup::ensure(path)?.with_slice(config.cgroup.slice.as_deref());
    let claim = owner::claim(&cgroup)?;
    leave_cgroup(&cgroup)?;

    let device = &config.tunnel.device;
    let found = netlink.link_index(device).await.is_ok();
    let tun = Tun::open(device, true, config.tunnel.offload)?;
    made.device = !found;

    made.route = !netlink.rules().await?.iter().any(|rule| rule.table == config.routing.table);
    let side = Arc::new(DeviceSide::default());
    let lease = Lease::new(&config.state.dir, &relay.public_key);
    let (keeper, report) = Keeper::start(config, netlink.clone(), lease, Arc::clone(&side), networks).await?;

    let (resolvers, persistent) = programs_view(report.assigned.borrow().as_ref());
    let marking = Marking {
        mark: config.routing.mark,
        mask: config.routing.mark_mask,
        log: tracing::enabled!(target: "mobile::bpf", tracing::Level::DEBUG),
        device: netlink.link_index(device).await?,
        bypass: &config.routing.bypass,
        resolvers,
        persistent,
        on_failure: config.routing.on_failure,
    };
    let selector = Selector::load_or_adopt(&config.bpf.pin_dir, &cgroup, marking)?;
    if selector.adopted() {
        tracing::info!("adopted what an earlier agent left: its mobile processes go on");
    }
    let setup = Setup {
        cgroup: config.cgroup.path.clone(),
        slice: config.cgroup.slice.clone(),
        mark: config.routing.mark,
        mark_mask: config.routing.mark_mask,
        mark_key: selector.key(),
    };
    // Started last, with the rights that this process is about to give up.
    let (processes, helper) = ProcessHelper::start(&setup, selector.account_maps())?;
    Ok(Kernel { cgroup, claim, tun, keeper, report, selector, side, processes, helper })
}

/// Waits for the process helper to end, without which no process can be made mobile.
async fn follow_helper(mut helper: Child) -> anyhow::Error {
    match helper.wait().await {
        Ok(status) => anyhow::anyhow!("the process helper of the agent ended ({status})"),
        Err(error) => anyhow::Error::new(error).context("cannot wait for the process helper of the agent"),
    }
}

/// An agent started from a mobile shell would send its own tunnel into the tunnel.
fn leave_cgroup(cgroup: &MobileCgroup) -> anyhow::Result<()> {
    let own = i32::try_from(std::process::id()).context("this process has an odd number")?;
    if cgroup.is_mobile(own)? {
        cgroup.detach(own).context("the agent itself must not be mobile")?;
    }
    Ok(())
}

/// Records what is about to be made, for `mobile cleanup`. Returns whether this start added the
/// record.
fn write_record(record: &StateFile, config: &Config) -> bool {
    let first = record.read::<Footprint>().is_ok_and(|recorded| recorded.is_empty());
    let added = record.add(Footprint::of(config)).unwrap_or_else(|error| {
        tracing::warn!(%error, "`mobile cleanup` will need this configuration as it is now");
        false
    });
    first && added
}

async fn undo(config: &Config, netlink: &Netlink, made: Made, record: &StateFile) {
    let mut errors = Vec::new();
    if made.route {
        errors.extend(routing::remove(config, netlink, false).await);
    }
    if made.device
        && let Err(error) = tun::remove(&config.tunnel.device)
    {
        errors.push(error.into());
    }
    if made.cgroup
        && let Ok(Some(cgroup)) = MobileCgroup::existing(config.cgroup.path.as_deref())
        && let Err(error) = cgroup.remove()
    {
        errors.push(error.into());
    }
    if made.record
        && errors.is_empty()
        && let Err(error) = record.remove()
    {
        errors.push(error.into());
    }
    for error in errors {
        tracing::warn!(error = crate::cli::story(&error), "left behind by the failed start");
    }
}
