//! Finds the relay that runs with a configuration file, also while the file is invalid.

use std::path::Path;

use mobile_host::control::Client as ControlClient;

use crate::admin::{AdminReply, Request};
use crate::config::Config;
use crate::footprint::{self, Footprint};

/// Loads the configuration at `path` for a command to the running relay.
///
/// While somebody is editing the file, it may be invalid. The configuration in force in the relay
/// that runs with this file then takes its place, and a note on stderr says so.
pub(super) fn config(path: &Path) -> anyhow::Result<Config> {
    let error = match Config::load(path) {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    let reply = connect_recorded(path).map(|mut relay| relay.call(&Request::AppliedConfig));
    let Some(Ok(AdminReply::AppliedConfig(applied))) = reply else { return Err(error) };
    eprintln!("home-relay: {error:#}; using the configuration of the running relay");
    Ok(Config { file: mobile_host::config::identity(path), ..*applied })
}

/// Connects to a relay that recorded that it uses this configuration file.
pub(super) fn connect_recorded(path: &Path) -> Option<ControlClient> {
    let recorded: Vec<Footprint> = footprint::state_file(path).ok()?.read().ok()?;
    recorded.iter().find_map(|footprint| ControlClient::connect(&footprint.socket).ok())
}
