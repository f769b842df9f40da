//! Starts the agent step by step, and undoes the steps when one fails.
//!
//! Steps that can fail without a trace come first (rights, keys, sockets). The kernel objects
//! follow, in an order that never lets marked packets leave directly: the routing table, with
//! `unreachable` routes only, before the eBPF programs that mark packets for this table. The tunnel
//! is last.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use mobile_host::confine::Confinement;
use mobile_host::control::Listener;
use mobile_host::state_file::StateFile;
use mobile_netlink::Netlink;
use mobile_proto::Limits;
use mobile_transport::keys::PrivateKey;
use mobile_transport::tun::{self, Tun};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::Agent;
use super::accounts;
use super::attach_scope::AttachLock;
use super::network::NetworkThread;
use super::on_failure::{self, DirectFallback};
use crate::config::{Config, RelayIdentity, globs};
use crate::footprint::Footprint;
use crate::metrics::Server as MetricsServer;
use crate::processes::{ProcessHelper, Setup};
use crate::routing::assignment::{Assignment, AssignmentCache};
use crate::routing::claim::HostNetworks;
use crate::routing::{self, RouteReconciler, RouteStatus};
use crate::selection::addresses::Addresses;
use crate::selection::bpf::{Marking, Selector};
use crate::selection::cgroup::MobileCgroup;
use crate::selection::cgroup_lock::{self, CgroupLock};
use crate::selection::slice::SliceWatch;
use crate::tunnel::Tunnel;
use crate::tunnel::connect::Dialer;
use crate::tunnel::io::{DeliveryFilter, TunIo};
use crate::tunnel::machine::Preferences;
use crate::{control, uplinks};

/// The file mode of the control socket: every user may connect, and the credentials of the peer
/// decide what it may request.
const SOCKET_MODE: u32 = 0o666;

/// The time until a failed update of the eBPF programs' maps is retried.
const RETRY_DELAY: Duration = Duration::from_secs(10);

/// A running agent with its tasks.
pub(super) struct RunningAgent {
    /// The state shared with the control socket and the metrics.
    pub(super) agent: Arc<Agent>,
    /// The background tasks of the agent. Each ends only with the reason why the agent cannot
    /// continue.
    pub(super) tasks: JoinSet<anyhow::Error>,
    /// Receives requests of `mobile cleanup`.
    pub(super) clean_ups: mpsc::Receiver<oneshot::Sender<Result<(), String>>>,
    /// The runtime of the tasks that read and change the kernel's network configuration.
    pub(super) network: NetworkThread,
    /// The lock that keeps other agents out of the mobile cgroup.
    pub(super) cgroup_lock: CgroupLock,
    _metrics: Option<MetricsServer>,
}

/// The objects that a failed start removes again: true for an object that this start makes, false
/// for one that existed before.
#[derive(Default)]
struct UndoLog {
    state_file: bool,
    cgroup: bool,
    device: bool,
    route: bool,
}

/// The handles of the kernel objects after a successful start.
struct KernelObjects {
    cgroup: MobileCgroup,
    lock: CgroupLock,
    tun: Tun,
    reconciler: RouteReconciler,
    route: RouteStatus,
    selector: Selector,
    delivery: Arc<DeliveryFilter>,
    processes: ProcessHelper,
    helper: Child,
}

/// Starts the agent. On an error, removes every object that this start made.
pub(super) async fn start(
    config: Config,
    state_file: &StateFile,
    confinement: &Confinement,
) -> anyhow::Result<RunningAgent> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the agent creates a device, routes and eBPF programs, so it must run as root: try it with sudo"
    );
    let relay = config.relay_identity()?;
    let key = PrivateKey::load(&config.identity.private_key_file)
        .context("this host has no key: create one with `mobile keygen`")?;
    let preferences = Preferences {
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
    let settings = uplinks::UplinkSettings {
        own_device: config.tunnel.device.clone(),
        relay_table: config.routing.relay_table,
        prefer: preferences.prefer.clone(),
    };
    let (links, watch_links) = network.run(uplinks::watch(settings, dialer.addresses())).await?;
    let uplink_reads = Arc::clone(&links.reads);

    let networks = routing::networks::watch(config.tunnel.device.clone(), dialer.addresses());
    let (networks, watch_networks) = network.run(networks).await?;

    let mut undo_log = UndoLog { state_file: write_state_file(state_file, &config), ..UndoLog::default() };
    let kernel = match make_kernel_objects(&config, &relay, &netlink, networks, &mut undo_log).await {
        Ok(kernel) => kernel,
        Err(error) => {
            undo(&config, &netlink, undo_log, state_file).await;
            return Err(error);
        }
    };
    let KernelObjects { cgroup, lock, tun, reconciler, route, mut selector, delivery, processes, helper } =
        kernel;
    links.set_helper(processes.clone());
    // Messages of the eBPF programs help with diagnosis, but nothing depends on them.
    let logs = selector.spawn_logs();
    if let Err(error) = logs {
        tracing::warn!(%error, "cannot read the log of the eBPF programs: their messages are not shown");
    }

    let own_key = key.public();
    let limits = Limits {
        compression: config.tunnel.compression.is_on(),
        fair: config.tunnel.queue.is_fair(),
        ..Limits::default()
    };
    let device = TunIo::new(tun, Arc::clone(&delivery));
    let (tunnel, manage) = Tunnel::start(dialer, preferences, limits, device, links);
    let pushed_config = tunnel.pushed_config.clone();
    let (clean_up, clean_ups) = mpsc::channel(1);
    let (route_bypass, bypasses) = mpsc::channel(1);
    let bypass = tokio::sync::Mutex::new(config.routing.bypass.iter().map(IpNet::trunc).collect());
    let agent = Arc::new(Agent {
        config,
        relay,
        own_key,
        cgroup,
        tunnel,
        route,
        uplink_reads,
        delivery,
        processes,
        selector: Mutex::new(selector),
        attach_lock: AttachLock::default(),
        started: Instant::now(),
        direct_fallback: DirectFallback::default(),
        clean_up,
        bypass,
        route_bypass,
    });
    if let Some(metrics) = &metrics {
        metrics.set_agent(&agent);
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_helper(helper));
    tasks.spawn_on(watch_links, network.handle());
    tasks.spawn_on(watch_networks, network.handle());
    tasks.spawn(manage);
    tasks.spawn_on(reconciler.run(pushed_config, bypasses), network.handle());
    tasks.spawn(follow_assignment(Arc::clone(&agent)));
    tasks.spawn(follow_slice(Arc::clone(&agent)));
    tasks.spawn(on_failure::keep_deadline(Arc::clone(&agent)));
    tasks.spawn(accounts::sweep(Arc::clone(&agent)));
    let for_server = Arc::clone(&agent);
    tasks.spawn(async move {
        control::server::serve(listener, for_server).await;
        anyhow::anyhow!("the control socket has stopped")
    });
    Ok(RunningAgent { agent, tasks, clean_ups, network, cgroup_lock: lock, _metrics: metrics })
}

/// Returns the resolvers and the persistent addresses of an assignment, in the form for the eBPF
/// programs.
fn program_addresses(assignment: Option<&Assignment>) -> (Addresses, Addresses) {
    assignment.map(|it| (Addresses::resolvers(it), Addresses::persistent(it))).unwrap_or_default()
}

/// Updates the maps of the eBPF programs when the relay assigns other resolvers or addresses.
async fn follow_assignment(agent: Arc<Agent>) -> anyhow::Error {
    let mut assignment = agent.route.assignment.clone();
    let mut in_force = None;
    loop {
        let view = program_addresses(assignment.borrow_and_update().as_ref());
        if in_force != Some(view) {
            let (resolvers, persistent) = view;
            tracing::debug!(?resolvers, ?persistent, "updating the addresses in the eBPF programs");
            let mut selector = agent.selector();
            let (asked, sent) = (selector.set_resolvers(resolvers), selector.set_persistent(persistent));
            if let Err(error) = &asked {
                tracing::warn!(
                    %error,
                    "cannot update DNS redirection: still using the previous resolvers, retrying"
                );
            }
            if let Err(error) = &sent {
                tracing::warn!(
                    %error,
                    "cannot update the persistent addresses in the eBPF programs: datagrams of \
                    sockets opened before `mobile attach` keep their previous source, retrying"
                );
            }
            in_force = (asked.is_ok() && sent.is_ok()).then_some(view);
        }
        let changed = if in_force == Some(view) {
            assignment.changed().await
        } else {
            tokio::time::timeout(RETRY_DELAY, assignment.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            // The reconciler's own task ends with the reason, perhaps a moment later on another
            // thread.
            return std::future::pending().await;
        }
    }
}

/// Updates the maps of the eBPF programs when systemd creates or removes the slice of mobile
/// processes.
async fn follow_slice(agent: Arc<Agent>) -> anyhow::Error {
    let slice = agent.cgroup.slice();
    let mut watch = match SliceWatch::new(slice) {
        Ok(watch) => watch,
        Err(error) => {
            let dir = slice.dir().display();
            tracing::warn!(
                %error,
                "cannot watch for the slice {dir}: if it is created later, its processes are not \
                mobile"
            );
            return std::future::pending().await;
        }
    };
    let mut in_force = None;
    loop {
        let id = slice.id();
        if in_force != Some(id) {
            tracing::debug!(
                slice = %slice.dir().display(), id,
                "updating the slice of mobile processes"
            );
            match agent.selector().set_slice(id) {
                Ok(()) => in_force = Some(id),
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "cannot update the slice of mobile processes: processes of {} are not \
                        mobile yet, retrying",
                        slice.dir().display()
                    );
                }
            }
        }
        let changed = if in_force == Some(id) {
            watch.changed().await
        } else {
            tokio::time::timeout(RETRY_DELAY, watch.changed()).await.unwrap_or(Ok(()))
        };
        if let Err(error) = changed {
            return anyhow::Error::new(error).context("no longer watching for the slice of mobile processes");
        }
    }
}

fn listen(config: &Config) -> anyhow::Result<Listener> {
    let socket = &config.control.socket;
    if let Some(dir) = socket.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).with_context(|| {
            format!("cannot create the directory {} for the control socket", dir.display())
        })?;
    }
    Listener::bind(socket, SOCKET_MODE, config.control.group.as_deref())
        .context("cannot open the control socket")
}

async fn make_kernel_objects(
    config: &Config,
    relay: &RelayIdentity,
    netlink: &Netlink,
    networks: watch::Receiver<HostNetworks>,
    undo_log: &mut UndoLog,
) -> anyhow::Result<KernelObjects> {
    let path = config.cgroup.path.as_deref();
    undo_log.cgroup = MobileCgroup::existing(path)?.is_none();
    let cgroup = MobileCgroup::ensure(path)?.with_slice(config.cgroup.slice.as_deref());
    let lock = cgroup_lock::acquire(&cgroup)?;
    leave_cgroup(&cgroup)?;

    let device = &config.tunnel.device;
    let device_exists = netlink.link_index(device).await.is_ok();
    let tun = Tun::open(device, true, config.tunnel.offload)?;
    undo_log.device = !device_exists;

    undo_log.route = !netlink.rules().await?.iter().any(|rule| rule.table == config.routing.table);
    let delivery = Arc::new(DeliveryFilter::default());
    let cache = AssignmentCache::new(&config.state.dir, &relay.public_key);
    let (reconciler, route) =
        RouteReconciler::start(config, netlink.clone(), cache, Arc::clone(&delivery), networks).await?;

    let (resolvers, persistent) = program_addresses(route.assignment.borrow().as_ref());
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
        tracing::info!("adopted the kernel objects of an earlier agent: its mobile processes continue");
    }
    let setup = Setup {
        cgroup: config.cgroup.path.clone(),
        slice: config.cgroup.slice.clone(),
        mark: config.routing.mark,
        mark_mask: config.routing.mark_mask,
        mark_key: selector.key(),
    };
    // Start the helper last. It keeps rights that this process is about to give up.
    let (processes, helper) = ProcessHelper::start(&setup, selector.account_maps())?;
    Ok(KernelObjects { cgroup, lock, tun, reconciler, route, selector, delivery, processes, helper })
}

/// Returns an error when the process helper ends. The agent then stops, because no process can
/// become mobile without the helper.
async fn follow_helper(mut helper: Child) -> anyhow::Error {
    match helper.wait().await {
        Ok(status) => anyhow::anyhow!("the process helper of the agent ended ({status})"),
        Err(error) => anyhow::Error::new(error).context("cannot wait for the process helper of the agent"),
    }
}

/// Moves the agent out of the mobile cgroup if it was started from a mobile shell. Otherwise the
/// packets of the tunnel would be sent into the tunnel.
fn leave_cgroup(cgroup: &MobileCgroup) -> anyhow::Result<()> {
    let own = i32::try_from(std::process::id())
        .context("the process ID of the agent exceeds the range of pid_t")?;
    if cgroup.is_mobile(own)? {
        cgroup.detach(own).context("cannot move the agent out of the mobile cgroup")?;
    }
    Ok(())
}

/// Records in the state file, for `mobile cleanup`, the names of the kernel objects about to be
/// made. Returns whether this start created the file.
fn write_state_file(state_file: &StateFile, config: &Config) -> bool {
    let first = state_file.read::<Footprint>().is_ok_and(|recorded| recorded.is_empty());
    let added = state_file.add(Footprint::of(config)).unwrap_or_else(|error| {
        tracing::warn!(
            %error,
            "cannot record the kernel objects: `mobile cleanup` will need this configuration \
            unchanged"
        );
        false
    });
    first && added
}

async fn undo(config: &Config, netlink: &Netlink, undo_log: UndoLog, state_file: &StateFile) {
    let mut errors = Vec::new();
    if undo_log.route {
        errors.extend(routing::remove(config, netlink, false).await);
    }
    if undo_log.device
        && let Err(error) = tun::remove(&config.tunnel.device)
    {
        errors.push(error.into());
    }
    if undo_log.cgroup
        && let Ok(Some(cgroup)) = MobileCgroup::existing(config.cgroup.path.as_deref())
        && let Err(error) = cgroup.remove()
    {
        errors.push(error.into());
    }
    if undo_log.state_file
        && errors.is_empty()
        && let Err(error) = state_file.remove()
    {
        errors.push(error.into());
    }
    for error in errors {
        tracing::warn!(
            error = mobile_host::error_chain(&error),
            "the failed start left a kernel object behind"
        );
    }
}
