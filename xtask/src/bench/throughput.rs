//! `cargo xtask bench throughput`: what the tunnel costs a bulk transfer, in speed and processor
//! time.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use mobile_tests::LabOptions;
use serde_json::Value;

use super::goals::{self, Goal};
use super::grid::{Grid, GridCell};
use super::hosts::{HostArgs, HostSetup};
use super::machine;
use super::plot::Plot;
use super::stats::Spread;
use super::subject::{Contestant, ContestantArgs, ContestantLabs};

/// Arguments of `cargo xtask bench throughput`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs each measurement this many times; the table shows median, least and greatest
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Lets each run take this many seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Runs only these measurements
    #[arg(long, value_delimiter = ',')]
    only: Vec<StreamSetup>,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    contestants: ContestantArgs,
}

/// A setup of iperf3 and the lab: number and direction of streams, and the uplink's delay.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StreamSetup {
    One,
    Reverse,
    Four,
    Delayed,
    FourDelayed,
}

impl StreamSetup {
    fn title(self) -> &'static str {
        match self {
            Self::One => "one stream",
            Self::Reverse => "reverse",
            Self::Four => "four streams",
            Self::Delayed => "one stream, 20 ms",
            Self::FourDelayed => "four streams, 20 ms",
        }
    }

    /// Returns iperf3's flags for this setup.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::One | Self::Delayed => &[],
            Self::Reverse => &["--reverse"],
            Self::Four | Self::FourDelayed => &["--parallel", "4"],
        }
    }

    /// Returns the one-way delay of the uplink, or `None` for a plain veth pair.
    fn delay(self) -> Option<Duration> {
        matches!(self, Self::Delayed | Self::FourDelayed).then_some(LabOptions::DELAY)
    }

    /// Returns the wanted ratios of mobile's speed to the direct connection's and to the best
    /// competitor's.
    fn wanted(self) -> [f64; 2] {
        match self {
            Self::One | Self::Reverse => [0.4, 8.0],
            Self::Four => [0.18, 8.0],
            Self::Delayed => [0.9, 2.5],
            Self::FourDelayed => [0.7, 2.5],
        }
    }

    fn plot(self) -> &'static str {
        match self {
            Self::One => "throughput-one-stream",
            Self::Reverse => "throughput-reverse",
            Self::Four => "throughput-four-streams",
            Self::Delayed => "throughput-20ms",
            Self::FourDelayed => "throughput-four-streams-20ms",
        }
    }
}

/// The figures of one run of iperf3.
#[derive(Clone, Copy)]
struct Sample {
    /// The rate in Mbit/s that the receiver counted.
    mbits: f64,
    /// Processor time of the tunnel's processes in seconds per GB, at the host and at the relay;
    /// `None` without a tunnel.
    cpu_seconds: Option<[f64; 2]>,
}

/// Measures the setups with delay in other labs than those without.
///
/// A tunnel's connection is older than the measurement, and its congestion control relies for ten
/// seconds on the shortest round trip it has seen. So a delay must exist before the tunnel
/// connects.
pub(crate) fn run(args: &Args, plot: bool) -> Result<()> {
    let chosen = |setup: &StreamSetup| args.only.is_empty() || args.only.contains(setup);
    let (near, far): (Vec<StreamSetup>, Vec<StreamSetup>) = StreamSetup::value_variants()
        .iter()
        .copied()
        .filter(chosen)
        .partition(|setup| setup.delay().is_none());
    args.hosts.each(|host| {
        let mut groups =
            [&near, &far].into_iter().filter_map(|setups| Some((setups, setups.first()?.delay())));
        groups.try_for_each(|(setups, delay)| measure(args, setups, host, delay, plot))
    })
}

/// Measures the direct connection and every tunnel in a lab of its own. All labs are up at the same
/// time, but only one is measured at a time.
fn measure(
    args: &Args,
    setups: &[StreamSetup],
    host: &HostSetup,
    delay: Option<Duration>,
    plot: bool,
) -> Result<()> {
    let labs = ContestantLabs::start(&args.contestants, &host.lab(delay))?;
    let titles = setups.iter().map(|setup| setup.title().to_owned()).collect();
    let one = |contestant: &Contestant, column: usize| sample(contestant, setups[column], args.seconds);
    let grid = Grid::measure(&labs.contestants, titles, args.runs, one, format_sample);
    println!("Mbit/s, median of {} runs of {} s (least–greatest)\n", args.runs, args.seconds);
    println!("{}", grid.against_direct(mbits));
    println!(
        "Seconds of processor time for each GB, at the host + at the relay = together (least–greatest)\n"
    );
    println!("{}", grid.table(1, |cell, _| cpu_seconds(cell)));
    println!("{}", goals::markdown(&goals(&grid, setups)));
    println!("{}; {host}", machine::describe());
    if plot {
        for (column, setup) in setups.iter().enumerate() {
            let title = format!("Throughput, {}", setup.title());
            let bars = grid.bars(column, mbits);
            host.plot(Plot { file: setup.plot(), title, unit: "Mbit/s", bars })?;
        }
    }
    labs.finish()
}

/// Runs iperf3 once through a contestant's tunnel and returns speed and processor time.
fn sample(contestant: &Contestant, setup: StreamSetup, seconds: u32) -> Result<Sample> {
    let before = contestant.subject.cpu_usage()?;
    let said = contestant.iperf3(seconds, setup.flags())?;
    let after = contestant.subject.cpu_usage()?;
    let (mbits, bytes) = received(&said)?;
    let cpu_seconds = before.zip(after).map(|(before, after)| {
        // Nanoseconds per byte equal seconds per GB.
        [0, 1].map(|side| after[side].nanoseconds_since(&before[side]) / bytes.max(1.0))
    });
    Ok(Sample { mbits, cpu_seconds })
}

/// Formats one sample for the progress output.
fn format_sample(sample: &Sample) -> String {
    match sample.cpu_seconds {
        Some([host, relay]) => format!("{:.0} Mbit/s, {host:.2} + {relay:.2} s/GB", sample.mbits),
        None => format!("{:.0} Mbit/s", sample.mbits),
    }
}

fn mbits(sample: &Sample) -> Option<f64> {
    Some(sample.mbits)
}

fn cpu_seconds(cell: &GridCell<Sample>) -> Option<String> {
    let of = |figure: fn([f64; 2]) -> f64| cell.spread(|sample| sample.cpu_seconds.map(figure));
    let (host, relay) = (of(|[host, _]| host)?, of(|[_, relay]| relay)?);
    let Spread { median, least, greatest } = of(|[host, relay]| host + relay)?;
    Some(format!("{:.2} + {:.2} = {median:.2} ({least:.2}–{greatest:.2})", host.median, relay.median))
}

/// Returns the goals for mobile's speed in each setup: the wanted ratio to the direct connection's
/// speed and to the best competitor's, with the ratio measured.
fn goals(grid: &Grid<Sample>, setups: &[StreamSetup]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for (column, setup) in setups.iter().enumerate() {
        let [part, times] = setup.wanted();
        let (direct, ours) = (grid.median(0, column, mbits), grid.median(1, column, mbits));
        let ratio = |to: Option<f64>| ours.zip(to).map(|(ours, to)| ours / to);
        goals.push(Goal::at_least(format!("{}: part of direct's speed", setup.title()), part, ratio(direct)));
        let best = grid.competitors(column, mbits).max_by(|a, b| a.1.total_cmp(&b.1));
        let name = best.map_or("the best competitor", |(name, _)| name);
        let what = format!("{}: times {name}'s speed, the best competitor's", setup.title());
        goals.push(Goal::at_least(what, times, ratio(best.map(|(_, speed)| speed))));
    }
    goals
}

/// Returns the rate in Mbit/s and the number of bytes that the receiver counted, from iperf3's JSON
/// output.
pub(super) fn received(text: &str) -> Result<(f64, f64)> {
    let json: Value = serde_json::from_str(text).context("iperf3 printed no JSON")?;
    let number = |name: &str| {
        let value = json.pointer(&format!("/end/sum_received/{name}")).and_then(Value::as_f64);
        value.with_context(|| {
            format!("iperf3 reports no result: {}", json.get("error").unwrap_or(&Value::Null))
        })
    };
    Ok((number("bits_per_second")? / 1e6, number("bytes")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_iperf3_is_reported() {
        let error = received(r#"{"error":"unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"), "{error}");
        let json = r#"{"end":{"sum_received":{"bits_per_second":2.5e9,"bytes":1e9}}}"#;
        assert_eq!(received(json).unwrap(), (2500.0, 1e9));
    }

    #[test]
    fn processor_time_counts_both_ends_and_goals_are_ratios() {
        let mut grid =
            Grid::new(vec!["one stream".to_owned()], ["direct", "mobile", "slow", "slower"].into_iter());
        let sample = |mbits, cpu_seconds| Sample { mbits, cpu_seconds };
        let runs = [[1.0, 2.0], [2.0, 4.0], [1.5, 2.0]].map(|cpu_seconds| sample(500.0, Some(cpu_seconds)));
        grid.rows[0].cells[0].samples = vec![sample(1000.0, None)];
        grid.rows[1].cells[0].samples = runs.to_vec();
        grid.rows[2].cells[0].samples = vec![sample(100.0, None)];
        grid.rows[3].cells[0].samples = vec![sample(50.0, None)];
        let table = grid.table(1, |cell, _| cpu_seconds(cell));
        assert!(table.contains("| mobile | 1.50 + 2.00 = 3.50 (3.00–6.00) |"), "{table}");
        let goals = goals::markdown(&goals(&grid, &[StreamSetup::One]));
        assert!(goals.contains("part of direct's speed | ≥ 0.4 | 0.500 | met"), "{goals}");
        assert!(
            goals.contains("times slow's speed, the best competitor's | ≥ 8 | 5.000 | **missed**"),
            "{goals}"
        );
    }
}
