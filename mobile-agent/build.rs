//! Builds the eBPF programs for the BPF target, with the same toolchain as everything else.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

/// The contents of the file that pins the toolchain, so that no second file names the version.
const TOOLCHAIN_FILE: &str = include_str!("../rust-toolchain.toml");

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=../rust-toolchain.toml");
    println!("cargo::rerun-if-changed=../crates/mobile-ebpf-common/src");
    if !in_path("bpf-linker") {
        bail!(
            "bpf-linker is not installed: it links the eBPF programs. \
             Run `cargo xtask setup`, which installs the pinned version, and build again."
        );
    }
    link_unwinder();
    let toolchain = TOOLCHAIN_FILE
        .lines()
        .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'))
        .context("rust-toolchain.toml names no channel")?;
    // The BPF target has no prebuilt `core`. Building it needs -Z build-std, which a stable
    // toolchain allows only with RUSTC_BOOTSTRAP. aya-build turns all output of cargo into
    // warnings, so make cargo quiet.
    for (name, value) in [("RUSTC_BOOTSTRAP", "1"), ("CARGO_TERM_QUIET", "true")] {
        // SAFETY: this build script has a single thread until aya-build starts others.
        unsafe { env::set_var(name, value) };
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../mobile-ebpf");
    let root_dir = root.to_str().context("the path of the workspace is not UTF-8")?;
    let package = Package { name: "mobile-ebpf", root_dir, no_default_features: false, features: &[] };
    aya_build::build_ebpf([package], Toolchain::Custom(toolchain))
        .context("cannot build the eBPF programs: the compiler's messages are in the warnings above")
}

/// Links the C compiler's unwinder statically where the compiler has it: loading the shared library
/// takes a large part of the time of `mobile run`.
fn link_unwinder() {
    let target_is_host = env::var("TARGET") == env::var("HOST");
    let found = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output();
    let path = found.ok().and_then(|found| String::from_utf8(found.stdout).ok());
    let path = path.map(|path| PathBuf::from(path.trim_end())).filter(|path| path.is_absolute());
    if let Some(folder) = path.as_deref().and_then(|path| path.parent()).filter(|_| target_is_host) {
        println!("cargo::rustc-link-search=native={}", folder.display());
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
}

fn in_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
