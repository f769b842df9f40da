//! The `cleanup` command: removes the relay's kernel objects. After a failure it goes on with the
//! other objects, and it reports every failure.

use std::cell::Cell;
use std::path::Path;

use anyhow::{Context as _, bail};
use mobile_host::shutdown;
use mobile_host::state_file::StateFile;

use super::args::DEFAULT_PATH;
use crate::admin;
use crate::config::{self, Config};
use crate::footprint::{self, Footprint, Removed};

/// Removes the home virtual device (with its addresses and routes) and its nftables table, but no
/// other relay's; running it again is harmless.
///
/// Turns IP forwarding off again, with the sysctls set for it, if the relay turned it on: the relay
/// then dropped transit packets, so no other host can rely on forwarding by this one. With
/// `transit = "accept"` others may rely on it, and forwarding stays on.
///
/// With `unless_shutdown`, removes nothing while the machine shuts down.
pub(crate) fn run(path: &Path, unless_shutdown: bool) -> anyhow::Result<()> {
    if unless_shutdown && shutdown::is_under_way().context(
        "nothing removed, because systemd does not tell whether the machine is shutting down: run `home-relay cleanup`",
    )? {
        eprintln!("the machine is shutting down: nothing removed");
        return Ok(());
    }
    let record = footprint::state_file(path).context("cannot open the relay's state file")?;
    let names = names(path, &record)?;
    let file = mobile_host::config::identity(path);
    for footprint in &names {
        if admin::connect(&footprint.socket, &file)?.is_some() {
            bail!("the relay is running: stop it before `cleanup`, which removes its device");
        }
    }
    remove(&names, &record)
}

fn print_removed(removed: Removed<'_>) {
    match removed {
        Removed::Device(device) => eprintln!("removed device {device}"),
        Removed::Table(table) => eprintln!("removed table inet {table}"),
        Removed::Setting(name, [from, to]) => eprintln!("set sysctl {name} from {from} to {to}"),
    }
}

fn remove(names: &[Footprint], record: &StateFile) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    let any_removed = Cell::new(false);
    for footprint in names {
        failures.extend(footprint.remove(|removed| {
            any_removed.set(true);
            print_removed(removed);
        })?);
    }
    if failures.is_empty() && !any_removed.get() {
        eprintln!("nothing to remove");
    }
    if !failures.is_empty() {
        let failures: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
        bail!(failures.join("; "));
    }
    Ok(record.remove()?)
}

/// Returns what `cleanup` is to undo: first the names in the present configuration, then others
/// that the relay recorded.
///
/// An invalid configuration is only a warning if the relay left a state file. Without one, it is
/// an error, except that the default names stand in for the default configuration file.
fn names(path: &Path, state_file: &StateFile) -> anyhow::Result<Vec<Footprint>> {
    let mut recorded: Vec<Footprint> = state_file.read().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the relay's state file, cleaning up without it");
        Vec::new()
    });
    // Check each name: the relay's user may write to the directory, and root acts on its content.
    recorded.retain(|footprint| config::check_interface("the record's device", &footprint.device).is_ok());
    let mut names = Vec::new();
    match Config::load(path) {
        Ok(config) => names.push(Footprint::of(&config)),
        Err(error) if recorded.is_empty() && path != Path::new(DEFAULT_PATH) => {
            return Err(error.context(
                "cannot clean up: the configuration is invalid, and no relay recorded what it made",
            ));
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "invalid configuration: cleaning up what the relay recorded");
            if recorded.is_empty() {
                names.push(Footprint::of_defaults());
            }
        }
    }
    for footprint in recorded {
        if !names.contains(&footprint) {
            names.push(footprint);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_configuration_leaves_the_recorded_names_to_clean_up() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("relay.toml");
        std::fs::write(&file, "[rooting]\n").unwrap();
        let state_file = StateFile::new(dir.path(), &file).unwrap();
        let error = names(&file, &state_file).unwrap_err();
        assert!(format!("{error:#}").contains("rooting"), "{error:#}");
        for device in ["home7", "no/name"] {
            state_file
                .add(Footprint { device: device.into(), socket: "/s".into(), forwarding: None })
                .unwrap();
        }
        let names = names(&file, &state_file).unwrap();
        assert_eq!(names, [Footprint { device: "home7".into(), socket: "/s".into(), forwarding: None }]);
    }
}
