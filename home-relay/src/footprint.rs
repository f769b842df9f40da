//! The names of a relay's kernel objects: records them, for `home-relay cleanup` to use when the
//! configuration is invalid or has changed since the relay started, and removes the objects.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use mobile_host::state_file::StateFile;
use mobile_transport::tun::{self, TunError};
use serde::{Deserialize, Serialize};

use crate::config::{Admin, Config, Nat, State, Transit, Tunnel};
use crate::network::{self, nft};

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

/// A kernel object that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removed<'a> {
    /// The home virtual device of this name.
    Device(&'a str),
    /// The nftables table of this name.
    Table(&'a str),
    /// A sysctl that was set for IP forwarding, and its value before and after the removal.
    Setting(&'a str, [&'static str; 2]),
}

impl Footprint {
    /// Returns what `cleanup` has to know about a relay with this configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self::of_sections(&config.tunnel, &config.admin, &config.nat, &config.state)
    }

    /// Returns what `cleanup` has to know about a relay with the default configuration.
    pub(crate) fn of_defaults() -> Self {
        Self::of_sections(&Tunnel::default(), &Admin::default(), &Nat::default(), &State::default())
    }

    fn of_sections(tunnel: &Tunnel, admin: &Admin, nat: &Nat, state: &State) -> Self {
        Self {
            device: tunnel.device.clone(),
            socket: admin.socket.clone(),
            // With `transit = "accept"`, packets of other hosts were forwarded, and somebody may
            // have come to rely on that.
            forwarding: (nat.transit != Transit::Accept).then(|| state.dir.clone()),
        }
    }

    /// Removes the kernel objects, and calls `report` for each. Goes on after a failure, and
    /// returns the errors.
    ///
    /// Fails without removing anything if a relay has the device open.
    pub(crate) fn remove(&self, report: impl Fn(Removed<'_>)) -> anyhow::Result<Vec<anyhow::Error>> {
        let Self { device, forwarding, .. } = self;
        let mut failures = Vec::new();
        // Opening a TUN device takes a tokio runtime to register it with.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let removed = tun::remove(device);
        drop(guard);
        if let Err(error @ TunError::Busy(_)) = removed {
            // The relay is running although its socket does not answer, so its rules are in use
            // too.
            return Err(error).context("nothing removed: stop the relay first");
        }
        let removed = removed.with_context(|| format!("cannot remove {device}"));
        let table = nft::table(device);
        let removed_table = nft::remove(&table);
        match removed {
            Ok(true) => report(Removed::Device(device)),
            Ok(false) => {}
            Err(error) => failures.push(error),
        }
        match removed_table {
            Ok(true) => report(Removed::Table(&table)),
            Ok(false) => {}
            Err(error) => failures.push(error),
        }
        match forwarding {
            Some(state) if !network::has_other_relay() => match network::undo_forwarding(state) {
                Ok(settings) => {
                    settings.iter().for_each(|(name, values)| report(Removed::Setting(name, *values)));
                }
                Err(error) => failures.push(error),
            },
            _ => {}
        }
        Ok(failures)
    }
}

/// Returns the file that records the kernel objects of the relay with this configuration file.
pub(crate) fn state_file(config: &Path) -> io::Result<StateFile> {
    StateFile::new(Path::new(DIR), config)
}
