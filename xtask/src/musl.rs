//! Builds static programs, linked with musl, which run on any distribution however old its C
//! library.
//!
//! zig is the C compiler and linker; it contains musl for every architecture. Rust's standard
//! library is built from source (`rust-src`), which the toolchain file requests anyway. Nothing
//! therefore has to be installed for each architecture.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::Tool;
use crate::shell::{self, step};
use crate::{debian, setup};

/// The pinned Python packages of zig and cargo-zigbuild, with their hashes.
const REQUIREMENTS: &str = include_str!("zig-requirements.txt");

/// An architecture that static programs are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// 64-bit PCs and servers
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit ARM: most current routers and single-board computers
    Aarch64,
    /// 32-bit ARM with a floating-point unit: older devices
    Armv7,
}

impl Arch {
    /// Returns this machine's architecture.
    pub(crate) fn of_this_machine() -> Result<Self> {
        match env::consts::ARCH {
            "x86_64" => Ok(Self::X86_64),
            "aarch64" => Ok(Self::Aarch64),
            "arm" => Ok(Self::Armv7),
            other => bail!("no static programs are built for {other}"),
        }
    }

    /// Returns rustc's name of the target.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
            Self::Armv7 => "armv7-unknown-linux-musleabihf",
        }
    }
}

/// The shipped programs, each with the package that builds it.
pub(crate) const PROGRAMS: [(&str, &str); 2] = [("mobile", "mobile-agent"), ("home-relay", "home-relay")];

/// Builds both programs, or only the one named, as static programs of the profile `dist`. Returns
/// their paths.
pub(crate) fn build(arch: Arch, only: Option<&str>) -> Result<Vec<PathBuf>> {
    let chosen: Vec<_> =
        PROGRAMS.iter().filter(|(program, _)| only.is_none_or(|only| only == *program)).collect();
    let names: Vec<&str> = chosen.iter().map(|(program, _)| *program).collect();
    let (mut build, target_dir) = command(arch)?;
    step(&format!("building static {} for {}", names.join(" and "), arch.target()));
    build.args(["--profile", "dist"]);
    for (_, package) in &chosen {
        build.args(["--package", package]);
    }
    shell::run(&mut build)?;
    let paths: Vec<PathBuf> = names.iter().map(|name| target_dir.join("dist").join(name)).collect();
    for path in &paths {
        assert_static(path)?;
    }
    Ok(paths)
}

/// Returns a cargo command that builds static programs, to which the caller adds packages and a
/// profile, and the folder that contains each profile's folder.
pub(crate) fn command(arch: Arch) -> Result<(Command, PathBuf)> {
    let venv = ensure_zig()?;
    // A target directory of its own, so that ordinary builds do not wait for its lock.
    let target_dir = shell::target_dir()?.join("musl");
    let mut build = shell::cargo_named(venv.join("bin/cargo-zigbuild"));
    build.args(["zigbuild", "--locked", "-Z", "build-std=std,panic_unwind", "--target", arch.target()]);
    // Without the code that reads debug information for backtraces, which these programs lack.
    build.args(["-Z", "build-std-features=panic-unwind,optimize_for_size"]);
    build.arg("--target-dir").arg(&target_dir);
    build
        // `-Z build-std` on the stable toolchain requires this.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ZIGBUILD_PYTHON_PATH", venv.join("bin/python3"))
        // zig provides the C runtime's start files; rustc has them only if the target is installed.
        // The linker message that this silences only warns that their folder does not exist.
        .env(flags_of(arch), "-C link-self-contained=no -A linker-messages")
        .env(c_flags_of(arch), EXCLUDED_ZSTD_STRATEGIES.map(|flag| format!("-D{flag}")).join(" "))
        // All caches stay inside the target directory.
        .env("CARGO_ZIGBUILD_CACHE_DIR", venv.join("cache"))
        .env("ZIG_GLOBAL_CACHE_DIR", venv.join("cache/zig"));
    Ok((build, target_dir.join(arch.target())))
}

/// Returns the name of the environment variable from which cargo reads rustc's flags for an
/// architecture.
fn flags_of(arch: Arch) -> String {
    format!("CARGO_TARGET_{}_RUSTFLAGS", arch.target().to_uppercase().replace('-', "_"))
}

/// Returns the name of the environment variable from which the `cc` crate reads C flags for an
/// architecture.
fn c_flags_of(arch: Arch) -> String {
    format!("CFLAGS_{}", arch.target().replace('-', "_"))
}

/// The macros that leave out zstd's compression strategies: all but the one of the level that
/// packets use.
const EXCLUDED_ZSTD_STRATEGIES: [&str; 7] = [
    "ZSTD_EXCLUDE_DFAST_BLOCK_COMPRESSOR",
    "ZSTD_EXCLUDE_GREEDY_BLOCK_COMPRESSOR",
    "ZSTD_EXCLUDE_LAZY_BLOCK_COMPRESSOR",
    "ZSTD_EXCLUDE_LAZY2_BLOCK_COMPRESSOR",
    "ZSTD_EXCLUDE_BTLAZY2_BLOCK_COMPRESSOR",
    "ZSTD_EXCLUDE_BTOPT_BLOCK_COMPRESSOR",
    "ZSTD_EXCLUDE_BTULTRA_BLOCK_COMPRESSOR",
];

/// Installs the pinned versions of zig and cargo-zigbuild in a Python environment, unless they are
/// installed, and returns the environment's folder.
fn ensure_zig() -> Result<PathBuf> {
    let venv = shell::tools_dir()?.join("zig");
    let stamp = venv.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == REQUIREMENTS) {
        return Ok(venv);
    }
    ensure_python()?;
    step(&format!("installing zig and cargo-zigbuild with pip in {}", venv.display()));
    shell::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    let requirements = venv.join("requirements.txt");
    write(&requirements, REQUIREMENTS)?;
    let install =
        ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r"];
    shell::run(Command::new(venv.join("bin/pip")).args(install).arg(&requirements))?;
    write(&stamp, REQUIREMENTS)?;
    Ok(venv)
}

/// Installs Python with the module `venv`, which Debian has in a separate package.
fn ensure_python() -> Result<()> {
    setup::install(&[Tool { program: "python3", package: "python3-venv" }])?;
    if shell::output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_ok() {
        return Ok(());
    }
    if !debian::is_debian() || !shell::is_root() {
        bail!("python3 has no `venv`: install it (on Debian `apt-get install python3-venv`)");
    }
    debian::install(&["python3-venv"])
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Checks that a program has no PT_INTERP segment, which would name a dynamic linker.
pub(crate) fn assert_static(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let interpreter =
        interpreter(&bytes).with_context(|| format!("{} is not an ELF file", program.display()))?;
    if interpreter {
        bail!("{} is not static: it names a dynamic linker", program.display());
    }
    Ok(())
}

/// Returns whether an ELF file names a dynamic linker, or `None` if it is not a little-endian ELF
/// file.
fn interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    // Offset and length of e_phoff, and the offsets of e_phentsize and e_phnum, for both classes.
    let (offset, size, count) = match (elf.get(..4)?, elf.get(4)?, elf.get(5)?) {
        (b"\x7fELF", 1, 1) => (number(0x1c, 4)?, number(0x2a, 2)?, number(0x2c, 2)?),
        (b"\x7fELF", 2, 1) => (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?),
        _ => return None,
    };
    let mut found = false;
    for index in 0..count {
        let at = offset.checked_add(index.checked_mul(size)?)?;
        found |= number(at.try_into().ok()?, 4)? == PT_INTERP;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_targets_flags_are_in_the_variable_cargo_reads() {
        assert_eq!(flags_of(Arch::X86_64), "CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS");
    }

    #[test]
    fn a_dynamic_program_is_recognised_by_its_interpreter() {
        let own = env::current_exe().and_then(fs::read).expect("the test's own program");
        assert_eq!(interpreter(&own), Some(true), "tests are linked with the system's C library");
        assert_eq!(interpreter(&own[..50]), None);
        assert_eq!(interpreter(b"#!/bin/sh\n"), None);
    }
}
