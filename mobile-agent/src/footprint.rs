//! The record of the names of an agent's kernel objects. `mobile cleanup` uses it when the
//! configuration is broken or has changed since the agent started.

use std::path::{Path, PathBuf};

use mobile_io::state_file::StateFile;
use serde::{Deserialize, Serialize};

use crate::config::{self, Bpf, Cgroup, Config, Control, Routing, Tunnel};

/// The directory of the records: beside the agent's default socket, on a file system that a reboot
/// empties, as it does the kernel.
pub(crate) const DIR: &str = "/run/mobile";

/// The kernel's own routing tables (rtnetlink(7)): unspecified, default, main, local.
const RESERVED_TABLES: [u32; 4] = [0, 253, 254, 255];

/// The names of one set of kernel objects, and the control socket of the agent that made them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Footprint {
    device: String,
    table: u32,
    relay_table: u32,
    mark: u32,
    mark_mask: u32,
    rule_priority: u32,
    cgroup: Option<PathBuf>,
    pin_dir: PathBuf,
    socket: PathBuf,
}

impl Footprint {
    /// Returns the names that an agent with this configuration uses.
    pub(crate) fn of(config: &Config) -> Self {
        let routing = &config.routing;
        Self {
            device: config.tunnel.device.clone(),
            table: routing.table,
            relay_table: routing.relay_table,
            mark: routing.mark,
            mark_mask: routing.mark_mask,
            rule_priority: routing.rule_priority,
            cgroup: config.cgroup.path.clone(),
            pin_dir: config.bpf.pin_dir.clone(),
            socket: config.control.socket.clone(),
        }
    }

    /// Returns a configuration that names this set, for cleaning up.
    pub(crate) fn into_config(self) -> Config {
        let Self { device, table, relay_table, mark, mark_mask, rule_priority, cgroup, pin_dir, socket } =
            self;
        Config {
            tunnel: Tunnel { device, ..Tunnel::default() },
            routing: Routing { table, relay_table, mark, mark_mask, rule_priority, ..Routing::default() },
            cgroup: Cgroup { path: cgroup, ..Cgroup::default() },
            bpf: Bpf { pin_dir },
            control: Control { socket, ..Control::default() },
            ..Config::default()
        }
    }
}

/// Returns the record of the agent that this configuration file configures, or the default one.
pub(crate) fn record(config: Option<&Path>) -> std::io::Result<StateFile> {
    StateFile::new(Path::new(DIR), config.unwrap_or(Path::new(config::DEFAULT_PATH)))
}

/// Returns what may be in the kernel: first the names that hold now, then others on record.
///
/// A broken configuration is a warning: what the agent recorded is enough, and the default names
/// are for the default file.
pub(crate) fn known(path: Option<&Path>, record: &StateFile) -> anyhow::Result<Vec<Config>> {
    let recorded = read(record);
    let mut names = Vec::new();
    match Config::load(path) {
        Ok(config) => names.push(Footprint::of(&config)),
        Err(error) if recorded.is_empty() && path.is_some() => {
            return Err(error.context("cannot clean up: no agent left a record of what it made"));
        }
        Err(error) => {
            let error = crate::cli::story(&error);
            tracing::warn!(error, "broken configuration: cleaning up what the agent recorded");
            if recorded.is_empty() {
                names.push(Footprint::of(&Config::without_file()));
            }
        }
    }
    Ok(with(names, recorded))
}

/// Returns the names that the agent running with `config` may have in the kernel: its own, then
/// others on record.
pub(crate) fn of_running(config: &Config, record: &StateFile) -> Vec<Config> {
    with(vec![Footprint::of(config)], read(record))
}

fn read(record: &StateFile) -> Vec<Footprint> {
    let mut recorded: Vec<Footprint> = record.read().unwrap_or_else(|error| {
        tracing::warn!(%error, "cleaning up without what the agent recorded");
        Vec::new()
    });
    // The confined agent can write to the directory, and `cleanup` acts on its content as root.
    recorded.retain(|footprint| {
        let tables = [footprint.table, footprint.relay_table];
        let is_ours = tables.iter().all(|table| !RESERVED_TABLES.contains(table))
            && mobile_io::tun::is_device_name(&footprint.device);
        if !is_ours {
            tracing::warn!(?footprint, "ignoring a record that no agent writes");
        }
        is_ours
    });
    recorded
}

fn with(mut names: Vec<Footprint>, recorded: Vec<Footprint>) -> Vec<Config> {
    for footprint in recorded {
        if !names.contains(&footprint) {
            names.push(footprint);
        }
    }
    names.into_iter().map(Footprint::into_config).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGED: &str = "[tunnel]\ndevice = \"m1\"\n[routing]\ntable = 8\nrelay_table = 9\nmark = 0x10\nmark_mask = 0xff\n\
                           rule_priority = 9\n[cgroup]\npath = \"/c\"\n[bpf]\npin_dir = \"/b\"\n\
                           [control]\nsocket = \"/s\"\n";

    fn devices(configs: &[Config]) -> Vec<&str> {
        configs.iter().map(|config| config.tunnel.device.as_str()).collect()
    }

    #[test]
    fn a_broken_file_leaves_what_is_on_record_and_a_changed_one_adds_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        let record = StateFile::new(dir.path(), &file).unwrap();
        std::fs::write(&file, CHANGED).unwrap();
        let config = Config::load(Some(&file)).unwrap();
        let footprint = Footprint::of(&config);
        assert_eq!(Footprint::of(&footprint.clone().into_config()), footprint);

        std::fs::write(&file, "[rooting]\n").unwrap();
        let error = known(Some(&file), &record).unwrap_err();
        assert!(format!("{error:#}").contains("rooting"), "{error:#}");
        record.add(footprint).unwrap();
        assert_eq!(devices(&known(Some(&file), &record).unwrap()), ["m1"]);
        std::fs::write(&file, "[tunnel]\ndevice = \"m2\"\n").unwrap();
        assert_eq!(devices(&known(Some(&file), &record).unwrap()), ["m2", "m1"]);
        std::fs::write(&file, CHANGED).unwrap();
        assert_eq!(devices(&known(Some(&file), &record).unwrap()), ["m1"]);
    }
}
