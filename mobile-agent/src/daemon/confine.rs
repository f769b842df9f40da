//! The rights that the running agent keeps: capabilities, system calls and files. See
//! docs/understand/security.md, "Privileges", for the reasons.
//!
//! The process helper (`processes`) does all work that inspects other processes or needs a Unix
//! stream socket, such as a request to D-Bus: the agent cannot create one.

use std::fs;
use std::path::{Path, PathBuf};

use aya::util::KernelVersion;
use mobile_host::confine::{Capabilities, Confinement, FileAccess, SYSTEM_DIRECTORIES};
use nix::libc;

use crate::config::Config;
use crate::footprint;

/// The paths that the agent may read besides those that every daemon may read: for name resolution.
const READ: &[&str] = &["/run", "/var/lib/sss"];

/// The paths that the agent may write: to remove the host virtual device for `mobile cleanup`, and
/// to restore the settings of this device.
const WRITE: &[&str] = &["/dev/net/tun", "/dev/null", "/proc/sys/net"];

/// Returns the rights to which the agent confines itself, as the configuration requires.
pub(super) fn confinement(config: &Config) -> Confinement {
    // Landlock accepts existing directories only.
    if let Err(error) = fs::create_dir_all(&config.state.dir) {
        tracing::debug!(%error, dir = %config.state.dir.display(), "cannot create the state directory");
    }
    let folder = |file: &Path| file.parent().map(Path::to_owned);
    let mut read: Vec<PathBuf> = SYSTEM_DIRECTORIES.iter().chain(READ).map(PathBuf::from).collect();
    // The cgroup file system may be mounted elsewhere than below /sys.
    read.extend(config.cgroup.path.as_deref().and_then(folder));
    let mut write: Vec<PathBuf> = WRITE.iter().map(PathBuf::from).collect();
    write.push(config.state.dir.clone());
    write.push(footprint::DIR.into());
    write.extend(folder(&config.control.socket));
    write.extend(folder(&config.bpf.pin_dir));
    Confinement {
        capabilities: capabilities(),
        syscalls: &[libc::SYS_bpf],
        unix_streams: false,
        files: Some(FileAccess { read, write }),
    }
}

/// Returns the capabilities that the agent keeps.
///
/// Since Linux 5.19, changing maps and attaching loaded programs requires only their descriptors
/// (`__sys_bpf`). Earlier kernels also require CAP_BPF where unprivileged bpf() is switched off.
fn capabilities() -> Capabilities {
    let by_descriptor = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 19, 0));
    if by_descriptor { Capabilities::NET_ADMIN } else { Capabilities::NET_ADMIN | Capabilities::BPF }
}
