//! `cargo xtask bench`: measurements in the lab, of optimised binaries.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::shell::{self, step};
use crate::{build, setup};

mod machine;
mod stats;
mod throughput;

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// iperf3, direct and through the tunnel: one stream, the reverse, four streams.
    Throughput(throughput::Args),
}

/// Measures.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    shell::require_root()?;
    optimise_ourselves()?;
    match bench {
        Bench::Throughput(args) => throughput::run(args),
    }
}

/// The lab's links are threads of this very program, so it too must be optimised: an ordinary build of it builds
/// everything for use and goes on as its optimised self.
fn optimise_ourselves() -> Result<()> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    setup::run()?;
    let folder = build::run(true)?;
    step("building the lab (release)");
    shell::run(shell::cargo().args(["build", "--locked", "--release", "--package", "xtask"]))?;
    let program = folder.join("xtask");
    let error = Command::new(&program).args(env::args_os().skip(1)).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
