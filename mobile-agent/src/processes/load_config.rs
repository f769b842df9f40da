//! The job that reads the configuration file and the private key. The confined agent cannot: the
//! files may belong to another user, or be in a directory that the agent may not read.

use std::path::Path;

use anyhow::Context as _;
use mobile_host::control;

use super::job::{JobError, LoadedConfig};
use crate::config::{Config, load_key};

/// Reads the configuration file and the private key that it names; `path` is the path that the
/// agent was started with, so that a job cannot name another file.
pub(super) fn load(path: Option<&Path>) -> Result<LoadedConfig, JobError> {
    try_load(path).map_err(|error| JobError::failed(mobile_host::error_chain(&error)))
}

fn try_load(path: Option<&Path>) -> anyhow::Result<LoadedConfig> {
    let config = Config::load(path)?;
    if let Some(group) = &config.control.group {
        control::check_group(group).context("[control] group")?;
    }
    let private_key =
        load_key(&config.identity.private_key_file).context("[identity] private_key_file")?.to_base64();
    Ok(LoadedConfig { config, private_key })
}
