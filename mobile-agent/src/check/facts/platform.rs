//! The facts about the kernel, and about the kernel objects that the agent needs.

use std::path::{Path, PathBuf};

use mobile_host::sysctl;
use mobile_transport::tun;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::check::fact_error::FactError;
use crate::check::facts::start::Occupied;
use crate::check::load_programs;
use crate::claims::{Claims, InUse, Setting};
use crate::config::{Config, load_key};
use crate::routing::ingress;
use crate::selection::cgroup::{Cgroup2, MobileCgroup};

/// The kernel, and the kernel objects that the agent needs.
#[derive(Debug)]
pub(in crate::check) struct Platform {
    /// The release of the running kernel.
    pub(in crate::check) kernel: String,
    /// Whether IPv6 is enabled on this host.
    pub(in crate::check) ipv6: bool,
    /// The mount point of the cgroup2 file system, or the reason why the agent cannot use it.
    pub(in crate::check) cgroup2: Result<PathBuf, FactError>,
    /// The file system of the directory `[bpf] pin_dir`, where the agent pins its eBPF objects.
    pub(in crate::check) bpffs: Bpffs,
    /// The result of loading and attaching the eBPF programs; `None` if root does not run the
    /// check, or without a cgroup2 mount.
    pub(in crate::check) programs: Option<Result<(), FactError>>,
    /// The result of opening a TUN device; `None` if root does not run the check.
    pub(in crate::check) tun: Option<Result<(), FactError>>,
    /// Whether nftables accepts the ingress filter, or its error; `None` if root does not run the
    /// check.
    pub(in crate::check) nftables: Option<Result<(), FactError>>,
    /// The reason why an agent that starts cannot bind the control socket.
    pub(in crate::check) control: Option<FactError>,
    /// The metrics address, if an agent that starts cannot listen there.
    pub(in crate::check) metrics: Option<Occupied>,
    /// The running agents of other configurations that use what this configuration names; `None` if
    /// root does not run the check.
    pub(in crate::check) in_use: Option<Result<Vec<InUse>, FactError>>,
}

/// The kind of file system that holds `[bpf] pin_dir`, the directory of pinned eBPF objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::check) enum Bpffs {
    /// The directory `[bpf] pin_dir` is on a BPF file system.
    Mounted,
    /// The directory `[bpf] pin_dir` is on another file system, but the agent mounts a BPF file
    /// system for it at its start.
    Mountable,
    /// The directory `[bpf] pin_dir` is on another file system, and the agent does not mount a BPF
    /// file system for it.
    Elsewhere,
    /// The kernel does not support the BPF file system.
    Missing,
}

impl Platform {
    /// Gathers the facts; `path` is the configuration file, or the default one if `None`. Creates
    /// the objects on trial if `root` runs the check.
    pub(super) fn gather(config: &Config, path: Option<&Path>, root: bool) -> Self {
        Self {
            programs: (root && Cgroup2::find(None).is_ok()).then(|| load_programs::try_load(config)),
            tun: root.then(|| tun::try_open().map_err(|error| FactError::of(&error))),
            nftables: root.then(|| ingress::check_nftables().map_err(|error| FactError::of(&error))),
            in_use: root.then(|| in_use(config, path)),
            ..Self::observe(config)
        }
    }

    /// Gathers the facts that can be read, without creating objects on trial.
    pub(super) fn observe(config: &Config) -> Self {
        Self {
            kernel: nix::sys::utsname::uname().map_or_else(
                |_| "unknown".to_owned(),
                |uname| uname.release().to_string_lossy().into_owned(),
            ),
            ipv6: has_ipv6(),
            cgroup2: cgroup2(config),
            bpffs: bpffs(&config.bpf.pin_dir),
            programs: None,
            tun: None,
            nftables: None,
            control: None,
            metrics: None,
            in_use: None,
        }
    }
}

impl Platform {
    /// Returns whether the agent of another configuration listens on this one's control socket.
    pub(super) fn shares_socket(&self) -> bool {
        let running = self.in_use.iter().flatten().flatten();
        running.into_iter().any(|agent| agent.has(Setting::Socket))
    }
}

fn cgroup2(config: &Config) -> Result<PathBuf, FactError> {
    let path = config.cgroup.path.as_deref();
    // This also reports whether the configured path can be a mobile cgroup.
    MobileCgroup::existing(path).map_err(|error| FactError::of(&error))?;
    Ok(Cgroup2::find(path).map_err(|error| FactError::of(&error))?.mount().to_owned())
}

fn in_use(config: &Config, path: Option<&Path>) -> Result<Vec<InUse>, FactError> {
    let key = load_key(&config.identity.private_key_file).ok().map(|key| key.public());
    let mut running = Claims::of(config, path, key).in_use().map_err(|error| FactError::of(&error))?;
    running.retain(|agent| !agent.is_own);
    Ok(running)
}

fn bpffs(pin_dir: &Path) -> Bpffs {
    // The nearest existing ancestor decides; a directory that this user may not enter counts as
    // existing.
    let there = pin_dir.ancestors().find_map(|dir| statfs(dir).ok());
    if there.is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC) {
        return Bpffs::Mounted;
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    match filesystems.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        false => Bpffs::Missing,
        true if pin_dir.starts_with("/sys/fs/bpf") => Bpffs::Mountable,
        true => Bpffs::Elsewhere,
    }
}

fn has_ipv6() -> bool {
    sysctl::read("net/ipv6/conf/all/disable_ipv6").is_ok_and(|value| value == "0")
}
