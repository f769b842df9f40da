//! `cargo xtask bench table2`: the paper's table 2 (section 5.2), how many bytes on the network it
//! takes to carry 1 MiB.
//!
//! The benchmark counts bytes, so that other load on the machine matters little.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mobile_tests::competitors::CompetitorKind;
use mobile_tests::{Direction, LabOptions, PATIENCE, UplinkName, addr, finish_within, port, program};
use serde_json::Value;

use self::table::Row;
use super::machine;
use super::plot::Plot;
use super::subject::{CompetitorArgs, OURS, Subject};
use crate::shell::{self, step};

mod table;

/// Arguments of `cargo xtask bench table2`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs each measurement this many times; the tables show the median, the last one also least
    /// and greatest
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    competitors: CompetitorArgs,
}

/// The number of bytes that the measured process writes, as in the paper.
const LENGTH: usize = 1 << 20;

/// A way in which the measured process writes its data: Nagle's algorithm, the pace and the
/// contents.
pub(crate) struct WritePattern {
    title: &'static str,
    /// The file name of the plot.
    plot: &'static str,
    /// The pace, as the argument of `labtool write`.
    pace: &'static str,
    data: Data,
}

#[derive(Clone, Copy, PartialEq)]
enum Data {
    /// Random bytes, which no compression makes smaller.
    Random,
    /// The sources of this project, as an example of text.
    Text,
}

const WRITE_PATTERNS: [WritePattern; 5] = [
    WritePattern { title: "Nagle on", plot: "table2-nagle", pace: "nagle", data: Data::Random },
    WritePattern { title: "TCP_NODELAY", plot: "table2-nodelay", pace: "nodelay", data: Data::Random },
    WritePattern { title: "one write each 2 ms", plot: "table2-paced", pace: "paced", data: Data::Random },
    WritePattern { title: "text, Nagle on", plot: "table2-text", pace: "nagle", data: Data::Text },
    WritePattern {
        title: "text, one write each 2 ms",
        plot: "table2-text-paced",
        pace: "paced",
        data: Data::Text,
    },
];

/// The bytes of one run that devices have counted, each as sent and received.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// The bytes on the tunnel's device, sent and received; `None` without a tunnel. A large packet
    /// of segmentation offload counts with one header.
    virtual_device: Option<[u64; 2]>,
    /// The bytes on both uplinks, sent and received, with Ethernet headers.
    real: [u64; 2],
}

/// Measures the direct connection and every tunnel in a lab of its own. All labs are up at the same
/// time, but only one is measured at a time.
pub(crate) fn run(args: &Args, plot: bool) -> Result<()> {
    let mut everyone: Vec<(&str, Result<Subject>)> = Vec::new();
    everyone.push((CompetitorKind::DIRECT.name, start(Some(CompetitorKind::DIRECT))));
    everyone.push((OURS, start(None)));
    everyone.push((
        "mobile, zstd",
        Subject::ours_with(&LabOptions::default(), &[("compression", "zstd")]).and_then(prepare),
    ));
    for kind in args.competitors.chosen() {
        everyone.push((kind.name, start(Some(kind))));
    }
    let (mut subjects, mut refused) = (Vec::new(), Vec::new());
    for (name, started) in everyone {
        match started {
            Ok(subject) => subjects.push((name, subject)),
            Err(error) => refused.push(format!("{name}: not measured: {error:#}")),
        }
    }
    let rows = measure(&subjects, args.runs)?;
    println!("{}", table::paper(&rows, LENGTH));
    println!("{}", table::overhead(&rows, LENGTH));
    refused.iter().for_each(|line| println!("{line}"));
    println!(
        "{}; cubic in every namespace, 20 ms of round trip, no segmentation offload on the uplinks; median of {} runs \
         (least–greatest)",
        machine::describe(),
        args.runs
    );
    if plot {
        for (column, pattern) in WRITE_PATTERNS.iter().enumerate() {
            let title = format!("Bytes beyond those written, {}", pattern.title);
            let spread = |row: &Row| Some((row.name, table::spread(&row.columns[column], LENGTH)?));
            let bars = rows.iter().filter_map(spread).collect();
            Plot { file: pattern.plot, title, unit: "%", bars }.write()?;
        }
    }
    // Finish after the tables are printed, so that a warning does not discard figures that took
    // minutes.
    subjects.into_iter().try_for_each(|(_, subject)| subject.finish())
}

fn start(competitor: Option<&CompetitorKind>) -> Result<Subject> {
    prepare(Subject::start(competitor, &LabOptions::default())?)
}

/// Sets up a lab's uplinks as in the paper and writes the files with the data to send.
fn prepare(subject: Subject) -> Result<Subject> {
    for uplink in UplinkName::ALL {
        subject.lab().uplink(uplink).link().set_offload(false)?;
    }
    for data in [Data::Random, Data::Text] {
        fs::write(data.file(subject.lab().dir()), data.make()?)?;
    }
    Ok(subject)
}

/// Measures all contestants one after the other in each run, so that other load on the machine
/// disturbs all of them alike.
fn measure(subjects: &[(&'static str, Subject)], runs: u32) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = subjects.iter().map(|(name, _)| Row::new(name)).collect();
    for run in 1..=runs {
        for (column, pattern) in WRITE_PATTERNS.iter().enumerate() {
            for ((name, subject), row) in subjects.iter().zip(&mut rows) {
                let sample =
                    sample(subject, pattern).with_context(|| format!("{name}, {}", pattern.title))?;
                let over = table::over(&sample, LENGTH);
                step(&format!("run {run} of {runs}, {}, {name}: {over:+.1} %", pattern.title));
                row.columns[column].push(sample);
            }
        }
    }
    Ok(rows)
}

/// Writes the data once through a contestant's tunnel and returns by how much the devices' byte
/// counters grew.
fn sample(subject: &Subject, pattern: &WritePattern) -> Result<Sample> {
    let lab = subject.lab();
    let tool = program("labtool")?.display().to_string();
    let before = settled(subject)?;
    let mut command = subject.application(&tool);
    command
        .args(["write", pattern.pace, &format!("{}:{}", addr::SERVER4, port::DISCARD)])
        .arg(pattern.data.file(lab.dir()));
    finish_within(&mut command, None, PATIENCE)?.ok().context("labtool write")?;
    let after = settled(subject)?;
    let less = |after: [u64; 2], before: [u64; 2]| [0, 1].map(|way| after[way] - before[way]);
    Ok(Sample {
        virtual_device: after.virtual_device.zip(before.virtual_device).map(|(a, b)| less(a, b)),
        real: less(after.real, before.real),
    })
}

/// Returns the devices' byte counters once no packet is in flight.
fn settled(subject: &Subject) -> Result<Sample> {
    /// The time without a packet after which none is in flight: longer than a round trip and a
    /// delayed acknowledgement.
    const QUIET: Duration = Duration::from_millis(150);
    let end = Instant::now() + PATIENCE;
    let mut last = count(subject)?;
    loop {
        sleep(QUIET);
        let now = count(subject)?;
        if now == last {
            return Ok(now);
        }
        if Instant::now() > end {
            bail!("the uplink is never quiet");
        }
        last = now;
    }
}

fn count(subject: &Subject) -> Result<Sample> {
    let lab = subject.lab();
    let real = [Direction::Up, Direction::Down].map(|direction| {
        let links = UplinkName::ALL.iter().map(|&uplink| lab.uplink(uplink).link());
        links.map(|link| link.counters(direction).bytes).sum()
    });
    Ok(Sample { virtual_device: virtual_device(subject)?, real })
}

/// Returns the byte counters of the tunnel's device, by which the server is reached: sent and
/// received; `None` if the server is reached by an uplink.
fn virtual_device(subject: &Subject) -> Result<Option<[u64; 2]>> {
    let host = &subject.lab().host;
    let device = match subject {
        Subject::Ours(_) => "mobile0".to_owned(),
        Subject::Competitor(..) => {
            let route = host.run(&["ip", "route", "get", &addr::SERVER4.to_string()])?;
            let mut words = route.split_whitespace().skip_while(|&word| word != "dev").skip(1);
            words.next().with_context(|| format!("no device in {route}"))?.to_owned()
        }
    };
    if UplinkName::ALL.iter().any(|uplink| uplink.device() == device) {
        return Ok(None);
    }
    let output = host.run(&["ip", "-json", "-statistics", "link", "show", "dev", &device])?;
    let json: Value = serde_json::from_str(&output)?;
    let bytes = |way: &str| {
        let bytes = json.pointer(&format!("/0/stats64/{way}/bytes")).and_then(Value::as_u64);
        bytes.with_context(|| format!("no {way} bytes in {output}"))
    };
    // The kernel transmits into the device what the host sends.
    Ok(Some([bytes("tx")?, bytes("rx")?]))
}

impl Data {
    fn file(self, dir: &Path) -> PathBuf {
        dir.join(if self == Self::Random { "random.bin" } else { "text.bin" })
    }

    fn make(self) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(LENGTH);
        match self {
            Self::Random => {
                use std::io::Read as _;
                fs::File::open("/dev/urandom")?.take(LENGTH as u64).read_to_end(&mut bytes)?;
            }
            Self::Text => {
                let mut files = Vec::new();
                for folder in ["crates", "mobile-agent", "home-relay", "tests", "xtask"] {
                    sources(&shell::root().join(folder), &mut files)?;
                }
                files.sort();
                for file in files {
                    bytes.extend(fs::read(file)?);
                }
                bytes.truncate(LENGTH);
            }
        }
        if bytes.len() < LENGTH {
            bail!("only {} bytes to write", bytes.len());
        }
        Ok(bytes)
    }
}

/// Adds the source files in a folder and its subfolders to `found`.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
    Ok(())
}
