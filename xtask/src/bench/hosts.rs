//! The TCP congestion control of a lab's hosts.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mobile_tests::LabOptions;

use super::plot::Plot;
use crate::shell::step;

/// Arguments of benchmarks that choose the TCP congestion controls to measure with.
#[derive(clap::Args)]
pub(crate) struct HostArgs {
    /// Measures with each of these congestion controls in turn, on every host, each in labs of its
    /// own. mobile's paths begin with the chosen one, or with cubic if it is bbr, and switch to bbr
    /// when they are bandwidth-limited. [default: cubic, as distributions have it, then this
    /// kernel's own]
    #[arg(long = "congestion-control", value_name = "NAME", value_delimiter = ',')]
    congestion_controls: Vec<String>,
}

impl HostArgs {
    /// Calls `measure` with each chosen congestion control in turn; a failure does not prevent the
    /// others.
    pub(crate) fn each(&self, mut measure: impl FnMut(&HostSetup) -> Result<()>) -> Result<()> {
        let setting = |name: &str| {
            let path = format!("/proc/sys/net/ipv4/tcp_{name}congestion_control");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let (own, known) = (setting("")?, setting("available_")?);
        let usual = [LabOptions::CONGESTION_CONTROL, own.trim()];
        let mut chosen: Vec<&str> = self.congestion_controls.iter().map(String::as_str).collect();
        if chosen.is_empty() {
            chosen.extend(usual);
        }
        if let Some(unknown) = chosen.iter().find(|name| known.split_whitespace().all(|one| one != **name)) {
            bail!("--congestion-control `{unknown}`: this kernel has {}", known.trim());
        }
        let mut seen = HashSet::new();
        chosen.retain(|name| seen.insert(*name));
        let outcomes: Vec<_> = chosen
            .into_iter()
            .map(|name| {
                let host = HostSetup { congestion_control: name.to_owned() };
                step(&host.to_string());
                measure(&host).with_context(|| host.to_string())
            })
            .collect();
        outcomes.into_iter().collect()
    }
}

/// The settings of every host of a lab: the TCP congestion control.
pub(crate) struct HostSetup {
    congestion_control: String,
}

impl HostSetup {
    /// Returns the options of a lab of such hosts, whose uplinks have the one-way `delay`, or are
    /// plain veth pairs if it is `None`.
    pub(crate) fn lab(&self, delay: Option<Duration>) -> LabOptions {
        let congestion_control = Some(self.congestion_control.clone());
        LabOptions { delay, congestion_control, ..LabOptions::default() }
    }

    /// Writes a plot to a file with the congestion control in its name.
    pub(crate) fn plot(&self, plot: Plot<'_>) -> Result<()> {
        let name = &self.congestion_control;
        if name == LabOptions::CONGESTION_CONTROL {
            return plot.write();
        }
        let (file, title) = (format!("{}-{name}", plot.file), format!("{}, {name}", plot.title));
        Plot { file: &file, title, ..plot }.write()
    }
}

impl fmt::Display for HostSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on every host", self.congestion_control)
    }
}
