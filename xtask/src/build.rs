//! `cargo xtask build`: the two binaries and the C library.

use std::path::PathBuf;

use anyhow::Result;

use crate::shell::{self, step};

/// Builds `mobile`, `home-relay` and `libmobile.so`, and returns the folder they are in.
pub(crate) fn run(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    step(&format!("building mobile, its eBPF programs, home-relay and libmobile ({profile})"));
    let mut build = shell::cargo();
    build.args([
        "build",
        "--locked",
        "--package",
        "mobile-agent",
        "--package",
        "home-relay",
        "--package",
        "libmobile",
    ]);
    if release {
        build.arg("--release");
    }
    shell::run(&mut build)?;
    Ok(shell::target_dir()?.join(profile))
}
