//! What the relay keeps once it serves; docs/understand/security.md, "Privileges", says what for.

use std::path::{Path, PathBuf};

use mobile_io::confine::{Capabilities, Confinement, Files};

use crate::config::Config;

/// To reload its configuration, which is why it needs its folder, and to run nft, which is why it needs programs.
const READ: &[&str] = &[
    "/bin",
    "/dev",
    "/etc",
    "/gnu",
    "/lib",
    "/lib64",
    "/nix",
    "/proc",
    "/run/current-system",
    "/sbin",
    "/sys",
    "/usr",
];

/// NAT and forwarding may change with the configuration; null is where nft's input comes from.
const WRITE: &[&str] = &["/dev/null", "/proc/sys/net"];

/// For a relay with the configuration `config`, read from `path`.
pub(crate) fn confinement(path: &Path, config: &Config) -> Confinement {
    let folder = |file: &Path| file.parent().map(Path::to_owned);
    let mut read: Vec<PathBuf> = READ.iter().map(PathBuf::from).collect();
    read.extend(folder(path));
    read.extend(folder(&config.identity.private_key_file));
    let mut write: Vec<PathBuf> = WRITE.iter().map(PathBuf::from).collect();
    write.push(config.state.dir.clone());
    write.extend(folder(&config.admin.socket));
    Confinement {
        // The second where it runs as root: its folders may be another user's.
        capabilities: Capabilities::NET_ADMIN | Capabilities::DAC_OVERRIDE,
        calls: &[],
        local_streams: false,
        files: Some(Files { read, write }),
    }
}
