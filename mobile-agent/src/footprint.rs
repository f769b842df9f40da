//! Records the names of an agent's kernel objects on disk.
//!
//! Verbs of users who may not read the configuration find the agent by them, and `mobile cleanup`
//! uses them when the configuration is broken or has changed since the agent
//! started.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use mobile_host::control::{Client, ControlError};
use mobile_host::state_file::StateFile;
use serde::{Deserialize, Serialize};

use crate::config::{self, Bpf, Cgroup, Config, Control, Routing, Tunnel};

/// The directory of the files that record kernel objects. A reboot empties the directory, as it
/// removes the kernel objects.
pub(crate) const DIR: &str = "/run/mobile";

/// The numbers of the kernel's own routing tables (rtnetlink(7)), which no agent uses: unspecified,
/// default, main, local.
const RESERVED_TABLES: [u32; 4] = [0, 253, 254, 255];

/// The names and numbers of the kernel objects of one agent, and its control socket.
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
    /// Returns the names of the kernel objects of an agent with this configuration.
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

    /// Returns a configuration with these names of kernel objects, for cleaning up.
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

/// Returns the file that records the kernel objects of the agent with this configuration file, or
/// with the default one if `None`.
pub(crate) fn state_file(config: Option<&Path>) -> std::io::Result<StateFile> {
    StateFile::new(Path::new(DIR), config.unwrap_or(Path::new(config::DEFAULT_PATH)))
}

/// Returns whether the configuration file exists and this user may not read it.
pub(crate) fn is_unreadable(config: Option<&Path>) -> bool {
    let opened = std::fs::File::open(config.unwrap_or(Path::new(config::DEFAULT_PATH)));
    opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// Returns the configuration for a verb that asks the running agent and needs little else.
///
/// An ordinary user may not read the file that `mobile enroll` wrote, and somebody may be editing
/// it. The names that the agent has recorded, which every user may read, then stand in for the
/// file, and if there are none, the defaults stand in for a default file that may not be read.
pub(crate) fn for_client(path: Option<&Path>) -> anyhow::Result<Config> {
    let error = match Config::load(path) {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    let recorded = state_file(path).and_then(|file| file.read::<Footprint>()).unwrap_or_default().pop();
    if !is_unreadable(path) && recorded.is_none() {
        return Err(error);
    }
    let file = path.unwrap_or(Path::new(config::DEFAULT_PATH));
    let environment = Config::try_without_file(file)?;
    let names_socket = std::env::var_os(mobile_control::SOCKET_VARIABLE).is_some();
    match recorded {
        Some(recorded) => {
            let mut config = recorded.into_config();
            config.file = environment.file;
            if names_socket {
                config.control = environment.control;
            }
            Ok(config)
        }
        None if path.is_none() || names_socket => Ok(environment),
        None => Err(error.context(format!(
            "no agent has recorded its control socket: name the socket in {}",
            mobile_control::SOCKET_VARIABLE
        ))),
    }
}

/// Connects to the running agent at the control socket `socket` of the configuration at `path`. If
/// no agent answers there, tries the sockets that an agent with this file has recorded, because the
/// file may have changed since the agent started.
pub(crate) fn connect(path: Option<&Path>, socket: &Path) -> Result<Client, ControlError> {
    let connected = Client::connect(socket);
    let is_named = std::env::var_os(mobile_control::SOCKET_VARIABLE).is_some();
    if is_named || !matches!(connected, Err(ControlError::NotRunning { .. })) {
        return connected;
    }
    let recorded = state_file(path).and_then(|file| file.read::<Footprint>()).unwrap_or_default();
    let other = recorded.iter().filter(|recorded| recorded.socket != socket);
    other.rev().find_map(|recorded| Client::connect(&recorded.socket).ok()).map_or(connected, Ok)
}

/// Returns configurations that name all objects that may be in the kernel: the present
/// configuration first, then those with the names recorded on disk.
///
/// A broken configuration causes a warning only, because the recorded names suffice. Without
/// recorded names, the default names are used in place of a broken default file.
pub(crate) fn for_cleanup(path: Option<&Path>, state_file: &StateFile) -> anyhow::Result<Vec<Config>> {
    let recorded = read_recorded(state_file);
    let mut names = Vec::new();
    match Config::load(path) {
        Ok(config) => names.push(Footprint::of(&config)),
        Err(error) if recorded.is_empty() && path.is_some() => {
            return Err(error.context(
                "cannot clean up: the configuration is broken, and no agent recorded its kernel objects",
            ));
        }
        Err(error) => {
            let error = mobile_host::error_chain(&error);
            tracing::warn!(
                error,
                "broken configuration: cleaning up the kernel objects that the agent recorded"
            );
            if recorded.is_empty() {
                names.push(Footprint::of(&Config::without_file(Path::new(config::DEFAULT_PATH))));
            }
        }
    }
    Ok(with_recorded(names, recorded))
}

/// Returns configurations that name all objects that the agent running with `config` may have in
/// the kernel: those of `config` first, then those recorded on disk.
pub(crate) fn for_running(config: &Config, state_file: &StateFile) -> Vec<Config> {
    with_recorded(vec![Footprint::of(config)], read_recorded(state_file))
}

fn read_recorded(state_file: &StateFile) -> Vec<Footprint> {
    let mut recorded: Vec<Footprint> = state_file.read().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the recorded kernel objects: cleaning up without them");
        Vec::new()
    });
    // The confined agent can write to the directory, and `cleanup` acts on its content as root.
    recorded.retain(|footprint| {
        let tables = [footprint.table, footprint.relay_table];
        let is_plausible = tables.iter().all(|table| !RESERVED_TABLES.contains(table))
            && mobile_transport::tun::is_device_name(&footprint.device);
        if !is_plausible {
            tracing::warn!(?footprint, "ignoring recorded kernel objects that no agent makes");
        }
        is_plausible
    });
    recorded
}

fn with_recorded(mut names: Vec<Footprint>, recorded: Vec<Footprint>) -> Vec<Config> {
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
    fn recorded_names_replace_a_broken_file_and_supplement_a_changed_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        let state_file = StateFile::new(dir.path(), &file).unwrap();
        std::fs::write(&file, CHANGED).unwrap();
        let config = Config::load(Some(&file)).unwrap();
        let footprint = Footprint::of(&config);
        assert_eq!(Footprint::of(&footprint.clone().into_config()), footprint);

        std::fs::write(&file, "[rooting]\n").unwrap();
        let error = for_cleanup(Some(&file), &state_file).unwrap_err();
        assert!(format!("{error:#}").contains("rooting"), "{error:#}");
        state_file.add(footprint).unwrap();
        assert_eq!(devices(&for_cleanup(Some(&file), &state_file).unwrap()), ["m1"]);
        std::fs::write(&file, "[tunnel]\ndevice = \"m2\"\n").unwrap();
        assert_eq!(devices(&for_cleanup(Some(&file), &state_file).unwrap()), ["m2", "m1"]);
        std::fs::write(&file, CHANGED).unwrap();
        assert_eq!(devices(&for_cleanup(Some(&file), &state_file).unwrap()), ["m1"]);
    }
}
