//! Records the names of a relay's kernel objects, for `home-relay cleanup` to use when the
//! configuration is invalid or has changed since the relay started.

use std::io;
use std::path::{Path, PathBuf};

use mobile_host::state_file::StateFile;
use serde::{Deserialize, Serialize};

use crate::cli::args::DEFAULT_PATH;
use crate::config::{self, Admin, Config, Nat, State, Transit, Tunnel};

/// The directory of the files that record the relays' kernel objects: the default admin socket's
/// directory, which a reboot empties, just as it removes the kernel objects.
const DIR: &str = "/run/home-relay";

/// The names by which `cleanup` finds what one relay changed on its host: the name of its device
/// (from which the nftables table's name follows), its admin socket, and where it noted which IP
/// forwarding it turned on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Footprint {
    pub(crate) device: String,
    pub(crate) socket: PathBuf,
    /// The state directory that records which forwarding sysctls the relay turned on, or `None` to
    /// leave forwarding on.
    #[serde(default)]
    pub(crate) forwarding: Option<PathBuf>,
}

impl Footprint {
    /// Returns what `cleanup` has to know about a relay with these settings.
    pub(crate) fn of(tunnel: &Tunnel, admin: &Admin, nat: &Nat, state: &State) -> Self {
        Self {
            device: tunnel.device.clone(),
            socket: admin.socket.clone(),
            // With `transit = "accept"`, packets of other hosts were forwarded, and somebody may
            // have come to rely on that.
            forwarding: (nat.transit != Transit::Accept).then(|| state.dir.clone()),
        }
    }
}

/// Returns the file that records the kernel objects of the relay with this configuration file.
pub(crate) fn state_file(config: &Path) -> io::Result<StateFile> {
    StateFile::new(Path::new(DIR), config)
}

/// Returns what `cleanup` is to undo: first the names in the present configuration, then others
/// that the relay recorded.
///
/// An invalid configuration is only a warning if the relay left a state file. Without one, it is
/// an error, except that the default names stand in for the default configuration file.
pub(crate) fn for_cleanup(path: &Path, state_file: &StateFile) -> anyhow::Result<Vec<Footprint>> {
    let mut recorded: Vec<Footprint> = state_file.read().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the relay's state file, cleaning up without it");
        Vec::new()
    });
    // Check each name: the relay's user may write to the directory, and root acts on its content.
    recorded.retain(|footprint| config::check_interface("the record's device", &footprint.device).is_ok());
    let mut names = Vec::new();
    match Config::load(path) {
        Ok(config) => names.push(Footprint::of(&config.tunnel, &config.admin, &config.nat, &config.state)),
        Err(error) if recorded.is_empty() && path != Path::new(DEFAULT_PATH) => {
            return Err(error.context(
                "cannot clean up: the configuration is invalid, and no relay recorded what it made",
            ));
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "invalid configuration: cleaning up what the relay recorded");
            if recorded.is_empty() {
                names.push(Footprint::of(
                    &Tunnel::default(),
                    &Admin::default(),
                    &Nat::default(),
                    &State::default(),
                ));
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
        let error = for_cleanup(&file, &state_file).unwrap_err();
        assert!(format!("{error:#}").contains("rooting"), "{error:#}");
        for device in ["home7", "no/name"] {
            state_file
                .add(Footprint { device: device.into(), socket: "/s".into(), forwarding: None })
                .unwrap();
        }
        let names = for_cleanup(&file, &state_file).unwrap();
        assert_eq!(names, [Footprint { device: "home7".into(), socket: "/s".into(), forwarding: None }]);
    }
}
