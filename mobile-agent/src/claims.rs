//! The kernel objects and paths that a running agent claims for itself, so that a second agent on
//! the machine is refused before it takes one of them over.
//!
//! The claims are in the registry of running agents, whose locks end with their processes. What an
//! agent leaves when it has ended belongs to nobody: the next agent adopts it.

mod conflict;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf, absolute};

use anyhow::Context as _;
use mobile_host::in_use::retry_while_in_use;
use mobile_host::netns;
use mobile_host::registry::{Registration, Registry, RegistryError, Running};
use mobile_transport::keys::PublicKey;
use serde::{Deserialize, Serialize};

pub(crate) use self::conflict::{Conflict, Setting};
use crate::config::{Config, DEFAULT_PATH, Routing};
use crate::footprint;
use crate::selection::cgroup::MobileCgroup;

/// The kernel objects and paths of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// The configuration file of the agent.
    config: PathBuf,
    /// The inode number of the agent's network namespace, to which the device and routes belong.
    netns: u64,
    /// The public key of the agent, if it is known.
    key: Option<PublicKey>,
    device: String,
    routes: RouteClaims,
    pin_dir: PathBuf,
    /// The mobile cgroup; `None` without a cgroup2 mount.
    cgroup: Option<PathBuf>,
    slice: Option<PathBuf>,
    socket: PathBuf,
}

/// The numbers of the MOBILE route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RouteClaims {
    table: u32,
    relay_table: u32,
    mark: u32,
    mark_mask: u32,
    rule_priority: u32,
}

/// A running agent that has claimed what this configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InUse {
    /// The process ID of the agent.
    pub(crate) pid: u32,
    /// The configuration file of the agent.
    pub(crate) config: PathBuf,
    /// The network namespace of the agent if it is another one than that of this process.
    pub(crate) netns: Option<u64>,
    /// Whether the agent runs with this very configuration file, in this network namespace.
    pub(crate) is_own: bool,
    /// The settings that name what the agent has claimed; not empty.
    pub(crate) conflicts: Vec<Conflict>,
}

impl Claims {
    /// Returns the claims of an agent with this configuration; `path` is the configuration file, or
    /// the default one if `None`, and `key` the agent's public key, if it is known.
    pub(crate) fn of(config: &Config, path: Option<&Path>, key: Option<PublicKey>) -> Self {
        let Routing { table, relay_table, mark, mark_mask, rule_priority, .. } = config.routing;
        let located =
            MobileCgroup::location(config.cgroup.path.as_deref(), config.cgroup.slice.as_deref()).ok();
        let (cgroup, slice) = located.map_or((None, None), |(dir, slice)| (Some(dir), Some(slice)));
        Self {
            config: resolved(path.unwrap_or(Path::new(DEFAULT_PATH))),
            netns: netns::id().unwrap_or_default(),
            key,
            device: config.tunnel.device.clone(),
            routes: RouteClaims { table, relay_table, mark, mark_mask, rule_priority },
            pin_dir: resolved(&config.bpf.pin_dir),
            cgroup: cgroup.as_deref().map(resolved),
            slice: slice.as_deref().map(resolved),
            socket: resolved(&config.control.socket),
        }
    }

    /// Registers these claims for this process until it ends.
    ///
    /// Fails if a running agent has claimed a part of them, and waits up to 1 s for that agent to
    /// end. Blocks the thread.
    pub(crate) fn register(&self) -> anyhow::Result<Registration> {
        let registered = retry_while_in_use(
            || {
                registry().register(self, |own, running| {
                    own.conflicting(running).into_iter().next().map_or(Ok(()), Err)
                })
            },
            |error| matches!(error, RegistryError::Refused(_)),
        );
        match registered {
            Err(RegistryError::Refused(in_use)) => Err(in_use.into()),
            other => other.context("cannot find out which agents run on this machine"),
        }
    }

    /// Returns the running agents, except this process, that have claimed a part of these claims.
    /// Only root may ask.
    pub(crate) fn in_use(&self) -> std::io::Result<Vec<InUse>> {
        Ok(self.conflicting(&registry().others::<Self>()?))
    }

    fn conflicting(&self, running: &[Running<Self>]) -> Vec<InUse> {
        let in_use = |agent: &Running<Self>| {
            let other = &agent.uses;
            let conflicts = conflict::between(self, other);
            (!conflicts.is_empty()).then(|| InUse {
                pid: agent.pid,
                config: other.config.clone(),
                netns: (other.netns != self.netns).then_some(other.netns),
                is_own: other.netns == self.netns && other.config == self.config,
                conflicts,
            })
        };
        running.iter().filter_map(in_use).collect()
    }
}

impl InUse {
    /// Returns whether the agent has claimed what this setting names.
    pub(crate) fn has(&self, setting: Setting) -> bool {
        self.conflicts.iter().any(|conflict| conflict.setting == setting)
    }

    /// Returns the part that concerns these settings.
    pub(crate) fn only(&self, settings: &[Setting]) -> Self {
        let mut part = self.clone();
        part.conflicts.retain(|conflict| settings.contains(&conflict.setting));
        part
    }

    /// Returns the settings with their values and the agent that uses them, as the beginning of a
    /// sentence.
    pub(crate) fn what(&self) -> String {
        let settings: Vec<String> = self.conflicts.iter().map(Conflict::to_string).collect();
        let verb = if settings.len() == 1 { "is" } else { "are" };
        format!("{} {verb} in use by {}", listed(&settings), self.owner())
    }

    /// Returns the agent's process ID, configuration and, if it is another one, network namespace.
    pub(crate) fn owner(&self) -> String {
        let netns = self.netns.map_or_else(String::new, |id| format!(" in network namespace {id}"));
        format!("agent {} ({}){netns}", self.pid, self.config.display())
    }

    /// Returns what the user of this configuration can do.
    pub(crate) fn next_step(&self) -> String {
        let mut names: Vec<String> = self.conflicts.iter().map(|it| it.setting.to_string()).collect();
        names.dedup();
        let another = if names.len() == 1 { "another value" } else { "other values" };
        format!("set {another} for {} in this configuration, or stop that agent", listed(&names))
    }
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_own {
            return write!(
                f,
                "already running: {} uses this configuration; see `mobile status`",
                self.owner()
            );
        }
        write!(f, "{}: {}", self.what(), self.next_step())
    }
}

impl std::error::Error for InUse {}

fn registry() -> Registry {
    Registry::new(Path::new(footprint::DIR))
}

/// Returns the path by which every agent names the same file; the file need not exist.
fn resolved(path: &Path) -> PathBuf {
    let whole = absolute(path).unwrap_or_else(|_| path.to_owned());
    // Resolve the longest part that exists: an agent that has not started yet has no pins.
    for existing in whole.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(existing), whole.strip_prefix(existing)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    whole
}

fn listed(items: &[String]) -> String {
    match items {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => items.concat(),
    }
}

#[cfg(test)]
mod tests;
