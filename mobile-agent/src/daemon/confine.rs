//! What the agent keeps once it runs; docs/security.md, "Privileges", says what for. Everything that
//! looks into other processes is the process helper's (`processes`).

use std::fs;
use std::path::{Path, PathBuf};

use aya::util::KernelVersion;
use mobile_io::confine::{Capabilities, Confinement, Files};
use nix::libc;

use crate::config::Config;
use crate::footprint;

/// To look at processes and cgroups, to resolve names, and to run nft.
const READ: &[&str] = &[
    "/bin",
    "/dev",
    "/etc",
    "/gnu",
    "/lib",
    "/lib64",
    "/nix",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/sss",
];

/// The device is removed by `mobile cleanup`, and its settings are put back.
const WRITE: &[&str] = &["/dev/net/tun", "/dev/null", "/proc/sys/net"];

/// The same at every start with the same configuration.
pub(super) fn confinement(config: &Config) -> Confinement {
    // A folder that does not exist cannot be named to Landlock.
    if let Err(error) = fs::create_dir_all(&config.state.dir) {
        tracing::debug!(%error, dir = %config.state.dir.display(), "cannot make the state directory");
    }
    let folder = |file: &Path| file.parent().map(Path::to_owned);
    let mut read: Vec<PathBuf> = READ.iter().map(PathBuf::from).collect();
    // Mounted elsewhere than below /sys, perhaps.
    read.extend(config.cgroup.path.as_deref().and_then(folder));
    let mut write: Vec<PathBuf> = WRITE.iter().map(PathBuf::from).collect();
    write.push(config.state.dir.clone());
    write.push(footprint::DIR.into());
    write.extend(folder(&config.control.socket));
    write.extend(folder(&config.bpf.pin_dir));
    Confinement {
        capabilities: capabilities(),
        calls: &[libc::SYS_bpf],
        local_streams: false,
        files: Some(Files { read, write }),
    }
}

/// Changing maps and attaching loaded programs takes their descriptors only, since Linux 5.19
/// (`__sys_bpf`); before that CAP_BPF as well, where unprivileged bpf() is switched off.
fn capabilities() -> Capabilities {
    let by_descriptor = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 19, 0));
    if by_descriptor { Capabilities::NET_ADMIN } else { Capabilities::NET_ADMIN | Capabilities::BPF }
}
