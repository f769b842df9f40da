//! `cargo xtask bench`: benchmarks of the shipped programs in the lab, a network of namespaces on
//! one machine.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use mobile_tests::BIN_DIR;

use crate::musl::{self, Arch};
use crate::shell::{self, step};
use crate::{build, setup};

mod connect;
mod cpu;
mod cpu_usage;
mod goals;
mod grid;
mod handover;
mod hosts;
mod idle;
mod latency;
mod lossy;
mod machine;
mod plot;
mod pps;
mod relay;
mod shared;
mod stats;
mod subject;
mod table2;
mod throughput;

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measures development builds, which are built quickly but slow: for trying out a benchmark,
    /// not for figures
    #[arg(long, global = true)]
    unoptimised: bool,
    /// Writes the medians as plots to docs/measure/plots
    #[arg(long, global = true)]
    plot: bool,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Times connect(), a datagram, a segment and the start of a command, with and without the
    /// agent, for mobile and ordinary processes
    Connect(connect::Args),
    /// Measures processor time per byte, at an equal rate and at full speed, and memory; also of
    /// the competitors
    Cpu(cpu::Args),
    /// Measures the longest gap in an application's connection for each kind of handover; also of
    /// the competitors
    Handover(handover::Args),
    /// Measures the traffic and the processor time of an idle tunnel
    Idle(idle::Args),
    /// Measures the round trip of a keystroke, on an idle uplink and during a bulk transfer; also
    /// of the competitors
    Latency(latency::Args),
    /// Measures a bulk transfer over a link of 100 Mbit/s that loses packets, through mobile and
    /// through the competitors
    Lossy(lossy::Args),
    /// Measures how many small datagrams per second pass without loss, through mobile and through
    /// the competitors
    Pps(pps::Args),
    /// Measures a relay with many clients: memory and processor time per client, handshake rate,
    /// and the effect of floods
    Relay(relay::Args),
    /// Measures a bulk transfer over an uplink that another transfer fills; also of the competitors
    Shared(shared::Args),
    /// Measures the paper's table 2: the bytes that 1 MiB needs on the virtual and on the real
    /// device; also of the competitors
    Table2(table2::Args),
    /// Measures iperf3 over a direct connection and through the tunnels: speed, and processor time
    /// per byte
    Throughput(throughput::Args),
}

/// Builds the lab and the measured programs, and runs the benchmark.
pub(crate) fn run(args: &Args) -> Result<()> {
    shell::require_root()?;
    if args.unoptimised {
        setup::run()?;
        build::run(false)?;
        lab(false)?;
    } else {
        optimise_ourselves()?;
    }
    let plot = args.plot;
    match &args.bench {
        Bench::Connect(args) => connect::run(args),
        Bench::Cpu(args) => cpu::run(args, plot),
        Bench::Handover(args) => handover::run(args),
        Bench::Idle(args) => idle::run(args),
        Bench::Latency(args) => latency::run(args, plot),
        Bench::Lossy(args) => lossy::run(args, plot),
        Bench::Pps(args) => pps::run(args, plot),
        Bench::Relay(args) => relay::run(args),
        Bench::Shared(args) => shared::run(args, plot),
        Bench::Table2(args) => table2::run(args, plot),
        Bench::Throughput(args) => throughput::run(args, plot),
    }
}

/// Replaces this process by an optimised xtask, because the lab's links are threads of xtask.
///
/// A development build of xtask builds the static programs of the packages and an optimised xtask,
/// and executes the latter, which measures those programs.
fn optimise_ourselves() -> Result<()> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    setup::run()?;
    let built = musl::build(Arch::of_this_machine()?, None)?;
    let folder = built.first().and_then(|program| program.parent()).context("nothing was built")?;
    lab(true)?;
    let program = shell::target_dir()?.join("release/xtask");
    let error = Command::new(&program).args(env::args_os().skip(1)).env(BIN_DIR, folder).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// Builds xtask, which contains the lab, and the programs that run inside the lab.
fn lab(release: bool) -> Result<()> {
    step("building the lab");
    let mut build = shell::cargo();
    build.args(["build", "--locked", "--package", "xtask", "--package", "mobile-tests", "--bins"]);
    if release {
        build.arg("--release");
    }
    shell::run(&mut build)
}
