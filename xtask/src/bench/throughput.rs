//! `cargo xtask bench throughput`: what the tunnel costs a bulk transfer, in speed and in processor time.

use std::time::Duration;

use anyhow::Result;
use mobile_tests::LabOptions;
use mobile_tests::peers::PeerKind;

pub(super) use self::subject::received;
use self::subject::{Sample, Subject};
use self::table::Row;
use super::{handover, machine};
use crate::shell::step;

mod subject;
mod table;

/// How long, how often, and who else.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs of each measurement; the table shows their median, least and greatest.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seconds each run takes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Without the peers.
    #[arg(long)]
    no_peers: bool,
    /// Only these peers, by the names of the table.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
}

/// What is measured.
pub(crate) struct Shape {
    title: &'static str,
    /// iperf3's flags for it.
    flags: &'static [&'static str],
    /// The uplink's delay in each direction.
    delay: Duration,
}

const SHAPES: [Shape; 4] = [
    Shape { title: "one stream", flags: &[], delay: Duration::ZERO },
    Shape { title: "reverse", flags: &["--reverse"], delay: Duration::ZERO },
    Shape { title: "four streams", flags: &["--parallel", "4"], delay: Duration::ZERO },
    Shape { title: "one stream, 20 ms", flags: &[], delay: Duration::from_millis(10) },
];

/// Everyone in a lab of their own, all of them up at the same time; only one is measured at a time.
pub(crate) fn run(args: &Args) -> Result<()> {
    let options = LabOptions { delay: Duration::ZERO, ..LabOptions::default() };
    let mut subjects = vec![Subject::direct(&options)?, Subject::ours(&options)?];
    let mut refused = Vec::new();
    for kind in PeerKind::TUNNELS.iter().filter(|kind| args.wants(kind)) {
        let started = match handover::refusal(kind) {
            Some(reason) => Err(anyhow::anyhow!(reason)),
            None => Subject::peer(kind, &options),
        };
        match started {
            Ok(subject) => subjects.push(subject),
            Err(error) => refused.push(format!("{}: not measured: {error:#}", kind.name)),
        }
    }
    let rows = measure(&subjects, args);
    println!("Mbit/s, median of {} runs of {} s (least–greatest)\n", args.runs, args.seconds);
    println!("{}", table::speed(&rows));
    println!(
        "Seconds of processor time for each GB, at the host + at the relay = together (least–greatest)\n"
    );
    println!("{}", table::effort(&rows));
    refused.iter().for_each(|line| println!("{line}"));
    let congestion_control =
        options.congestion_control.unwrap_or_else(|| "the kernel's congestion control".to_owned());
    println!("{}; {congestion_control} in every namespace", machine::describe());
    // After the tables: figures that took minutes are not thrown away for a warning.
    subjects.into_iter().try_for_each(Subject::finish)
}

impl Args {
    fn wants(&self, kind: &PeerKind) -> bool {
        let named = |name: &String| name.eq_ignore_ascii_case(kind.name);
        !self.no_peers && (self.peers.is_empty() || self.peers.iter().any(named))
    }
}

/// Everyone one after the other in each run, so that what disturbs the machine disturbs all.
fn measure(subjects: &[Subject], args: &Args) -> Vec<Row> {
    let mut rows: Vec<Row> = subjects.iter().map(|subject| Row::new(subject.name())).collect();
    for run in 1..=args.runs {
        for (column, shape) in SHAPES.iter().enumerate() {
            for (subject, row) in subjects.iter().zip(&mut rows) {
                let said = match subject.sample(shape, args.seconds) {
                    Ok(sample) => {
                        let text = told(&sample);
                        row.cells[column].samples.push(sample);
                        text
                    }
                    Err(error) => {
                        row.cells[column].failures += 1;
                        format!("failed: {error:#}")
                    }
                };
                step(&format!("run {run} of {}, {}, {}: {said}", args.runs, shape.title, subject.name()));
            }
        }
    }
    rows
}

/// One sample, for who watches.
fn told(sample: &Sample) -> String {
    match sample.effort {
        Some([host, relay]) => format!("{:.0} Mbit/s, {host:.2} + {relay:.2} s/GB", sample.mbits),
        None => format!("{:.0} Mbit/s", sample.mbits),
    }
}
