//! `cargo xtask bench pps`: how many small datagrams per second pass without loss.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mobile_tests::datagrams::{Datagrams, LENGTH, Trial};
use mobile_tests::{addr, port, program};

use super::goals::{self, Goal};
use super::grid::Grid;
use super::hosts::{HostArgs, HostSetup};
use super::machine;
use super::plot::Plot;
use super::stats::Spread;
use super::subject::{Contestant, ContestantArgs, ContestantLabs};

/// Arguments of `cargo xtask bench pps`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Searches the highest rate without loss this many times; the table shows median, least and
    /// greatest
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Sends for this many milliseconds in each trial of a search
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(50..))]
    milliseconds: u64,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    contestants: ContestantArgs,
}

/// Rates in datagrams per second: the first one that the first search tries, and the one below
/// which a search gives up.
const FIRST: f64 = 10_000.0;
const LEAST: f64 = 100.0;

/// The precision of a search for the highest rate without loss: the ratio of a rate that loses
/// datagrams to the rate that is reported.
const NEAR: f64 = 1.08;

/// The search for the highest rate without loss of one contestant: the sender and receiver of
/// datagrams, and the result of the last search.
struct RateSearch {
    datagrams: Datagrams,
    found: Option<f64>,
}

pub(crate) fn run(args: &Args, plot: bool) -> Result<()> {
    args.hosts.each(|host| compare(args, host, plot))
}

/// Measures the direct connection and every tunnel in a lab of its own. All labs are up at the same
/// time, but only one is measured at a time.
fn compare(args: &Args, host: &HostSetup, plot: bool) -> Result<()> {
    let labs = ContestantLabs::start(&args.contestants, &host.lab(None))?;
    let mut searches: HashMap<&str, RateSearch> = HashMap::new();
    for contestant in &labs.contestants {
        searches.insert(contestant.name, RateSearch::start(contestant)?);
    }
    let lasting = Duration::from_millis(args.milliseconds);
    let search = |contestant: &Contestant, _| search_of(&mut searches, contestant)?.highest(lasting);
    let told = |rate: &f64| format!("{rate:.0} a second");
    let title = vec!["datagrams a second".to_owned()];
    let grid = Grid::measure(&labs.contestants, title, args.runs, search, told);
    let best = grid.competitors(0, rate).max_by(|a, b| a.1.total_cmp(&b.1));

    let at = best.map(|(_, rate)| rate).or(grid.median(1, 0, rate).map(|ours| ours / 3.0)).unwrap_or(FIRST);
    let trial =
        |contestant: &Contestant, _| search_of(&mut searches, contestant)?.datagrams.trial(at, 2 * lasting);
    let told = |trial: &Trial| format!("{:.3} % lost", trial.loss() * 100.0);
    let title = vec![format!("% lost at {at:.0} a second")];
    let losses = Grid::measure(&labs.contestants, title, args.runs, trial, told);

    println!(
        "The highest rate at which no more than 1 of 1,000 datagrams of {LENGTH} bytes was lost, and the part of direct's; \
         median of {} searches (least–greatest)\n",
        args.runs
    );
    println!("{}", grid.against_direct(rate));
    println!(
        "{}",
        losses.table(0, |cell, _| {
            let Spread { median, least, greatest } = cell.spread(lost)?;
            Some(format!("{median:.3} ({least:.3}–{greatest:.3})"))
        })
    );
    println!("{}", goals::markdown(&goals(&grid, &losses)));
    println!("{}; no delay, no limit of the uplink's rate; {host}", machine::describe());
    if plot {
        let title = format!("UDP, {LENGTH} bytes, highest rate without loss");
        let bars = grid.bars(0, rate);
        host.plot(Plot { file: "pps", title, unit: "datagrams a second", bars })?;
    }
    drop(searches);
    labs.finish()
}

fn search_of<'a>(
    searches: &'a mut HashMap<&str, RateSearch>,
    contestant: &Contestant,
) -> Result<&'a mut RateSearch> {
    searches.get_mut(contestant.name).context("this contestant has no sender")
}

fn rate(sample: &f64) -> Option<f64> {
    Some(*sample)
}

fn lost(trial: &Trial) -> Option<f64> {
    Some(trial.loss() * 100.0)
}

/// Returns the goals for mobile: three times the best competitor's rate, and at the competitor's
/// rate no more loss than the competitor has.
fn goals(rates: &Grid<f64>, losses: &Grid<Trial>) -> Vec<Goal> {
    let ours = rates.median(1, 0, rate);
    let Some((name, best)) = rates.competitors(0, rate).max_by(|a, b| a.1.total_cmp(&b.1)) else {
        return Vec::new();
    };
    let theirs = losses.competitors(0, lost).find(|(other, _)| *other == name).map_or(0.0, |(_, lost)| lost);
    vec![
        Goal::at_least(
            format!("times {name}'s rate, the best competitor's"),
            3.0,
            ours.map(|ours| ours / best),
        ),
        Goal::at_most(format!("% lost at {name}'s rate"), theirs, losses.median(1, 0, lost)),
    ]
}

impl RateSearch {
    fn start(contestant: &Contestant) -> Result<Self> {
        let tool = program("labtool")?.display().to_string();
        let mut sender = contestant.subject.application(&tool);
        sender.args(["datagrams", &format!("{}:{}", addr::SERVER4, port::DATAGRAMS)]);
        let mut counter = contestant.subject.lab().server.command(&tool);
        counter.args(["count", &format!("0.0.0.0:{}", port::DATAGRAMS)]);
        Ok(Self { datagrams: Datagrams::start(&mut sender, &mut counter)?, found: None })
    }

    /// Returns the highest rate without loss in datagrams per second, with the precision [`NEAR`].
    /// Later searches begin at the last result.
    fn highest(&mut self, lasting: Duration) -> Result<f64> {
        let (from, step) = self.found.map_or((FIRST, 2.0), |found| (found, 1.25));
        let found = search(from, step, |rate| {
            // A single failure may be the machine's fault, so try twice.
            Ok(self.datagrams.trial(rate, lasting)?.is_lossless()
                || self.datagrams.trial(rate, lasting)?.is_lossless())
        })?;
        self.found = Some(found);
        Ok(found)
    }
}

/// Returns the highest rate at which `passes` returns true.
///
/// Multiplies or divides `from` by `step` until one rate passes and the next does not, then bisects
/// between the two.
fn search(from: f64, step: f64, mut passes: impl FnMut(f64) -> Result<bool>) -> Result<f64> {
    let (mut low, mut high);
    if passes(from)? {
        (low, high) = (from, from * step);
        while passes(high)? {
            (low, high) = (high, high * step);
        }
    } else {
        (low, high) = (from / step, from);
        while low > LEAST && !passes(low)? {
            (low, high) = (low / step, low);
        }
    }
    while high / low > NEAR {
        let middle = (low * high).sqrt();
        *(if passes(middle)? { &mut low } else { &mut high }) = middle;
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_ends_just_below_the_rate_that_loses() {
        for limit in [150.0, 9_000.0, 10_000.0, 345_678.0] {
            for step in [2.0, 1.25] {
                let mut trials = 0;
                let found = search(FIRST, step, |rate| {
                    trials += 1;
                    Ok(rate <= limit)
                });
                let found = found.unwrap();
                assert!(found <= limit && found * NEAR >= limit, "{limit}: {found}");
                assert!(trials < 30, "{trials}");
            }
        }
    }
}
