//! `cargo xtask bench shared`: a bulk transfer over an uplink that another bulk transfer fills.
//!
//! The other transfer is an ordinary TCP connection with cubic, as most hosts have it. It runs
//! beside the tunnel and keeps the uplink's FIFO filled.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mobile_tests::{LabOptions, Process, Services, addr};

use super::goals::{self, Goal};
use super::grid::Grid;
use super::hosts::{HostArgs, HostSetup};
use super::machine;
use super::plot::Plot;
use super::subject::{Contestant, ContestantArgs, ContestantLabs};
use super::throughput::received;

/// Arguments of `cargo xtask bench shared`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs each measurement this many times; the table shows median, least and greatest
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Lets each run take this many seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Limits the uplink to this rate in Mbit/s, in each direction
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    contestants: ContestantArgs,
}

/// The direction of the measured and of the other transfer: a title and iperf3's flags.
const DIRECTIONS: [(&str, &[&str]); 2] = [("upload", &[]), ("download", &["--reverse"])];

/// The file names of the plots, one for each direction.
const PLOTS: [&str; 2] = ["shared-upload", "shared-download"];

/// The time after which the other transfer fills the uplink's FIFO.
const WARM_UP: Duration = Duration::from_secs(3);

pub(crate) fn run(args: &Args, plot: bool) -> Result<()> {
    args.hosts.each(|host| compare(args, host, plot))
}

/// Measures the direct connection and every tunnel in a lab of its own. All labs are up at the same
/// time, but only one is measured at a time.
fn compare(args: &Args, host: &HostSetup, plot: bool) -> Result<()> {
    let labs = ContestantLabs::start(&args.contestants, &host.lab(Some(LabOptions::DELAY)))?;
    labs.limit_rate(args.rate)?;
    let titles = DIRECTIONS.iter().map(|(title, _)| (*title).to_owned()).collect();
    let sample = |contestant: &Contestant, column: usize| {
        let flags = DIRECTIONS[column].1;
        let (mut other, _server) = other_transfer(contestant, args.seconds, flags)?;
        let said = contestant.iperf3(args.seconds, flags)?;
        ensure!(other.ended()?.is_none(), "the other transfer has ended: {}", other.output());
        Ok(received(&said)?.0 * 1e3)
    };
    let grid =
        Grid::measure(&labs.contestants, titles, args.runs, sample, |kbits| format!("{kbits:.0} kbit/s"));
    println!("kbit/s, median of {} runs of {} s (least–greatest)\n", args.runs, args.seconds);
    println!("{}", grid.against_direct(kbits));
    println!("{}", goals::markdown(&goals(&grid)));
    println!(
        "{}; {} Mbit/s, 20 ms of round trip, FIFO of 250 ms, beside one other connection with {}; {}",
        machine::describe(),
        args.rate,
        LabOptions::CONGESTION_CONTROL,
        host
    );
    if plot {
        for (column, (direction, _)) in DIRECTIONS.iter().enumerate() {
            let title = format!("{} Mbit/s shared with another transfer, {direction}", args.rate);
            host.plot(Plot { file: PLOTS[column], title, unit: "kbit/s", bars: grid.bars(column, kbits) })?;
        }
    }
    labs.finish()
}

/// Starts a bulk transfer outside the tunnel, between the mobile host and the relay's machine. It
/// ends when the returned client and server are dropped.
fn other_transfer(contestant: &Contestant, seconds: u32, flags: &[&str]) -> Result<(Process, Process)> {
    let lab = contestant.subject.lab();
    let dir = lab.dir().join("other-transfer");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let server = Services::iperf3(&lab.relay, &dir)?;
    let mut client = lab.host.command("iperf3");
    // Long enough to run until it is dropped.
    let seconds = (10 * seconds).to_string();
    client.args(["--client", &addr::RELAY4.to_string(), "--time", &seconds]);
    client.args(["--congestion", LabOptions::CONGESTION_CONTROL]).args(flags);
    let client = Process::start("iperf3", &mut client, &dir.join("iperf3.txt"))?;
    sleep(WARM_UP);
    Ok((client, server))
}

fn kbits(sample: &f64) -> Option<f64> {
    Some(*sample)
}

/// Returns the goals for mobile's speed beside the other transfer: 0.9 of a direct connection's,
/// and no less than that of any competitor over TCP.
fn goals(grid: &Grid<f64>) -> Vec<Goal> {
    let mut goals = Vec::new();
    for (column, (direction, _)) in DIRECTIONS.iter().enumerate() {
        let (direct, ours) = (grid.median(0, column, kbits), grid.median(1, column, kbits));
        let ratio = |to: Option<f64>| ours.zip(to).map(|(ours, to)| ours / to);
        goals.push(Goal::at_least(format!("{direction}: part of direct's speed"), 0.9, ratio(direct)));
        let what = format!("{direction}: times the speed of the best competitor over TCP");
        goals.push(Goal::at_least(what, 1.0, ratio(grid.best_over_tcp(column, kbits))));
    }
    goals
}
