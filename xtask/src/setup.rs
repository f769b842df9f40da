//! `cargo xtask setup`: installs the tools that building and testing need beyond the Rust
//! toolchain, which rustup installs.

use std::process::Command;

use anyhow::{Result, bail};

use crate::debian;
use crate::shell::{self, step};

/// The pinned version of bpf-linker. Version 0.10.3 uses rustc's own LLVM and therefore installs
/// with cargo alone; later versions need a system LLVM.
const BPF_LINKER: &str = "0.10.3";

/// A program that tests, the demonstration or benchmarks start, and the Debian package that
/// contains it.
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { program: "busybox", package: "busybox-static" },
    Tool { program: "c++", package: "g++" },
    Tool { program: "cc", package: "gcc" },
    Tool { program: "chromium", package: "chromium" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "ethtool", package: "ethtool" },
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "iperf3", package: "iperf3" },
    Tool { program: "login", package: "login" },
    Tool { program: "NetworkManager", package: "network-manager" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "nm", package: "binutils" },
    Tool { program: "objdump", package: "binutils" },
    Tool { program: "readelf", package: "binutils" },
    Tool { program: "ping", package: "iputils-ping" },
    Tool { program: "pkg-config", package: "pkgconf" },
    Tool { program: "openvpn", package: "openvpn" },
    // The server's programs are not in PATH, except this one.
    Tool { program: "pg_ctlcluster", package: "postgresql" },
    Tool { program: "prometheus", package: "prometheus" },
    Tool { program: "promtool", package: "prometheus" },
    Tool { program: "ps", package: "procps" },
    Tool { program: "psql", package: "postgresql-client" },
    Tool { program: "python3", package: "python3" },
    Tool { program: "rsync", package: "rsync" },
    // Go programs that do not use the C library.
    Tool { program: "scepclient", package: "scep" },
    Tool { program: "scepserver", package: "scep" },
    Tool { program: "ssh", package: "openssh-client" },
    Tool { program: "sshd", package: "openssh-server" },
    Tool { program: "systemctl", package: "systemd" },
    Tool { program: "systemd-analyze", package: "systemd" },
    Tool { program: "tcpdump", package: "tcpdump" },
    Tool { program: "telnet", package: "inetutils-telnet" },
    Tool { program: "telnetd", package: "inetutils-telnetd" },
    Tool { program: "tincd", package: "tinc" },
    Tool { program: "wg-quick", package: "wireguard-tools" },
    Tool { program: "wireguard-go", package: "wireguard-go" },
    Tool { program: "tmux", package: "tmux" },
];

/// Installs the missing tools and bpf-linker; returns quickly if nothing is missing.
pub(crate) fn run() -> Result<()> {
    install(TOOLS)?;
    linker()
}

/// Installs a bpf-linker of the pinned version where [`shell::cargo`] finds it, unless it is
/// installed.
pub(crate) fn linker() -> Result<()> {
    let found = shell::find("bpf-linker");
    let version = found.as_ref().and_then(|path| shell::output(Command::new(path).arg("--version")).ok());
    if version.as_deref().is_some_and(is_pinned) {
        return Ok(());
    }
    let mut install = shell::cargo();
    install.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
    match version {
        // Without any bpf-linker, cargo's default folder, so that a plain `cargo build` works too.
        None => step(&format!("installing bpf-linker {BPF_LINKER} with cargo (a minute or two)")),
        // The user's other version stays installed.
        Some(other) => {
            let tools = shell::tools_dir()?;
            step(&format!("installing bpf-linker {BPF_LINKER} in {}, beside your {other}", tools.display()));
            install.arg("--root").arg(tools);
        }
    }
    shell::run(&mut install)?;
    if shell::find("bpf-linker").is_none() {
        bail!(
            "bpf-linker was installed, but is not in PATH: add cargo's bin folder (usually ~/.cargo/bin) to it"
        );
    }
    Ok(())
}

/// Installs, from Debian's packages, those of `tools` that are missing; returns quickly if none is.
pub(crate) fn install(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| shell::find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs = missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ");
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.dedup();
    if !debian::is_debian() {
        bail!(
            "these programs are missing: {programs}. Install them with your system's package manager \
             (on Debian they are in: {})",
            packages.join(" ")
        );
    }
    if !shell::is_root() {
        bail!(
            "these programs are missing: {programs}. Install them with\n  sudo apt-get update && \
             sudo apt-get install -y --no-install-recommends {}\nor run this as root",
            packages.join(" ")
        );
    }
    step(&format!("installing with apt-get: {}", packages.join(" ")));
    debian::install(&packages)?;
    let still: Vec<&str> =
        missing.iter().map(|tool| tool.program).filter(|program| shell::find(program).is_none()).collect();
    if !still.is_empty() {
        bail!("apt-get succeeded, but these programs are still missing: {}", still.join(", "));
    }
    Ok(())
}

/// Returns whether the output of `bpf-linker --version`, a name and a version, has the pinned
/// version.
fn is_pinned(version: &str) -> bool {
    version.split_whitespace().nth(1) == Some(BPF_LINKER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pinned_version_is_taken() {
        assert!(is_pinned("bpf-linker 0.10.3"));
        assert!(!is_pinned("bpf-linker 0.10.31"));
        assert!(!is_pinned("bpf-linker 0.13.0"));
        assert!(!is_pinned(""));
    }

    #[test]
    fn tools_are_sorted_by_package_within_duplicates() {
        // `dedup` above requires equal packages to be adjacent.
        for (i, tool) in TOOLS.iter().enumerate() {
            let last = TOOLS.iter().rposition(|other| other.package == tool.package);
            let first = TOOLS.iter().position(|other| other.package == tool.package);
            let count = TOOLS.iter().filter(|other| other.package == tool.package).count();
            assert_eq!(last.zip(first).map(|(last, first)| last - first + 1), Some(count), "entry {i}");
        }
    }
}
