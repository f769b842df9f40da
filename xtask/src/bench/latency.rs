//! `cargo xtask bench latency`: the round trip of a keystroke, on an idle uplink and during a bulk
//! transfer that fills the uplink.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mobile_tests::competitors::CompetitorKind;
use mobile_tests::{LabOptions, PATIENCE, Process, Services, addr, finish_within, port, program};
use serde_json::Value;

use self::table::{Figures, Sample};
use super::hosts::{HostArgs, HostSetup};
use super::machine;
use super::plot::Plot;
use super::subject::{CompetitorArgs, OURS, Subject};
use crate::shell::step;

mod table;

/// Arguments of `cargo xtask bench latency`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs each measurement this many times; the table shows median, least and greatest
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Lets each measurement take this many seconds; a run has one for each load
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..))]
    seconds: u32,
    /// Limits the uplink to this rate in Mbit/s, in each direction
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    competitors: CompetitorArgs,
}

/// The interval of keystrokes in milliseconds, as in a fast typist's burst with a terminal's echo.
const INTERVAL_MS: &str = "20";

/// The time after which a bulk transfer has reached its rate; iperf3 omits this time from its
/// figures too.
const WARM_UP: Duration = Duration::from_secs(3);

/// The loads during the keystrokes: a title and iperf3's flags, or `None` for no bulk transfer.
const BESIDE: [(&str, Option<&[&str]>); 3] =
    [("idle", None), ("upload", Some(&[])), ("download", Some(&["--reverse"]))];

/// The file names of the plots, one for each load.
const PLOTS: [&str; 3] = ["latency-idle", "latency-upload", "latency-download"];

pub(crate) fn run(args: &Args, plot: bool) -> Result<()> {
    args.hosts.each(|host| compare(args, host, plot))
}

/// Measures the direct connection, mobile and the competitors in turn, run by run, so that other
/// load on the machine disturbs all of them alike.
fn compare(args: &Args, host: &HostSetup, plot: bool) -> Result<()> {
    // Direct, mobile, then the competitors.
    let mut everyone = vec![Some(CompetitorKind::DIRECT), None];
    everyone.extend(args.competitors.chosen().map(Some));
    let mut columns: Vec<Figures> = everyone
        .iter()
        .map(|competitor| Figures::new(competitor.map_or(OURS, |competitor| competitor.name)))
        .collect();
    for run in 1..=args.runs {
        for (column, competitor) in columns.iter_mut().zip(&everyone) {
            let samples = measure(args, host, *competitor).with_context(|| column.name)?;
            let told: Vec<String> =
                BESIDE.iter().zip(&samples).map(|((title, _), sample)| format!("{title} {sample}")).collect();
            step(&format!("run {run} of {}, {}: {}", args.runs, column.name, told.join("; ")));
            column.runs.push(samples);
        }
    }
    if plot {
        for (index, (title, _)) in BESIDE.iter().enumerate() {
            let title = format!("A keystroke, {title}, 99th percentile");
            let bar =
                |column: &Figures| Some((column.name, column.spread(index, |sample| Some(sample.p99))?));
            let bars = columns.iter().filter_map(bar).collect();
            host.plot(Plot { file: PLOTS[index], title, unit: "ms", bars })?;
        }
    }
    print!("{}", table::markdown(&columns, &BESIDE.map(|(title, _)| title)));
    println!(
        "\n{}; {} Mbit/s, 20 ms of round trip, FIFO of 250 ms; {}; median of {} runs of {} s \
         (least–greatest)",
        machine::describe(),
        args.rate,
        host,
        args.runs,
        args.seconds
    );
    Ok(())
}

/// Measures one run in a lab of its own, under each load; `None` as the competitor means mobile.
fn measure(args: &Args, host: &HostSetup, competitor: Option<&CompetitorKind>) -> Result<Vec<Sample>> {
    let subject = Subject::start(competitor, &host.lab(Some(LabOptions::DELAY)))?;
    let lab = subject.lab();
    // A real uplink's FIFO holds packets that the kernel has already segmented.
    lab.eth().link().set_offload(false)?;
    lab.eth().link().set_rate(Some(args.rate * 1_000_000));
    let server = Services::iperf3(&lab.server, lab.dir())?;
    let samples = BESIDE.iter().map(|(title, flags)| {
        let mut bulk = flags.map(|flags| bulk(args, &subject, title, flags)).transpose()?;
        let trips = keystrokes(args, &subject)?;
        let mbits = match &mut bulk {
            None => None,
            Some(bulk) => {
                let status = bulk.wait(PATIENCE)?;
                let said = bulk.output();
                if !status.success() {
                    bail!("iperf3 beside {title}: {said}");
                }
                Some(super::throughput::received(&said)?.0)
            }
        };
        Ok(Sample { mbits, ..trips })
    });
    let samples = samples.collect::<Result<Vec<Sample>>>()?;
    drop(server);
    subject.finish()?;
    Ok(samples)
}

/// Starts a bulk transfer that outlasts the measured keystrokes.
fn bulk(args: &Args, subject: &Subject, title: &str, flags: &[&str]) -> Result<Process> {
    // One second longer than the keystrokes.
    let seconds = (args.seconds + 1).to_string();
    let mut iperf3 = subject.application("iperf3");
    iperf3
        .args(["--json", "--client", &addr::SERVER4.to_string(), "--time", &seconds])
        .args(["--omit", &WARM_UP.as_secs().to_string()])
        .args(flags);
    let output = subject.lab().dir().join(format!("iperf3-{title}.txt"));
    let process = Process::start("iperf3", &mut iperf3, &output)?;
    sleep(WARM_UP);
    Ok(process)
}

fn keystrokes(args: &Args, subject: &Subject) -> Result<Sample> {
    let tool = program("labtool")?.display().to_string();
    let echo = format!("{}:{}", addr::SERVER4, port::ECHO);
    let mut command = subject.application(&tool);
    command.args(["keystrokes", &echo, INTERVAL_MS, &args.seconds.to_string()]);
    let patience = PATIENCE + Duration::from_secs(args.seconds.into());
    let said = finish_within(&mut command, None, patience)?.ok().context("labtool keystrokes")?;
    let json: Value = serde_json::from_str(said.trim()).with_context(|| format!("labtool said {said:?}"))?;
    let field = |name: &str| json[name].as_f64().with_context(|| format!("no {name} in {said}"));
    Ok(Sample { median: field("median_ms")?, p99: field("p99_ms")?, mbits: None })
}
