//! `cargo xtask test dist`: what is shipped is built, is small, runs on each processor, and comes out the same twice.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{PACKAGES, archive};
use crate::musl::Arch;
use crate::setup::{self, Tool};
use crate::shell::{self, step};

const TOOLS: &[Tool] = &[
    Tool { program: "qemu-aarch64-static", package: "qemu-user-static" },
    Tool { program: "qemu-arm-static", package: "qemu-user-static" },
    Tool { program: "xz", package: "xz-utils" },
];

/// A router's flash is small: 6 MiB for the relay.
const LARGEST: u64 = 6 << 20;

/// Builds all of it, and looks at it.
pub(crate) fn run() -> Result<()> {
    setup::install(TOOLS)?;
    let version = env!("CARGO_PKG_VERSION");
    let out = shell::target_dir()?.join("dist");
    let made = super::everything(version, &out)?;
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
        if arch == Arch::X86_64 && size > LARGEST {
            bail!("{} has {size} bytes: more than {LARGEST}", program.display());
        }
        runs(arch, &program, dir.path())?;
        step(&format!("{name}: {size} bytes; it runs"));
        let bin = dir.path().join("again");
        fs::create_dir(&bin)?;
        fs::copy(&program, bin.join(relay.program))?;
        let again = archive::build(relay, arch, &bin, version, &dir.path().join("out"))?;
        if fs::read(&again)? != before {
            bail!("{} comes out otherwise when it is packed again", packed.display());
        }
    }
    Ok(())
}

/// Under qemu where this is another machine: it says what it is, and makes a configuration with a key.
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
        bail!("{} says it is {said}", program.display());
    }
    let key = shell::output(command().arg("init").arg("--config").arg(dir.join("relay.toml")))?;
    if key.len() != 44 {
        bail!("{} made no key: {key}", program.display());
    }
    Ok(())
}
