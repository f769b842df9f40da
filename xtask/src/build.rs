//! `cargo xtask build`: builds `mobile`, `home-relay` and `libmobile.so`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::musl::{self, Arch};
use crate::shell::{self, step};

/// Arguments of `cargo xtask build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimises the programs, as for use
    #[arg(long)]
    release: bool,
    /// Builds static programs (musl) that run on every distribution: small, but slow to build
    #[arg(long = "static", conflicts_with = "release")]
    musl: bool,
    /// Builds for these architectures
    #[arg(long, requires = "musl", value_name = "ARCH", value_delimiter = ',', default_value = "x86_64")]
    target: Vec<Arch>,
    /// Builds only this program
    #[arg(long, requires = "musl", value_name = "PROGRAM", value_parser = ["mobile", "home-relay"])]
    only: Option<String>,
}

/// Builds the programs, and prints the paths and sizes of static ones.
pub(crate) fn verb(args: &Args) -> Result<()> {
    if !args.musl {
        return run(args.release).map(drop);
    }
    for arch in &args.target {
        for path in musl::build(*arch, args.only.as_deref())? {
            let size = path.metadata().with_context(|| format!("{} was not built", path.display()))?.len();
            println!("{}: {size} bytes", path.display());
        }
    }
    Ok(())
}

/// Builds `mobile`, `home-relay` and `libmobile.so`, and returns the folder that contains them.
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
