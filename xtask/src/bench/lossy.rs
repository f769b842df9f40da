//! `cargo xtask bench lossy`: a bulk transfer over an uplink of 100 Mbit/s with 20 ms of round trip
//! that loses packets.
//!
//! Packets are lost singly, as on a wire: without segmentation offload on the uplink, none is
//! larger than the MTU. Losses are random with a fixed seed, in both directions.

use anyhow::{Result, bail};
use mobile_tests::LabOptions;

use super::goals::{self, Goal};
use super::grid::Grid;
use super::hosts::{HostArgs, HostSetup};
use super::machine;
use super::plot::Plot;
use super::subject::{Contestant, ContestantArgs, ContestantLabs};
use super::throughput::received;

/// Arguments of `cargo xtask bench lossy`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs each measurement this many times; the table shows median, least and greatest
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Lets each run take this many seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Limits the uplink to this rate in Mbit/s, in each direction
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// Loses this share of the packets in each direction, in percent
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.1, 1.0])]
    loss: Vec<f64>,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    contestants: ContestantArgs,
}

pub(crate) fn run(args: &Args, plot: bool) -> Result<()> {
    if let Some(bad) = args.loss.iter().find(|loss| !(0.0..=100.0).contains(*loss)) {
        bail!("--loss {bad} is not a percentage: use values from 0 to 100, for example --loss 0,0.1,1");
    }
    args.hosts.each(|host| compare(args, host, plot))
}

/// Measures the direct connection and every tunnel in a lab of its own. All labs are up at the same
/// time, but only one is measured at a time.
fn compare(args: &Args, host: &HostSetup, plot: bool) -> Result<()> {
    let labs = ContestantLabs::start(&args.contestants, &host.lab(Some(LabOptions::DELAY)))?;
    labs.limit_rate(args.rate)?;
    let titles = args.loss.iter().map(|loss| format!("{loss} % lost")).collect();
    let sample = |contestant: &Contestant, column: usize| {
        let link = contestant.subject.lab().eth().link();
        link.set_loss(args.loss[column] / 100.0);
        let output = contestant.iperf3(args.seconds, &[]);
        // No losses while others are measured.
        link.set_loss(0.0);
        Ok(received(&output?)?.0)
    };
    let grid =
        Grid::measure(&labs.contestants, titles, args.runs, sample, |mbits| format!("{mbits:.1} Mbit/s"));
    println!("Mbit/s, median of {} runs of {} s (least–greatest)\n", args.runs, args.seconds);
    println!("{}", grid.against_direct(mbits));
    println!("{}", goals::markdown(&goals(&grid, &args.loss)));
    println!(
        "{}; {} Mbit/s, 20 ms of round trip, FIFO of 250 ms, no segmentation offload on the uplink; {}",
        machine::describe(),
        args.rate,
        host
    );
    if plot {
        for (column, loss) in args.loss.iter().enumerate() {
            let title = format!("{} Mbit/s, 20 ms, {loss} % lost", args.rate);
            let file = format!("lossy-{}", loss.to_string().replace('.', "-"));
            host.plot(Plot { file: &file, title, unit: "Mbit/s", bars: grid.bars(column, mbits) })?;
        }
    }
    labs.finish()
}

fn mbits(sample: &f64) -> Option<f64> {
    Some(*sample)
}

/// Returns the goals for mobile's speed: nearly all of a direct connection's at the same loss, and
/// no less than that of any competitor over TCP.
fn goals(grid: &Grid<f64>, losses: &[f64]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for (column, loss) in losses.iter().enumerate() {
        let (direct, ours) = (grid.median(0, column, mbits), grid.median(1, column, mbits));
        let ratio = |to: Option<f64>| ours.zip(to).map(|(ours, to)| ours / to);
        let part = if *loss == 0.0 { 0.97 } else { 0.9 };
        goals.push(Goal::at_least(format!("{loss} % lost: part of direct's speed"), part, ratio(direct)));
        let what = format!("{loss} % lost: times the speed of the best competitor over TCP");
        goals.push(Goal::at_least(what, 1.0, ratio(grid.best_over_tcp(column, mbits))));
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goal_compares_only_with_competitors_over_tcp() {
        let names = ["direct", "mobile", "wireguard-go", "vtun", "tinc-tcp"];
        let mut grid = Grid::new(vec!["1 % lost".to_owned()], names.into_iter());
        for (row, mbits) in grid.rows.iter_mut().zip([20.0, 60.0, 90.0, 30.0, 40.0]) {
            row.cells[0].samples.push(mbits);
        }
        let goals = goals::markdown(&goals(&grid, &[1.0]));
        assert!(goals.contains("part of direct's speed | ≥ 0.9 | 3.000 | met"), "{goals}");
        assert!(goals.contains("best competitor over TCP | ≥ 1 | 1.500 | met"), "{goals}");
    }
}
