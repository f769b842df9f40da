//! `cargo xtask test dist`: checks the shipped files: their size on disk and in memory, that they
//! run on each architecture, and that two builds are identical.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{PACKAGES, archive};
use crate::musl::Arch;
use crate::setup::{self, Tool};
use crate::shell::{self, step};

const TOOLS: &[Tool] = &[
    Tool { program: "qemu-aarch64-static", package: "qemu-user-static" },
    Tool { program: "qemu-arm-static", package: "qemu-user-static" },
    Tool { program: "xz", package: "xz-utils" },
    Tool { program: "nft", package: "nftables" },
];

/// The largest allowed size of `home-relay` in bytes, because a router's flash is small.
const MAX_BYTES: u64 = 6 << 20;

/// The largest allowed resident memory of a relay without clients, in KiB.
const MAX_RESIDENT_KIB: u64 = 12 << 10;

/// The timeout for a relay to start serving.
const START: Duration = Duration::from_secs(10);

/// Builds everything that is shipped and checks it.
pub(crate) fn run() -> Result<()> {
    setup::install(TOOLS)?;
    let version = env!("CARGO_PKG_VERSION");
    let out = shell::target_dir()?.join("dist");
    let made = super::build_all(version, &out)?;
    super::sums::write(&made, &out)?;
    let relay = &PACKAGES[1];
    for arch in [Arch::X86_64, Arch::Aarch64, Arch::Armv7] {
        let name = format!("{}-{version}-{}", relay.name, arch.target());
        let packed = out.join(format!("{name}.tar.xz"));
        let before = fs::read(&packed).with_context(|| format!("cannot read {}", packed.display()))?;
        let dir = tempfile::tempdir()?;
        shell::run(Command::new("tar").arg("--directory").arg(dir.path()).arg("-xf").arg(&packed))?;
        let program = dir.path().join(&name).join("usr/bin").join(relay.program);
        let size = fs::metadata(&program).with_context(|| format!("no {}", program.display()))?.len();
        if arch == Arch::X86_64 && size > MAX_BYTES {
            bail!("{} has {size} bytes: more than {MAX_BYTES}", program.display());
        }
        runs(arch, &program, dir.path())?;
        if arch == Arch::X86_64 {
            let resident = resident(&program, dir.path())?;
            if resident > MAX_RESIDENT_KIB {
                bail!(
                    "{} without clients uses {resident} KiB of memory: more than {MAX_RESIDENT_KIB}",
                    program.display()
                );
            }
            step(&format!("{name}: {resident} KiB of memory without clients"));
        }
        step(&format!("{name}: {size} bytes, runs"));
        let bin = dir.path().join("again");
        fs::create_dir(&bin)?;
        fs::copy(&program, bin.join(relay.program))?;
        let again = archive::build(relay, arch, &bin, version, &dir.path().join("out"))?;
        if fs::read(&again)? != before {
            bail!("{} differs when it is packed again: the build is not reproducible", packed.display());
        }
    }
    Ok(())
}

/// Checks that a program prints its version and creates a configuration with a key. Runs it under
/// qemu for another architecture than x86_64.
fn runs(arch: Arch, program: &Path, dir: &Path) -> Result<()> {
    let emulator = match arch {
        Arch::X86_64 => None,
        Arch::Aarch64 => Some("qemu-aarch64-static"),
        Arch::Armv7 => Some("qemu-arm-static"),
    };
    let command = || match emulator {
        Some(emulator) => {
            let mut command = Command::new(emulator);
            command.arg(program);
            command
        }
        None => Command::new(program),
    };
    let said = shell::output(command().arg("--version"))?;
    if !said.ends_with(env!("CARGO_PKG_VERSION")) {
        bail!("{} reports another version: {said}", program.display());
    }
    let key = shell::output(command().arg("init").arg("--config").arg(dir.join("relay.toml")))?;
    if key.len() != 44 {
        bail!("{} created no key: {key}", program.display());
    }
    Ok(())
}

/// Returns the resident memory in KiB of a relay without clients, run in a network namespace with
/// the configuration that [`runs`] made.
fn resident(program: &Path, dir: &Path) -> Result<u64> {
    let socket = dir.join("admin.sock");
    // `unshare` executes the program, so the process id stays the same.
    let mut command = Command::new("unshare");
    command.arg("--net").arg(program).arg("serve").arg("--config").arg(dir.join("relay.toml"));
    command.env("HOME_RELAY_STATE_DIR", dir.join("state")).env("HOME_RELAY_ADMIN_SOCKET", &socket);
    let mut relay = KillOnDrop(command.stderr(Stdio::null()).spawn().context("cannot start unshare")?);
    let since = Instant::now();
    while !socket.exists() {
        if let Some(status) = relay.0.try_wait()? {
            bail!("{} ended before it served clients: {status}", program.display());
        }
        if since.elapsed() > START {
            bail!("{} does not start serving", program.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // After a second all initialisation is done.
    std::thread::sleep(Duration::from_secs(1));
    let path = format!("/proc/{}/status", relay.0.id());
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmRSS is {line}"))
}

/// A child process that is killed when dropped.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
