//! The eBPF programs in the kernel: loads, attaches and pins them, and replaces those of an earlier
//! agent.
//!
//! Every start loads new programs with a configuration of their own, attaches them beside the old
//! ones and then removes the old ones. Both sets do the same, so a mobile process is marked at
//! every moment, and programs, configuration and layout may change between versions. The new
//! generation takes over only some maps: the counters, the DNS queries that are not answered yet,
//! which MPTCP connections are mobile, the traffic accounts, and the key by which the programs
//! recognise the agent.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use aya::Ebpf;
use ipnet::IpNet;
use mobile_ebpf_common::{CountedEvent, MarkVerdict, ProgramConfig, map, program};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tokio::task::JoinHandle;

pub(crate) use super::bpf_error::BpfError;
use super::{
    account::AccountMaps,
    addresses::{AddressMap, Addresses},
    attach_scope::PacketPrograms,
    bpf_error::Result,
    bpf_log,
    bypass::BypassMap,
    cgroup::MobileCgroup,
    config_map::{ConfigMap, key_of},
    counters::Counters,
    deadline::DeadlineMap,
    features, object,
    pins::{self, Generation},
    programs::{attach, load_program, open},
};
use crate::config::OnFailure;

/// The map in which aya-log keeps its messages.
const LOGS: &str = "AYA_LOGS";

/// The settings of the eBPF programs: how they mark sockets of mobile processes, and how they treat
/// marked sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marking<'a> {
    /// The firewall mark to set.
    pub(crate) mark: u32,
    /// The bits of the mark that the agent uses.
    pub(crate) mask: u32,
    /// Whether the programs log every change of a mark, at level `debug`.
    pub(crate) log: bool,
    /// The interface index of the host virtual device, the only one that marked packets may leave
    /// by.
    pub(crate) device: u32,
    /// The networks that mobile processes reach without the tunnel.
    pub(crate) bypass: &'a [IpNet],
    /// The relay's resolvers, which get the DNS queries of mobile processes.
    pub(crate) resolvers: Addresses,
    /// The persistent addresses in force.
    pub(crate) persistent: Addresses,
    /// Whether new connections wait or go direct while there is no session.
    pub(crate) on_failure: OnFailure,
}

/// The eBPF programs in force, which stay in force after this value is dropped or the agent is
/// killed.
pub(crate) struct Selector {
    ebpf: Ebpf,
    maps: Maps,
    counters: Counters,
    packet_programs: PacketPrograms,
    account_maps: AccountMaps,
    adopted: bool,
}

/// The eBPF maps that the agent writes to.
struct Maps {
    bypass: BypassMap,
    resolvers: AddressMap,
    persistent: AddressMap,
    deadline: DeadlineMap,
    config: ConfigMap,
}

impl Selector {
    /// Loads and attaches the eBPF programs for the calling thread's network namespace, in place of
    /// those that an earlier agent left in `pin_dir`. An error leaves the earlier ones in force.
    pub(crate) fn load_or_adopt(pin_dir: &Path, cgroup: &MobileCgroup, marking: Marking<'_>) -> Result<Self> {
        raise_memlock();
        let config = config_of(cgroup, marking)?;
        pins::ensure_dir(pin_dir)?;
        pins::assert_ours(pin_dir)?;
        let recognises_subflows = features::recognises_mptcp_subflows()?;
        let result =
            Self::load(pin_dir, cgroup.cgroup2().mount(), cgroup, config, marking, recognises_subflows);
        if result.is_err() && pins::generations(pin_dir).is_ok_and(|left| left.is_empty()) {
            pins::remove(pin_dir)?;
        }
        result
    }

    /// Returns whether the eBPF programs of an earlier agent were replaced.
    pub(crate) fn adopted(&self) -> bool {
        self.adopted
    }

    /// Returns how many times the eBPF programs made each decision about a socket's mark since they
    /// were first loaded.
    pub(crate) fn verdicts(&self) -> Result<Vec<(MarkVerdict, u64)>> {
        self.counters.verdicts()
    }

    /// Returns how many times each event that the eBPF programs count occurred since they were
    /// first loaded.
    pub(crate) fn events(&self) -> Result<Vec<(CountedEvent, u64)>> {
        self.counters.events()
    }

    /// Returns the eBPF maps of the traffic accounts.
    pub(crate) fn account_maps(&self) -> &AccountMaps {
        &self.account_maps
    }

    /// Opens the traffic accounts in this process.
    #[cfg(test)]
    pub(super) fn accounts(&self) -> super::account::Accounts {
        let descriptors = self.account_maps.descriptors().map(|map| map.try_clone_to_owned().unwrap());
        super::account::Accounts::from_descriptors(descriptors).unwrap()
    }

    /// Returns the key by which the eBPF programs recognise the agent when it sets a mark.
    pub(crate) fn key(&self) -> u64 {
        self.maps.config.key()
    }

    /// Sets the resolvers that DNS queries of mobile processes are redirected to.
    pub(crate) fn set_resolvers(&mut self, resolvers: Addresses) -> Result<()> {
        self.maps.resolvers.set(resolvers)
    }

    /// Sets the persistent addresses in the eBPF programs' map.
    pub(crate) fn set_persistent(&mut self, persistent: Addresses) -> Result<()> {
        self.maps.persistent.set(persistent)
    }

    /// Extends the deadline after which new connections of mobile processes use the ordinary route.
    pub(crate) fn extend_deadline(&mut self, on_failure: OnFailure) -> Result<()> {
        self.maps.deadline.extend(on_failure)
    }

    /// Makes the processes of the cgroup of systemd's slice mobile too; `id` is the cgroup's kernel
    /// ID, and 0 means no cgroup.
    pub(crate) fn set_slice(&mut self, id: u64) -> Result<()> {
        if id != 0 {
            self.attach_to_root()?;
        }
        self.maps.config.set_slice_id(id)
    }

    /// Attaches the eBPF programs for packets to the root of the cgroup hierarchy, so that they see
    /// the sockets of all processes. Call this before a process that may hold sockets becomes
    /// mobile.
    pub(crate) fn attach_to_root(&mut self) -> Result<()> {
        self.packet_programs.attach_to_root(&mut self.ebpf)
    }

    /// Detaches the eBPF programs for packets from the root cgroup, once no process is mobile.
    pub(crate) fn detach_from_root(&mut self) -> Result<()> {
        // A process may run in a slice that has just appeared.
        if self.maps.config.slice_id() != 0 {
            return Ok(());
        }
        self.packet_programs.detach_from_root()
    }

    /// Lets mobile processes reach a network without the tunnel, if a route leads there.
    pub(crate) fn add_bypass(&mut self, net: IpNet) -> Result<()> {
        self.maps.bypass.add(net)
    }

    /// Returns how many bypassed networks were refused since this agent started, because their eBPF
    /// map was full.
    pub(crate) fn bypass_full(&self) -> u64 {
        self.maps.bypass.refused()
    }

    /// Stops bypassing a network: mobile processes reach it through the tunnel again.
    pub(crate) fn remove_bypass(&mut self, net: IpNet) -> Result<()> {
        self.maps.bypass.remove(net)
    }

    /// Forwards the log messages of the eBPF programs to `tracing`, until the task is aborted.
    pub(crate) fn spawn_logs(&mut self) -> Result<JoinHandle<()>> {
        bpf_log::spawn(&mut self.ebpf)
    }

    fn load(
        pin_dir: &Path,
        root: &Path,
        cgroup: &MobileCgroup,
        config: ProgramConfig,
        marking: Marking<'_>,
        recognises_subflows: bool,
    ) -> Result<Self> {
        let older = pins::generations(pin_dir)?;
        let config = ProgramConfig { key: key_of(&older).unwrap_or_else(rand::random), ..config };
        let generation = Generation::after(pin_dir, &older)?;
        let mut ebpf = object::load(&older, &generation, recognises_subflows)?;
        let maps = Maps::fill(&mut ebpf, &generation, config, marking)?;
        let root = open(root)?;
        attach_to_socket_calls(&mut ebpf, &root, &generation)?;
        let mut packet_programs = PacketPrograms::attach_to_mobile(&mut ebpf, root, cgroup, &generation)?;
        // Processes that an earlier agent made mobile may hold sockets from before.
        let any_mobile = cgroup.pids().map_or(true, |pids| !pids.is_empty());
        if config.slice_id != 0 || (!older.is_empty() && any_mobile) {
            packet_programs.attach_to_root(&mut ebpf)?;
        }
        let counters = Counters::take(&mut ebpf)?;
        let account_maps = AccountMaps::take(&mut ebpf)?;
        generation.keep();
        remove_older(&older);
        let adopted = !older.is_empty();
        Ok(Self { ebpf, maps, counters, packet_programs, account_maps, adopted })
    }
}

impl Maps {
    /// Takes the maps out of the loaded object, pins those that the next agent or another process
    /// reads, and fills all before a program is attached.
    fn fill(
        ebpf: &mut Ebpf,
        generation: &Generation,
        config: ProgramConfig,
        marking: Marking<'_>,
    ) -> Result<Self> {
        let mut bypass = BypassMap::take(ebpf)?;
        for net in marking.bypass {
            bypass.add(*net)?;
        }
        let mut resolvers = AddressMap::take(ebpf, map::RESOLVERS)?;
        resolvers.set(marking.resolvers)?;
        let mut persistent = AddressMap::take(ebpf, map::PERSISTENT)?;
        persistent.set(marking.persistent)?;
        for name in [map::CONFIG, map::DEADLINE, LOGS] {
            let path = generation.path("map", name);
            let map = ebpf.map(name).ok_or(BpfError::Missing(name))?;
            map.pin(&path).map_err(|source| BpfError::Pin { path, source })?;
        }
        let mut deadline = DeadlineMap::take(ebpf)?;
        deadline.extend(marking.on_failure)?;
        let config = ConfigMap::take(ebpf, config)?;
        Ok(Self { bypass, resolvers, persistent, deadline, config })
    }
}

/// Loads the eBPF programs for socket calls and attaches them to the root of the cgroup hierarchy.
fn attach_to_socket_calls(ebpf: &mut Ebpf, root: &File, generation: &Generation) -> Result<()> {
    for name in program::SOCKET_CALLS {
        load_program(ebpf, name, generation)?;
        attach(ebpf, name, root, generation.path("link", name))?;
    }
    if features::setsockopt_has_netns_cookie()? {
        load_program(ebpf, program::SETSOCKOPT, generation)?;
        attach(ebpf, program::SETSOCKOPT, root, generation.path("link", program::SETSOCKOPT))?;
    } else {
        tracing::info!(
            "this kernel lets processes with CAP_NET_RAW set any mark (SO_MARK), including the agent's"
        );
    }
    Ok(())
}

/// Removes the eBPF programs of earlier agents. An error is not fatal: two sets in force have the
/// same effect as one, and the next start removes the old one.
fn remove_older(older: &[PathBuf]) {
    for dir in older {
        if let Err(error) = pins::remove(dir) {
            tracing::warn!(%error, "cannot remove the eBPF programs of an earlier agent; they stay in force");
        }
    }
}

/// Returns the configuration of the eBPF programs, with 0 for the key by which they recognise the
/// agent.
fn config_of(cgroup: &MobileCgroup, marking: Marking<'_>) -> Result<ProgramConfig> {
    Ok(ProgramConfig {
        cgroup_id: cgroup.id(),
        slice_id: cgroup.slice().id(),
        key: 0,
        netns_cookie: mobile_host::netns::cookie().map_err(BpfError::Namespace)?,
        cgroup_level: cgroup.level(),
        mark: marking.mark,
        mark_mask: marking.mask,
        log: u32::from(marking.log),
        device: marking.device,
        slice_level: cgroup.slice().level(),
    })
}

/// Returns an error if another user could put eBPF programs into `pin_dir`. A directory that does
/// not exist is fine: the agent creates it.
pub(crate) fn assert_pins_are_ours(pin_dir: &Path) -> Result<()> {
    if pin_dir.exists() { pins::assert_ours(pin_dir) } else { Ok(()) }
}

/// Removes `pin_dir` and with it the eBPF programs, which the kernel detaches within milliseconds.
/// Returns whether the directory existed.
pub(crate) fn remove(pin_dir: &Path) -> Result<bool> {
    pins::remove(pin_dir)
}

/// Raises RLIMIT_MEMLOCK, which Linux before 5.11 charges maps to. Ignores an error: later kernels
/// do not need it, and a service may lack the right (CAP_SYS_RESOURCE).
fn raise_memlock() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "cannot raise RLIMIT_MEMLOCK");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::sandbox::{Probe, Sandbox};

    #[test]
    fn a_failed_start_removes_what_it_created_and_keeps_the_earlier_programs() {
        Sandbox::with(|sandbox| {
            let config = ProgramConfig::default();
            pins::ensure_dir(&sandbox.pin_dir).unwrap();
            // The programs load, but this is not a cgroup to attach them to.
            let root = Path::new("/proc");
            let load =
                || Selector::load(&sandbox.pin_dir, root, &sandbox.cgroup, config, sandbox.marking, true);
            let failed = load();
            assert!(matches!(failed.err().unwrap(), BpfError::Program { .. }));
            assert!(pins::generations(&sandbox.pin_dir).unwrap().is_empty());

            drop(sandbox.load());
            let before = pins::generations(&sandbox.pin_dir).unwrap();
            assert!(load().is_err());
            assert_eq!(pins::generations(&sandbox.pin_dir).unwrap(), before);
            assert_eq!(sandbox.mobile().open("tcp4"), sandbox.marking.mark);
        });
    }

    #[test]
    fn a_mobile_process_gets_no_mptcp_socket_if_the_kernel_cannot_recognise_its_subflows() {
        Sandbox::with(|sandbox| {
            let config = config_of(&sandbox.cgroup, sandbox.marking).unwrap();
            pins::ensure_dir(&sandbox.pin_dir).unwrap();
            let root = sandbox.cgroup.cgroup2().mount();
            for recognises_subflows in [true, false] {
                let _selector = Selector::load(
                    &sandbox.pin_dir,
                    root,
                    &sandbox.cgroup,
                    config,
                    sandbox.marking,
                    recognises_subflows,
                )
                .unwrap();
                let mobile = sandbox.mobile().try_open("mptcp4");
                assert_eq!(mobile, if recognises_subflows { "opened" } else { "EPERM" });
                assert_eq!(sandbox.mobile().open("tcp4"), sandbox.marking.mark);
                assert_eq!(Probe::start().try_open("mptcp4"), "opened");
            }
        });
    }
}
