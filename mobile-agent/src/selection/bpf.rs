//! The programs in the kernel: loaded, attached, pinned, and replaced by those of the next agent.
//!
//! Every start loads new programs with a configuration of their own, attaches them beside those of
//! the last agent and then removes the old ones: both do the same, so there is no moment in which a
//! mobile process goes unmarked, and it does not matter whether the programs, the configuration or
//! its layout have changed. Only the counters are handed on, what was asked of resolvers and is not
//! answered yet, which MPTCP connections are mobile, the accounts of mobile processes, and the key
//! by which the programs know the agent.

use std::{
    fs::File,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    programs::{
        CgroupAttachMode, CgroupSkbAttachType, Program,
        links::{FdLink, LinkError},
    },
};
use ipnet::IpNet;
use mobile_ebpf_common::{CountedEvent, MarkVerdict, ProgramConfig, map, program};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tokio::task::JoinHandle;

pub(crate) use super::bpf_error::BpfError;
use super::{
    account::AccountMaps,
    addresses::{AddressMap, Addresses},
    bpf_error::Result,
    bpf_log,
    bypass::BypassMap,
    cgroup::MobileCgroup,
    deadline::DeadlineMap,
    extent::Extent,
    features, link,
    pins::{self, Generation},
};
use crate::config::OnFailure;

/// The object built from mobile-ebpf.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mobile-ebpf"));

/// The hook of [`program::SETSOCKOPT`] (`enum bpf_attach_type`).
const BPF_CGROUP_SETSOCKOPT: u32 = 22;

/// The constant of the programs of that name.
const TELLS_SUBFLOWS: &str = "TELLS_SUBFLOWS";

/// The map aya-log keeps its messages in.
const LOGS: &str = "AYA_LOGS";

/// What a new generation takes over from the last.
const HANDED_ON: [&str; 7] = [
    map::VERDICTS,
    map::EVENTS,
    map::QUERIES,
    map::MPTCP_CONNECTIONS,
    map::ANY_MPTCP,
    map::OWNERS,
    map::ACCOUNTS,
];

/// How sockets of mobile processes are marked, and what follows from the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marking<'a> {
    /// The bits to set.
    pub(crate) mark: u32,
    /// The bits of the mark that are ours.
    pub(crate) mask: u32,
    /// Whether the programs send a message for every change, at level `debug`.
    pub(crate) log: bool,
    /// The interface index of the host virtual device: what is marked leaves by no other.
    pub(crate) device: u32,
    /// But these destinations are reached directly.
    pub(crate) bypass: &'a [IpNet],
    /// Where queries go.
    pub(crate) resolvers: Addresses,
    /// From where.
    pub(crate) persistent: Addresses,
    /// Whether mobile processes wait for a session, or only for a while.
    pub(crate) on_failure: OnFailure,
}

/// The programs in force. Dropping it, or being killed, leaves them in force.
pub(crate) struct Selector {
    ebpf: Ebpf,
    verdicts: PerCpuArray<MapData, u64>,
    events: PerCpuArray<MapData, u64>,
    resolvers: AddressMap,
    persistent: AddressMap,
    bypass: BypassMap,
    bypass_full: u64,
    deadline: DeadlineMap,
    config: ProgramConfig,
    config_map: Array<MapData, ProgramConfig>,
    extent: Extent,
    account_maps: AccountMaps,
    adopted: bool,
}

impl Selector {
    /// Puts the programs in force for the network namespace of the calling thread, in place of those an earlier agent
    /// left in `pin_dir`. A failure leaves those as they were.
    pub(crate) fn load_or_adopt(pin_dir: &Path, cgroup: &MobileCgroup, marking: Marking<'_>) -> Result<Self> {
        raise_memlock();
        let config = config_of(cgroup, marking)?;
        pins::ensure_dir(pin_dir)?;
        pins::assert_ours(pin_dir)?;
        let tells_subflows = features::tells_subflows()?;
        let result = Self::load(pin_dir, cgroup.cgroup2().mount(), cgroup, config, marking, tells_subflows);
        if result.is_err() && pins::generations(pin_dir).is_ok_and(|left| left.is_empty()) {
            pins::remove(pin_dir)?;
        }
        result
    }

    /// Whether an earlier agent's programs were there.
    pub(crate) fn adopted(&self) -> bool {
        self.adopted
    }

    /// How often the programs decided what, since they were first loaded.
    pub(crate) fn verdicts(&self) -> Result<Vec<(MarkVerdict, u64)>> {
        let sum = |verdict: MarkVerdict| Ok((verdict, sum(&self.verdicts, verdict.index(), map::VERDICTS)?));
        MarkVerdict::COUNTED.into_iter().map(sum).collect()
    }

    /// How often what happened to queries and packets, since the programs were first loaded.
    pub(crate) fn events(&self) -> Result<Vec<(CountedEvent, u64)>> {
        let sum = |event: CountedEvent| Ok((event, sum(&self.events, event.index(), map::EVENTS)?));
        CountedEvent::ALL.into_iter().map(sum).collect()
    }

    /// Returns the maps of the accounts of mobile processes.
    pub(crate) fn account_maps(&self) -> &AccountMaps {
        &self.account_maps
    }

    /// Opens the accounts in this process itself.
    #[cfg(test)]
    pub(super) fn accounts(&self) -> super::account::Accounts {
        let descriptors = self.account_maps.descriptors().map(|map| map.try_clone_to_owned().unwrap());
        super::account::Accounts::from_descriptors(descriptors).unwrap()
    }

    /// Returns the secret by which the programs recognise the agent when it sets a mark.
    pub(crate) fn key(&self) -> u64 {
        self.config.key
    }

    /// From now on queries go there.
    pub(crate) fn set_resolvers(&mut self, resolvers: Addresses) -> Result<()> {
        self.resolvers.set(resolvers)
    }

    /// From now on these are the persistent addresses.
    pub(crate) fn set_persistent(&mut self, persistent: Addresses) -> Result<()> {
        self.persistent.set(persistent)
    }

    /// There is a session: mobile processes go by the tunnel for a while more.
    pub(crate) fn put_off_deadline(&mut self, on_failure: OnFailure) -> Result<()> {
        self.deadline.put_off(on_failure)
    }

    /// From now on the processes of this cgroup are mobile too; 0 is none.
    pub(crate) fn set_slice(&mut self, id: u64) -> Result<()> {
        if id != 0 {
            self.widen()?;
        }
        self.config.slice_id = id;
        self.config_map.set(0, &self.config, 0).map_err(map_error(map::CONFIG))
    }

    /// From now on everybody's sockets are watched, not only those that mobile processes made: before a process becomes mobile
    /// that may have others.
    pub(crate) fn widen(&mut self) -> Result<()> {
        self.extent.widen(&mut self.ebpf)
    }

    /// Nobody is mobile: nobody's sockets need watching, until the next who is made some.
    pub(crate) fn narrow(&mut self) -> Result<()> {
        // Somebody may run in the slice that came a moment ago.
        if self.config.slice_id != 0 {
            return Ok(());
        }
        self.extent.narrow()
    }

    /// From now on mobile processes may reach a network directly, if a route leads there.
    pub(crate) fn add_bypass(&mut self, net: IpNet) -> Result<()> {
        let added = self.bypass.add(net);
        if matches!(added, Err(BpfError::Full { .. })) {
            self.bypass_full += 1;
        }
        added
    }

    /// How often a network was refused because there was no place for it, since this agent started.
    pub(crate) fn bypass_full(&self) -> u64 {
        self.bypass_full
    }

    /// From now on they may not.
    pub(crate) fn remove_bypass(&mut self, net: IpNet) -> Result<()> {
        self.bypass.remove(net)
    }

    /// Forwards the messages of the programs to `tracing`, until the task is aborted.
    pub(crate) fn spawn_logs(&mut self) -> Result<JoinHandle<()>> {
        bpf_log::spawn(&mut self.ebpf)
    }

    fn load(
        pin_dir: &Path,
        root: &Path,
        cgroup: &MobileCgroup,
        config: ProgramConfig,
        marking: Marking<'_>,
        tells_subflows: bool,
    ) -> Result<Self> {
        let older = pins::generations(pin_dir)?;
        let config = ProgramConfig { key: key_of(&older).unwrap_or_else(rand::random), ..config };
        let generation = Generation::after(pin_dir, &older)?;
        for name in HANDED_ON {
            hand_on(name, &older, &generation);
        }
        let mut ebpf = load_object(&generation, tells_subflows)?;
        let mut bypass = BypassMap::take(&mut ebpf)?;
        for net in marking.bypass {
            bypass.add(*net)?;
        }
        let mut resolvers = AddressMap::take(&mut ebpf, map::RESOLVERS)?;
        resolvers.set(marking.resolvers)?;
        let mut persistent = AddressMap::take(&mut ebpf, map::PERSISTENT)?;
        persistent.set(marking.persistent)?;
        for name in [map::CONFIG, map::DEADLINE, LOGS] {
            let path = generation.path("map", name);
            let map = ebpf.map(name).ok_or(BpfError::Missing(name))?;
            map.pin(&path).map_err(|source| BpfError::Pin { path, source })?;
        }
        let mut deadline = DeadlineMap::take(&mut ebpf)?;
        deadline.put_off(marking.on_failure)?;
        let config_map = ebpf.take_map(map::CONFIG).ok_or(BpfError::Missing(map::CONFIG))?;
        let mut config_map = Array::try_from(config_map).map_err(map_error(map::CONFIG))?;
        config_map.set(0, &config, 0).map_err(map_error(map::CONFIG))?;
        let root = open(root)?;
        for name in program::SOCKET_CALLS {
            load_program(&mut ebpf, name, &generation)?;
            attach(&mut ebpf, name, &root, generation.path("link", name))?;
        }
        if features::tells_namespaces_of_options()? {
            load_program(&mut ebpf, program::SETSOCKOPT, &generation)?;
            attach(&mut ebpf, program::SETSOCKOPT, &root, generation.path("link", program::SETSOCKOPT))?;
        } else {
            tracing::info!("processes with CAP_NET_RAW may set any mark (SO_MARK) on this kernel, also ours");
        }
        let mut extent = Extent::put_in_force(&mut ebpf, root, cgroup, &generation)?;
        // Those who are mobile already, since an earlier agent, may have been attached with sockets of theirs.
        let anybody = cgroup.pids().map_or(true, |pids| !pids.is_empty());
        if config.slice_id != 0 || (!older.is_empty() && anybody) {
            extent.widen(&mut ebpf)?;
        }
        let verdicts = counters(&mut ebpf, map::VERDICTS)?;
        let events = counters(&mut ebpf, map::EVENTS)?;
        let account_maps = AccountMaps::take(&mut ebpf)?;
        generation.keep();
        for dir in &older {
            // Not fatal: two sets in force do what one does, and the next start removes it.
            if let Err(error) = pins::remove(dir) {
                tracing::warn!("programs of an earlier agent stay: {error}");
            }
        }
        let adopted = !older.is_empty();
        let bypass_full = 0;
        Ok(Self {
            ebpf,
            verdicts,
            events,
            resolvers,
            persistent,
            bypass,
            bypass_full,
            deadline,
            config,
            config_map,
            extent,
            account_maps,
            adopted,
        })
    }
}

/// Returns the programs' configuration, with a key of 0.
fn config_of(cgroup: &MobileCgroup, marking: Marking<'_>) -> Result<ProgramConfig> {
    Ok(ProgramConfig {
        cgroup_id: cgroup.id(),
        slice_id: cgroup.slice().id(),
        key: 0,
        netns_cookie: mobile_io::netns::cookie().map_err(BpfError::Namespace)?,
        cgroup_level: cgroup.level(),
        mark: marking.mark,
        mark_mask: marking.mask,
        log: u32::from(marking.log),
        device: marking.device,
        slice_level: cgroup.slice().level(),
    })
}

/// Refuses a `pin_dir` in which another user could put programs of its own. The agent makes a
/// directory that does not exist.
pub(crate) fn assert_pins_are_ours(pin_dir: &Path) -> Result<()> {
    if pin_dir.exists() { pins::assert_ours(pin_dir) } else { Ok(()) }
}

/// For cleaning up: removes `pin_dir`, and with it the programs: the kernel detaches them within milliseconds. Says
/// whether there was anything.
pub(crate) fn remove(pin_dir: &Path) -> Result<bool> {
    pins::remove(pin_dir)
}

/// Pins a map of the last generation in the new one, where the loader finds and uses it.
fn hand_on(name: &str, older: &[PathBuf], generation: &Generation) {
    let to = generation.path("map", name);
    // An earlier version may not have had it.
    for from in older.iter().rev().map(|dir| pins::pin(dir, "map", name)).filter(|from| from.exists()) {
        match MapData::from_pin(&from)
            .map_err(|e| e.to_string())
            .and_then(|m| m.pin(&to).map_err(|e| e.to_string()))
        {
            Ok(()) => return,
            Err(error) => tracing::warn!("cannot go on using {}: {error}", from.display()),
        }
    }
}

/// Returns the key of the last generation, whose programs are still in force when the next ones are
/// attached; `None` after a version that had no key.
fn key_of(older: &[PathBuf]) -> Option<u64> {
    let config = MapData::from_pin(pins::pin(older.last()?, "map", map::CONFIG)).ok()?;
    let config = Array::<_, ProgramConfig>::try_from(Map::Array(config)).ok()?;
    Some(config.get(&0, 0).ok()?.key)
}

fn load_object(generation: &Generation, tells_subflows: bool) -> Result<Ebpf> {
    let pins = HANDED_ON.map(|name| (name, generation.path("map", name)));
    let subflows = u8::from(tells_subflows);
    let load = || {
        let mut loader = EbpfLoader::new();
        loader.override_global(TELLS_SUBFLOWS, &subflows, true);
        for (name, path) in &pins {
            loader.map_pin_path(name, path.as_path());
        }
        loader.load(OBJECT)
    };
    // Each of them may be of another shape.
    for _ in HANDED_ON {
        match load() {
            Err(EbpfError::MapError(MapError::IncompatiblePinnedMap { name, property, .. })) => {
                tracing::warn!("{name} starts again: that of the earlier agent has another {property}");
                let path = generation.path("map", &name);
                std::fs::remove_file(&path).map_err(|source| BpfError::Io {
                    action: "remove",
                    path,
                    source,
                })?;
            }
            result => return Ok(result?),
        }
    }
    Ok(load()?)
}

/// Loads and pins a program.
pub(super) fn load_program(ebpf: &mut Ebpf, name: &'static str, generation: &Generation) -> Result<()> {
    let program = ebpf.program_mut(name).ok_or(BpfError::Missing(name))?;
    match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        _ => return Err(BpfError::Missing(name)),
    }
    .map_err(|source| BpfError::Program { name, source })?;
    let path = generation.path("program", name);
    program.pin(&path).map_err(|source| BpfError::Pin { path, source })
}

pub(super) fn open(dir: &Path) -> Result<File> {
    File::open(dir).map_err(|source| BpfError::Io { action: "open", path: dir.into(), source })
}

fn counters(ebpf: &mut Ebpf, name: &'static str) -> Result<PerCpuArray<MapData, u64>> {
    let map = ebpf.take_map(name).ok_or(BpfError::Missing(name))?;
    PerCpuArray::try_from(map).map_err(map_error(name))
}

fn sum(counters: &PerCpuArray<MapData, u64>, index: u32, name: &'static str) -> Result<u64> {
    Ok(counters.get(&index, 0).map_err(map_error(name))?.iter().sum())
}

/// Attaches a loaded program to a cgroup, and pins its link.
pub(super) fn attach(ebpf: &mut Ebpf, name: &'static str, cgroup: &File, pin: PathBuf) -> Result<()> {
    let failed = |source| BpfError::Program { name, source };
    // Only this mode goes with a link; links of one cgroup run one after another whatever the mode.
    let mode = CgroupAttachMode::Single;
    let link: std::result::Result<FdLink, LinkError> =
        match ebpf.program_mut(name).ok_or(BpfError::Missing(name))? {
            Program::CgroupSock(program) => {
                let id = program.attach(cgroup, mode).map_err(failed)?;
                program.take_link(id).map_err(failed)?.try_into()
            }
            Program::CgroupSockAddr(program) => {
                let id = program.attach(cgroup, mode).map_err(failed)?;
                program.take_link(id).map_err(failed)?.try_into()
            }
            Program::CgroupSkb(program) => {
                let id = program.attach(cgroup, CgroupSkbAttachType::Egress, mode).map_err(failed)?;
                program.take_link(id).map_err(failed)?.try_into()
            }
            // aya cannot pin links of this kind.
            Program::CgroupSockopt(program) => {
                let program = program.fd().map_err(failed)?.as_fd();
                return link::pin(program, cgroup.as_fd(), BPF_CGROUP_SETSOCKOPT, &pin)
                    .map_err(|source| BpfError::PinLink { name, path: pin, source });
            }
            _ => return Err(BpfError::Missing(name)),
        };
    let link = link.map_err(|source| BpfError::Link { name, source })?;
    link.pin(&pin).map_err(|source| BpfError::Pin { path: pin, source })?;
    Ok(())
}

/// Linux before 5.11 charges maps to RLIMIT_MEMLOCK; later ones do not care, nor do those of a service that may not
/// raise it (CAP_SYS_RESOURCE).
fn raise_memlock() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!("RLIMIT_MEMLOCK stays as it is: {error}");
    }
}

fn map_error(name: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map { name, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::probe::{Place, Probe};

    #[test]
    fn a_failed_start_removes_what_it_created_and_leaves_what_was_there() {
        Place::with(|place| {
            let config = ProgramConfig::default();
            pins::ensure_dir(&place.pin_dir).unwrap();
            // Programs load, but this is no cgroup to attach them to.
            let root = Path::new("/proc");
            let load = || Selector::load(&place.pin_dir, root, &place.cgroup, config, place.marking, true);
            let failed = load();
            assert!(matches!(failed.err().unwrap(), BpfError::Program { .. }));
            assert!(pins::generations(&place.pin_dir).unwrap().is_empty());

            drop(place.load());
            let before = pins::generations(&place.pin_dir).unwrap();
            assert!(load().is_err());
            assert_eq!(pins::generations(&place.pin_dir).unwrap(), before);
            assert_eq!(place.mobile().open("tcp4"), place.marking.mark);
        });
    }

    #[test]
    fn a_mobile_process_gets_no_mptcp_socket_where_the_kernel_cannot_tell_its_subflows() {
        Place::with(|place| {
            let config = config_of(&place.cgroup, place.marking).unwrap();
            pins::ensure_dir(&place.pin_dir).unwrap();
            let root = place.cgroup.cgroup2().mount();
            for tells_subflows in [true, false] {
                let _selector = Selector::load(
                    &place.pin_dir,
                    root,
                    &place.cgroup,
                    config,
                    place.marking,
                    tells_subflows,
                )
                .unwrap();
                let mobile = place.mobile().try_open("mptcp4");
                assert_eq!(mobile, if tells_subflows { "opened" } else { "EPERM" });
                assert_eq!(place.mobile().open("tcp4"), place.marking.mark);
                assert_eq!(Probe::start().try_open("mptcp4"), "opened");
            }
        });
    }
}
