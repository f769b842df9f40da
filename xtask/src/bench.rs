//! `cargo xtask bench`: measurements in the lab, of the programs that are shipped.

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

/// What to measure, and of which builds.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measures development builds, quickly made: to try a measurement out, not for figures.
    #[arg(long, global = true)]
    unoptimised: bool,
    /// Writes the medians of what is measured into docs/plots, as pictures.
    #[arg(long, global = true)]
    plot: bool,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// What connect(), a datagram, a segment and the start of a command take, with the agent and without, mobile and not.
    Connect(connect::Args),
    /// Processor time for each byte, at a rate that everyone can keep up with and at full speed, and memory.
    Cpu(cpu::Args),
    /// The longest gap in an application's connection for each way a link can change, ours and others'.
    Handover(handover::Args),
    /// What an agent sends and uses that nobody uses.
    Idle(idle::Args),
    /// How long a keystroke takes, alone and beside a bulk transfer, ours and others'.
    Latency(latency::Args),
    /// A bulk transfer over a link of 100 Mbit/s that loses packets, ours and others'.
    Lossy(lossy::Args),
    /// How many small datagrams a second pass without loss, ours and others'.
    Pps(pps::Args),
    /// A relay's clients: how many, what one costs, how fast they come, and what strangers at its port do to them.
    Relay(relay::Args),
    /// A bulk transfer over an uplink that somebody else's fills, ours and others'.
    Shared(shared::Args),
    /// The paper's table 2: the bytes of 1 MiB at the process, the virtual device and the real one, ours and others'.
    Table2(table2::Args),
    /// iperf3, direct, through the tunnel and through others': speed, and processor time for each byte.
    Throughput(throughput::Args),
}

/// Measures.
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

/// The lab's links are threads of this very program, so it too must be optimised: an ordinary build of it builds the static
/// programs that packages are made of, and goes on as its optimised self, which takes them from that folder.
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

/// This program, with the lab in it, and the programs that measure inside of the lab.
fn lab(release: bool) -> Result<()> {
    step("building the lab");
    let mut build = shell::cargo();
    build.args(["build", "--locked", "--package", "xtask", "--package", "mobile-tests", "--bins"]);
    if release {
        build.arg("--release");
    }
    shell::run(&mut build)
}
