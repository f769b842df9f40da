//! Makes the kernel objects of the agent, and removes them again if the start fails.
//!
//! The order never lets marked packets leave directly: the routing table, with `unreachable` routes
//! only, before the eBPF programs that mark packets for this table.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use mobile_host::state_file::StateFile;
use mobile_netlink::Netlink;
use mobile_transport::tun::{self, DeviceLifetime, Tun};
use tokio::process::Child;
use tokio::sync::watch;

use crate::agent::program_addresses;
use crate::config::{Config, RelayIdentity};
use crate::footprint::Footprint;
use crate::processes::{ProcessHelper, Setup};
use crate::routing::assignment::AssignmentCache;
use crate::routing::claim::HostNetworks;
use crate::routing::delivery_filter::DeliveryFilter;
use crate::routing::{self, HostDevice, RouteReconciler, RouteStatus};
use crate::selection::bpf::{Marking, Selector};
use crate::selection::cgroup::MobileCgroup;
use crate::selection::cgroup_lock::{self, CgroupLock};

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
pub(super) struct KernelObjects {
    /// The mobile cgroup.
    pub(super) cgroup: MobileCgroup,
    /// The lock that keeps other agents out of the mobile cgroup.
    pub(super) lock: CgroupLock,
    /// The host virtual device.
    pub(super) tun: Tun,
    /// The reconciler of the MOBILE route, which is to be run.
    pub(super) reconciler: RouteReconciler,
    /// The state of the MOBILE route.
    pub(super) route: RouteStatus,
    /// The eBPF programs in force.
    pub(super) selector: Selector,
    /// The filter for packets from the relay.
    pub(super) delivery: Arc<DeliveryFilter>,
    /// The handle of the process helper.
    pub(super) processes: ProcessHelper,
    /// The process of the helper.
    pub(super) helper: Child,
}

/// Makes the kernel objects for the configuration, which was read from this path or the default
/// one, and records them in the state file. On an error, removes every object that this start made.
pub(super) async fn make(
    (config, path): (&Config, Option<&Path>),
    relay: &RelayIdentity,
    netlink: &Netlink,
    networks: watch::Receiver<Arc<HostNetworks>>,
    state_file: &StateFile,
) -> anyhow::Result<KernelObjects> {
    let mut undo_log = UndoLog { state_file: write_state_file(state_file, config), ..UndoLog::default() };
    let made = try_make((config, path), relay, netlink, networks, &mut undo_log).await;
    if made.is_err() {
        undo(config, netlink, undo_log, state_file).await;
    }
    made
}

async fn try_make(
    (config, file): (&Config, Option<&Path>),
    relay: &RelayIdentity,
    netlink: &Netlink,
    networks: watch::Receiver<Arc<HostNetworks>>,
    undo_log: &mut UndoLog,
) -> anyhow::Result<KernelObjects> {
    let path = config.cgroup.path.as_deref();
    undo_log.cgroup = MobileCgroup::existing(path)?.is_none();
    let cgroup = MobileCgroup::ensure(path)?.with_slice(config.cgroup.slice.as_deref());
    let lock = cgroup_lock::acquire(&cgroup)?;
    leave_cgroup(&cgroup)?;

    let device = &config.tunnel.device;
    let device_exists = netlink.link_index(device).await.is_ok();
    let tun = Tun::open(device, DeviceLifetime::Persistent, config.tunnel.offload)?;
    undo_log.device = !device_exists;

    undo_log.route = !netlink.rules().await?.iter().any(|rule| rule.table == config.routing.table);
    let delivery = Arc::new(DeliveryFilter::default());
    let cache = AssignmentCache::new(&config.state.dir, &relay.public_key);
    let (reconciler, route) =
        RouteReconciler::start(config, netlink.clone(), cache, Arc::clone(&delivery), networks).await?;

    let (resolvers, persistent) = program_addresses(route.assignment.borrow().as_deref());
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
        config: file.map(Path::to_owned),
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
        let tables = [config.routing.table, config.routing.relay_table];
        errors.extend(routing::remove(config, netlink, HostDevice::Keep, &tables).await);
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
