//! `cargo xtask bench cpu`: processor time per byte, at an equal rate and at full speed, and
//! memory.
//!
//! At full speed a fast tunnel has larger packets and fewer wake-ups; at an equal rate all tunnels
//! have the same work.

use anyhow::{Context as _, Result};

use super::cpu_usage::peak_of_tree;
use super::goals::{self, Goal};
use super::grid::{Grid, GridCell};
use super::hosts::{HostArgs, HostSetup};
use super::machine;
use super::plot::Plot;
use super::stats::Spread;
use super::subject::{Contestant, ContestantArgs, ContestantLabs};
use super::throughput::received;

/// Arguments of `cargo xtask bench cpu`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs each measurement this many times; the table shows median, least and greatest
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Uses this rate in Mbit/s as the equal rate
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Carries this many megabytes in each run
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    megabytes: u32,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    contestants: ContestantArgs,
}

/// The figures of one run of iperf3.
struct Sample {
    /// The rate in Mbit/s that the receiver counted.
    mbits: f64,
    /// Processor time of the tunnel in seconds per GB, at the host and at the relay; `None` without
    /// a tunnel.
    cpu_seconds: Option<[f64; 2]>,
    /// Peak memory of the tunnel so far in MiB, at the host and at the relay; `None` without a
    /// tunnel.
    memory: Option<[f64; 2]>,
}

pub(crate) fn run(args: &Args, plot: bool) -> Result<()> {
    args.hosts.each(|host| compare(args, host, plot))
}

/// Measures the direct connection and every tunnel in a lab of its own. All labs are up at the same
/// time, but only one is measured at a time.
fn compare(args: &Args, host: &HostSetup, plot: bool) -> Result<()> {
    let labs = ContestantLabs::start(&args.contestants, &host.lab(None))?;
    let titles = vec![format!("{} Mbit/s", args.rate), "full speed".to_owned()];
    let rates = [format!("{}M", args.rate), "0".to_owned()];
    let one = |contestant: &Contestant, column: usize| sample(contestant, &rates[column], args.megabytes);
    let grid = Grid::measure(&labs.contestants, titles.clone(), args.runs, one, format_sample);
    println!(
        "Seconds of processor time for each GB, at the host + at the relay = together; median of {} runs of {} MB \
         (least–greatest)\n",
        args.runs, args.megabytes
    );
    println!("{}", grid.table(1, |cell, _| cpu_seconds(cell)));
    println!(
        "Mbit/s reached\n\n{}",
        grid.table(0, |cell, _| Some(cell.spread(|it| Some(it.mbits))?.to_string()))
    );
    println!(
        "MiB of memory at the most until then (VmHWM), host + relay\n\n{}",
        grid.table(1, |cell, _| memory(cell))
    );
    println!("{}", goals::markdown(&goals(&grid, &titles)));
    println!("{}; no delay, no limit of the uplink's rate; {host}", machine::describe());
    if plot {
        for (column, file) in ["cpu-equal-rate", "cpu-full-speed"].into_iter().enumerate() {
            let title = format!("Processor time, {}", titles[column]);
            let bars = grid.bars(column, total_cpu_seconds);
            host.plot(Plot { file, title, unit: "seconds for each GB", bars })?;
        }
    }
    labs.finish()
}

/// Runs iperf3 once as an upload at the given rate through one contestant's tunnel.
fn sample(contestant: &Contestant, rate: &str, megabytes: u32) -> Result<Sample> {
    let before = contestant.subject.cpu_usage()?;
    let output = contestant.iperf3_of(&format!("{megabytes}M"), &["--bitrate", rate])?;
    let after = contestant.subject.cpu_usage()?;
    let (mbits, bytes) = received(&output)?;
    let cpu_seconds = before.zip(after).map(|(before, after)| {
        // Nanoseconds per byte equal seconds per GB.
        [0, 1].map(|side| after[side].nanoseconds_since(&before[side]) / bytes.max(1.0))
    });
    let memory = contestant.subject.processes().map(|pids| -> Result<[f64; 2]> {
        let [host, relay] = pids.map(|pid| peak_of_tree(pid).context("memory"));
        Ok([host?, relay?].map(|bytes| bytes as f64 / f64::from(1 << 20)))
    });
    Ok(Sample { mbits, cpu_seconds, memory: memory.transpose()? })
}

fn format_sample(sample: &Sample) -> String {
    match sample.cpu_seconds {
        Some([host, relay]) => format!("{:.0} Mbit/s, {host:.2} + {relay:.2} s/GB", sample.mbits),
        None => format!("{:.0} Mbit/s", sample.mbits),
    }
}

fn total_cpu_seconds(sample: &Sample) -> Option<f64> {
    sample.cpu_seconds.map(|[host, relay]| host + relay)
}

fn cpu_seconds(cell: &GridCell<Sample>) -> Option<String> {
    let host = cell.spread(|sample| Some(sample.cpu_seconds?[0]))?.median;
    let relay = cell.spread(|sample| Some(sample.cpu_seconds?[1]))?.median;
    let Spread { median, least, greatest } = cell.spread(total_cpu_seconds)?;
    Some(format!("{host:.2} + {relay:.2} = {median:.2} ({least:.2}–{greatest:.2})"))
}

fn memory(cell: &GridCell<Sample>) -> Option<String> {
    let greatest = |side: usize| Some(cell.spread(|sample| Some(sample.memory?[side]))?.greatest);
    Some(format!("{:.1} + {:.1}", greatest(0)?, greatest(1)?))
}

/// Returns the goals for mobile's processor time: an eighth of the best competitor's.
fn goals(grid: &Grid<Sample>, titles: &[String]) -> Vec<Goal> {
    let goal = |(column, title): (usize, &String)| {
        let best = grid.competitors(column, total_cpu_seconds).min_by(|a, b| a.1.total_cmp(&b.1));
        let ratio = grid.median(1, column, total_cpu_seconds).zip(best).map(|(ours, (_, best))| ours / best);
        let name = best.map_or("the best competitor", |(name, _)| name);
        Goal::at_most(
            format!("{title}: part of {name}'s processor time, the best competitor's"),
            0.125,
            ratio,
        )
    };
    titles.iter().enumerate().map(goal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_competitor_uses_the_least_processor_time() {
        let titles = vec!["full speed".to_owned()];
        let mut grid = Grid::new(titles.clone(), ["direct", "mobile", "a", "b"].into_iter());
        for (row, cpu_seconds) in grid.rows.iter_mut().zip([None, Some(1.0), Some(10.0), Some(4.0)]) {
            let cpu_seconds = cpu_seconds.map(|cpu_seconds| [cpu_seconds / 2.0, cpu_seconds / 2.0]);
            row.cells[0].samples.push(Sample { mbits: 1.0, cpu_seconds, memory: cpu_seconds });
        }
        let goals = goals::markdown(&goals(&grid, &titles));
        assert!(
            goals
                .contains("part of b's processor time, the best competitor's | ≤ 0.125 | 0.250 | **missed**"),
            "{goals}"
        );
        assert_eq!(cpu_seconds(&grid.rows[1].cells[0]).unwrap(), "0.50 + 0.50 = 1.00 (1.00–1.00)");
        assert_eq!(memory(&grid.rows[1].cells[0]).unwrap(), "0.5 + 0.5");
    }
}
