//! Builds the eBPF programs for their own target, with the toolchain that builds everything else.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

/// The pinned toolchain, read from the file so that it is named once.
const TOOLCHAIN_FILE: &str = include_str!("../rust-toolchain.toml");

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=../rust-toolchain.toml");
    println!("cargo::rerun-if-changed=../mobile-ebpf-common/src");
    if !in_path("bpf-linker") {
        bail!(
            "bpf-linker is not installed: it links the eBPF programs of the MOBILE route. \
             Run `cargo xtask setup`, which installs the version this project pins, and build again."
        );
    }
    let toolchain = TOOLCHAIN_FILE
        .lines()
        .find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'))
        .context("rust-toolchain.toml names no channel")?;
    // The eBPF target has no prebuilt `core`: building it needs -Z build-std, which stable allows only with
    // RUSTC_BOOTSTRAP. aya-build turns all that cargo says into warnings: it shall say only what is one.
    for (name, value) in [("RUSTC_BOOTSTRAP", "1"), ("CARGO_TERM_QUIET", "true")] {
        // SAFETY: this build script has a single thread until aya-build starts others.
        unsafe { env::set_var(name, value) };
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../mobile-ebpf");
    let root_dir = root.to_str().context("the path of the workspace is not UTF-8")?;
    let package = Package { name: "mobile-ebpf", root_dir, no_default_features: false, features: &[] };
    aya_build::build_ebpf([package], Toolchain::Custom(toolchain))
        .context("building the eBPF programs failed; the compiler's messages are in the warnings above")
}

fn in_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
