//! The capabilities and file access that a serving relay keeps; docs/understand/security.md,
//! "Privileges", gives the reasons.

use std::path::{Path, PathBuf};

use mobile_host::confine::{Capabilities, Confinement, FileAccess, SYSTEM_DIRECTORIES};

use crate::config::Config;

/// The directories that a serving relay may still read, besides those that every daemon may read,
/// after it has dropped its privileges: it rereads its configuration at a reload, and runs nft.
const READABLE: &[&str] = &["/run/current-system"];

/// The paths that a serving relay may still write after it has dropped its privileges: IP
/// forwarding is a sysctl, and `/dev/null` is nft's standard input.
const WRITABLE: &[&str] = &["/dev/null", "/proc/sys/net"];

/// Returns the confinement of a relay with the configuration `config`, read from `path`.
pub(crate) fn confinement(path: &Path, config: &Config) -> Confinement {
    let folder = |file: &Path| file.parent().map(Path::to_owned);
    let mut read: Vec<PathBuf> = SYSTEM_DIRECTORIES.iter().chain(READABLE).map(PathBuf::from).collect();
    read.extend(folder(path));
    read.extend(folder(&config.identity.private_key_file));
    let mut write: Vec<PathBuf> = WRITABLE.iter().map(PathBuf::from).collect();
    write.push(config.state.dir.clone());
    write.extend(folder(&config.admin.socket));
    Confinement {
        // DAC_OVERRIDE matters where the relay runs as root: its directories may belong to another
        // user.
        capabilities: Capabilities::NET_ADMIN | Capabilities::DAC_OVERRIDE,
        syscalls: &[],
        unix_streams: false,
        files: Some(FileAccess { read, write }),
    }
}
