//! `cargo xtask bench connect`: what the eBPF programs cost ordinary and mobile processes at
//! connect() and at each packet, and how long `mobile run` takes to start a command.
//!
//! All compared figures are measured within one run in the order ABBA, so that a machine that
//! becomes slower or faster disturbs both sides of a comparison alike. A ratio is computed in each
//! round, and the median of all rounds counts.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mobile_tests::call_timing::{TimedCall, Timing};
use mobile_tests::{Lab, LineProcess, Testbed, root_programs};

use super::machine;
use super::stats::Spread;
use crate::setup::{self, Tool};
use crate::shell::step;

/// Arguments of `cargo xtask bench connect`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs this many rounds; each times every call twice with and twice without the agent, and
    /// twice in a mobile and twice in an ordinary process
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Starts each command this many times
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    starts: u32,
}

/// Other programs that run a command with changed networking, to compare with `mobile run`.
const TOOLS: [Tool; 2] = [
    Tool { program: "mptcpize", package: "mptcpize" },
    Tool { program: "proxychains4", package: "proxychains4" },
];

/// The time for the kernel's deferred work when an agent starts or stops: eBPF programs and maps
/// are freed after a grace period.
const SETTLE: Duration = Duration::from_millis(500);

/// The time of each call of [`TimedCall::ALL`], in the same order.
type Figures = [Figure; 3];

/// The median and the shortest time of many calls, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Figure {
    median: f64,
    least: f64,
}

/// Measures system calls and starts of commands, and prints a table of each.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::install(&TOOLS)?;
    let mut bed = Testbed::new()?;
    let (calls, foreign) = calls(&mut bed, args.rounds)?;
    let starts = starts(&bed, args.starts)?;
    println!(
        "| call on loopback | | median | ratio (least–greatest) | ratio of the shortest |\n| --- | --- | --- | --- | --- |"
    );
    calls.iter().for_each(|line| println!("{line}"));
    println!("\n| command | median | against `env` (least–greatest) |\n| --- | --- | --- |");
    starts.iter().for_each(|line| println!("{line}"));
    println!(
        "\n{}, load {}; {} rounds ABBA of 2000 calls; {} starts of each command in turn",
        machine::describe(),
        machine::load(),
        args.rounds,
        args.starts
    );
    if foreign > 0 {
        println!(
            "Other eBPF programs are attached at the root of the cgroup hierarchy: up to {foreign} at one hook while the agent was stopped. \
             They are part of every figure, so the ratios are nearer to 1 than without them: detach them and measure again."
        );
    }
    bed.finish()
}

/// Times the system calls, with the agent stopped and started again in each round.
///
/// Returns the table's rows, and the greatest number of eBPF programs of others at one hook of the
/// root cgroup.
fn calls(bed: &mut Testbed, rounds: u32) -> Result<(Vec<String>, u32)> {
    let mut ordinary = bed.ordinary_labtool(&["time-calls"])?;
    let (mut with_agent, mut mobile, mut foreign) = (Vec::new(), Vec::new(), 0);
    for round in 1..=rounds {
        let mut mobile_process = bed.mobile_labtool(&["time-calls"])?;
        let [a, b, c, d] = [
            take(&mut ordinary)?,
            take(&mut mobile_process)?,
            take(&mut mobile_process)?,
            take(&mut ordinary)?,
        ];
        mobile.push((mean(a, d), mean(b, c)));
        drop(mobile_process);
        let on = take(&mut ordinary)?;
        bed.agent.stop()?;
        bed.agent.cli(&["cleanup"])?.ok()?;
        std::thread::sleep(SETTLE);
        let first = take(&mut ordinary)?;
        // Counted only here, because the kernel may take a moment to detach the agent's programs.
        foreign = foreign.max(root_programs::count()?);
        let off = mean(first, take(&mut ordinary)?);
        bed.agent.start()?;
        bed.agent.wait_connected()?;
        std::thread::sleep(SETTLE);
        with_agent.push((off, mean(on, take(&mut ordinary)?)));
        step(&format!("round {round} of {rounds}"));
    }
    let mut lines = Vec::new();
    for (index, call) in TimedCall::ALL.into_iter().enumerate() {
        lines.push(line(call, index, "ordinary: with the agent / without", &with_agent)?);
        lines.push(line(call, index, "with the agent: mobile / ordinary", &mobile)?);
    }
    Ok((lines, foreign))
}

/// Returns a row of the table of calls. `pairs` has the figures of each round: first the base, then
/// the figures that are divided by it.
fn line(call: TimedCall, index: usize, what: &str, pairs: &[(Figures, Figures)]) -> Result<String> {
    let spread = |figure: &dyn Fn(Figure, Figure) -> f64| {
        let figures: Vec<f64> = pairs.iter().map(|(base, other)| figure(base[index], other[index])).collect();
        Spread::of(&figures).context("no rounds")
    };
    let (base, other) = (spread(&|base, _| base.median)?, spread(&|_, other| other.median)?);
    let ratio = spread(&|base, other| other.median / base.median)?;
    let shortest = spread(&|_, other| other.least)?.least / spread(&|base, _| base.least)?.least;
    Ok(format!(
        "| {} | {what} | {:.0} / {:.0} ns | {} | {shortest:.3} |",
        call.name(),
        other.median,
        base.median,
        format_ratio(ratio)
    ))
}

/// Times `true`, started by each of several commands such as `mobile run`, and returns the table's
/// rows.
fn starts(bed: &Testbed, count: u32) -> Result<Vec<String>> {
    let named = NamedNetns::new(&bed.lab)?;
    let binary = bed.agent.binary().display().to_string();
    let config = bed.agent.config().display().to_string();
    let handle = format!("--net=/run/netns/{}", named.name);
    let commands: [(&str, Vec<&str>); 6] = [
        ("`env true`", vec!["env", "true"]),
        ("`mobile run true`", vec![&binary, "run", "--config", &config, "true"]),
        ("`ip netns exec X true`", vec!["ip", "netns", "exec", &named.name, "true"]),
        ("`nsenter --net=… true`", vec!["nsenter", &handle, "true"]),
        ("`mptcpize run true`", vec!["mptcpize", "run", "true"]),
        ("`proxychains4 -q true`", vec!["proxychains4", "-q", "true"]),
    ];
    let mut starter = bed.ordinary_labtool(&["time-calls"])?;
    let mut took: Vec<Vec<f64>> = vec![Vec::new(); commands.len()];
    for _ in 0..count {
        for (figures, (_, argv)) in took.iter_mut().zip(&commands) {
            figures.push(ask(&mut starter, &format!("run\t{}", argv.join("\t")))?.median);
        }
    }
    let base = took[0].clone();
    let rows = commands.iter().zip(took).map(|((name, _), figures)| {
        let ratios: Vec<f64> = figures.iter().zip(&base).map(|(one, base)| one / base).collect();
        let (median, ratio) = Spread::of(&figures).zip(Spread::of(&ratios)).context("no starts")?;
        Ok(format!("| {name} | {:.2} ms | {} |", median.median / 1e6, format_ratio(ratio)))
    });
    rows.collect()
}

/// A named network namespace, as `ip netns` needs it. Dropping it removes the name.
struct NamedNetns<'a> {
    lab: &'a Lab,
    name: String,
}

impl<'a> NamedNetns<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let name = lab.name().to_owned();
        lab.host.run(&["ip", "netns", "add", &name])?;
        Ok(Self { lab, name })
    }
}

impl Drop for NamedNetns<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.lab.host.run(&["ip", "netns", "delete", &self.name]) {
            eprintln!("the network namespace {} is left: {error:#}", self.name);
        }
    }
}

fn take(process: &mut LineProcess) -> Result<Figures> {
    let mut figures = Figures::default();
    for (figure, call) in figures.iter_mut().zip(TimedCall::ALL) {
        *figure = ask(process, call.name())?;
    }
    Ok(figures)
}

fn ask(process: &mut LineProcess, order: &str) -> Result<Figure> {
    let took: Timing =
        process.request(order)?.parse().with_context(|| format!("labtool's answer to {order:?}"))?;
    Ok(Figure { median: took.median as f64, least: took.least as f64 })
}

/// Returns, for each call, the mean of the medians of `a` and `b`, and the lesser of their shortest
/// times.
fn mean(a: Figures, b: Figures) -> Figures {
    std::array::from_fn(|index| Figure {
        median: (a[index].median + b[index].median) / 2.0,
        least: a[index].least.min(b[index].least),
    })
}

fn format_ratio(ratio: Spread) -> String {
    format!("{:.3} ({:.3}–{:.3})", ratio.median, ratio.least, ratio.greatest)
}
