//! The contestants of a benchmark (direct connection, mobile, competitors), each in a lab of its
//! own.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use mobile_tests::competitors::{Competitor, CompetitorKind};
use mobile_tests::{Lab, LabOptions, PATIENCE, Process, Services, Testbed, addr, finish_within};

use super::cpu_usage::CpuUsage;
use crate::setup::{self, Tool};

/// The name of this project in the tables.
pub(crate) const OURS: &str = "mobile";

/// Arguments of benchmarks that choose the competitors.
#[derive(clap::Args)]
pub(crate) struct CompetitorArgs {
    /// Leaves out the competitors; a direct connection is always measured
    #[arg(long)]
    no_peers: bool,
    /// Measures only these competitors
    #[arg(long, value_delimiter = ',', ignore_case = true, value_parser = peer_names())]
    peers: Vec<String>,
}

/// Arguments of benchmarks that choose what is measured besides the direct connection and mobile:
/// competitors and other builds of mobile, all of which are up at the same time.
#[derive(clap::Args)]
pub(crate) struct ContestantArgs {
    #[command(flatten)]
    competitors: CompetitorArgs,
    /// Also measures the programs `mobile` and `home-relay` in these folders, named after the
    /// folders, to compare a change with the build before it
    #[arg(long, value_delimiter = ',')]
    builds: Vec<PathBuf>,
}

impl ContestantArgs {
    /// Returns the name and the folder of each other build. Checks them before any lab is started.
    fn named_builds(&self) -> Result<Vec<(&'static str, PathBuf)>> {
        let direct_and_ours = [CompetitorKind::DIRECT.name, OURS];
        let mut names: Vec<&str> =
            direct_and_ours.into_iter().chain(self.competitors.chosen().map(|kind| kind.name)).collect();
        let mut builds = Vec::new();
        for folder in &self.builds {
            let folder = folder.canonicalize().with_context(|| format!("--builds {}", folder.display()))?;
            for program in ["mobile", "home-relay"] {
                ensure!(folder.join(program).is_file(), "there is no {program} in {}", folder.display());
            }
            let name = folder.file_name().and_then(OsStr::to_str).context("a build's folder has no name")?;
            // The name lives as long as the process, as the names of all competitors do.
            let name: &'static str = name.to_owned().leak();
            ensure!(!names.contains(&name), "{name} would be two rows: builds are named after their folders");
            names.push(name);
            builds.push((name, folder));
        }
        Ok(builds)
    }
}

fn peer_names() -> impl clap::builder::TypedValueParser<Value = String> {
    PossibleValuesParser::new(CompetitorKind::TUNNELS.iter().map(|kind| kind.name))
        .map(|name| name.to_lowercase())
}

impl CompetitorArgs {
    /// Returns the chosen competitors that are tunnels. MPTCP is left out, because on one uplink it
    /// is a direct connection.
    pub(crate) fn chosen(&self) -> impl Iterator<Item = &'static CompetitorKind> {
        let named = |kind: &&CompetitorKind| self.peers.iter().any(|name| name == kind.name);
        CompetitorKind::TUNNELS
            .iter()
            .filter(move |kind| !self.no_peers && (self.peers.is_empty() || named(kind)))
    }
}

/// A running contestant: mobile, a competitor or the direct connection, with its lab.
pub(crate) enum Subject {
    /// `mobile` and `home-relay` in their lab.
    Ours(Box<Testbed>),
    /// A competitor or the direct connection, and its lab. The competitor is dropped first.
    Competitor(Box<dyn Competitor>, Box<Lab>),
}

impl Subject {
    /// Starts a lab with a competitor, whose programs are installed if they are missing, or with
    /// mobile if `competitor` is `None`.
    pub(crate) fn start(competitor: Option<&CompetitorKind>, options: &LabOptions) -> Result<Self> {
        let Some(kind) = competitor else { return Ok(Self::Ours(Box::new(Testbed::with(options)?))) };
        if let Some(reason) = unavailable_reason(kind) {
            bail!(reason);
        }
        let lab = Lab::with(options)?;
        let mut competitor = kind.make();
        competitor.start(&lab)?;
        Ok(Self::Competitor(competitor, Box::new(lab)))
    }

    /// Starts mobile with these settings of `[tunnel]` at the agent and at the relay.
    pub(crate) fn ours_with(options: &LabOptions, tunnel: &[(&str, &str)]) -> Result<Self> {
        let mut bed = Testbed::installed(options)?;
        bed.configure_tunnel(tunnel)?;
        bed.start()?;
        Ok(Self::Ours(Box::new(bed)))
    }

    /// Returns whether the contestant is a build of this project.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// Returns the lab in which the contestant runs.
    pub(crate) fn lab(&self) -> &Lab {
        match self {
            Self::Ours(bed) => &bed.lab,
            Self::Competitor(_, lab) => lab,
        }
    }

    /// Returns a command that runs an application on the mobile host through the contestant's
    /// tunnel.
    pub(crate) fn application(&self, program: &str) -> Command {
        match self {
            Self::Ours(bed) => bed.agent.run(&[program]),
            Self::Competitor(_, lab) => lab.host.command(program),
        }
    }

    /// Returns the IDs of the tunnel's processes at the mobile host and at the relay; `None`
    /// without a tunnel.
    pub(crate) fn processes(&self) -> Option<[i32; 2]> {
        let [relay, host] = match self {
            Self::Ours(bed) => [bed.relay.pid()?, bed.agent.pid()?],
            Self::Competitor(competitor, _) => competitor.processes()?,
        };
        Some([host, relay])
    }

    /// Returns the processor usage so far of the tunnel's processes and their children, at the
    /// mobile host and at the relay; `None` without a tunnel.
    pub(crate) fn cpu_usage(&self) -> Result<Option<[CpuUsage; 2]>> {
        let Some([host, relay]) = self.processes() else { return Ok(None) };
        Ok(Some([CpuUsage::of_tree(host)?, CpuUsage::of_tree(relay)?]))
    }

    /// Ends the contestant and its lab. Fails if a build of this project left anything behind or
    /// logged a warning.
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Self::Ours(bed) => bed.finish(),
            Self::Competitor(competitor, lab) => {
                drop(competitor);
                lab.passed();
                Ok(())
            }
        }
    }
}

/// Installs a competitor's programs if possible, and returns the reason why it cannot run on this
/// machine, or `None`.
pub(crate) fn unavailable_reason(competitor: &CompetitorKind) -> Option<String> {
    let tools: Vec<Tool> =
        competitor.tools.iter().map(|(program, package)| Tool { program, package }).collect();
    let installed = setup::install(&tools).err().map(|error| format!("{error:#}"));
    installed.or_else(|| competitor.unavailable_reason())
}

/// A contestant that is measured with iperf3.
pub(crate) struct Contestant {
    /// The contestant's name in the tables.
    pub(crate) name: &'static str,
    _server: Process,
    pub(crate) subject: Subject,
}

/// All contestants of a benchmark. They are up at the same time; only one is measured at a time.
pub(crate) struct ContestantLabs {
    pub(crate) contestants: Vec<Contestant>,
    /// The competitors that could not be started, each as a line with the reason.
    refused: Vec<String>,
}

impl ContestantLabs {
    /// Starts the labs of the direct connection, mobile, the chosen competitors and other builds.
    pub(crate) fn start(contestants: &ContestantArgs, options: &LabOptions) -> Result<Self> {
        let builds = contestants.named_builds()?;
        let mut labs = Self { contestants: Vec::new(), refused: Vec::new() };
        labs.contestants.push(Contestant::start(Some(CompetitorKind::DIRECT), options)?);
        labs.contestants.push(Contestant::start(None, options)?);
        for kind in contestants.competitors.chosen() {
            match Contestant::start(Some(kind), options) {
                Ok(contestant) => labs.contestants.push(contestant),
                Err(error) => labs.refused.push(format!("{}: not measured: {error:#}", kind.name)),
            }
        }
        for (name, folder) in builds {
            let options = LabOptions { programs: Some(folder), ..options.clone() };
            labs.contestants.push(Contestant { name, ..Contestant::start(None, &options)? });
        }
        Ok(labs)
    }

    /// Limits the first uplink of each contestant to `mbits` Mbit/s in each direction, and turns
    /// its segmentation offload off, so that no packet is larger than the MTU.
    pub(crate) fn limit_rate(&self, mbits: u64) -> Result<()> {
        self.contestants.iter().try_for_each(|contestant| {
            let link = contestant.subject.lab().eth().link();
            link.set_offload(false)?;
            link.set_rate(Some(mbits * 1_000_000));
            Ok(())
        })
    }

    /// Ends all contestants. Call this after the tables are printed, so that a warning does not
    /// discard figures that took minutes.
    pub(crate) fn finish(self) -> Result<()> {
        self.refused.iter().for_each(|line| println!("{line}"));
        self.contestants.into_iter().try_for_each(|contestant| contestant.subject.finish())
    }
}

impl Contestant {
    fn start(competitor: Option<&'static CompetitorKind>, options: &LabOptions) -> Result<Self> {
        let subject = Subject::start(competitor, options)?;
        let server = Services::iperf3(&subject.lab().server, subject.lab().dir())?;
        Ok(Self { name: competitor.map_or(OURS, |kind| kind.name), _server: server, subject })
    }

    /// Runs iperf3 for `seconds` with these flags through the contestant's tunnel and returns its
    /// JSON output.
    pub(crate) fn iperf3(&self, seconds: u32, flags: &[&str]) -> Result<String> {
        self.run_iperf3("--time", &seconds.to_string(), Duration::from_secs(seconds.into()), flags)
    }

    /// Runs iperf3 for a number of bytes in iperf3's notation, such as `100M`, with these flags and
    /// returns its JSON output.
    pub(crate) fn iperf3_of(&self, bytes: &str, flags: &[&str]) -> Result<String> {
        self.run_iperf3("--bytes", bytes, PATIENCE, flags)
    }

    fn run_iperf3(&self, bound: &str, value: &str, lasting: Duration, flags: &[&str]) -> Result<String> {
        let mut iperf3 = self.subject.application("iperf3");
        iperf3.args(["--json", "--client", &addr::SERVER4.to_string(), bound, value]).args(flags);
        finish_within(&mut iperf3, None, PATIENCE + lasting)?.ok().context("iperf3")
    }
}
