//! Makes sure that a verb talks to the agent of the configuration that it was given.

use std::path::Path;

use anyhow::bail;
use mobile_host::control::{Client, ControlError};

use crate::config::Config;
use crate::footprint;
use crate::protocol::{Reply, Request};

/// Checks that the agent that answers on `socket` runs with the configuration file `config`, a path
/// without symbolic links. An agent of an earlier version, which cannot tell, passes, and so does
/// any agent whose socket `MOBILE_CONTROL_SOCKET` names.
pub(super) fn check_owner(agent: &mut Client, socket: &Path, config: &Path) -> anyhow::Result<()> {
    if std::env::var_os(mobile_control::SOCKET_VARIABLE).is_some() {
        return Ok(());
    }
    match agent.call(&Request::Config)? {
        Reply::Config(other) if other != config => bail!(
            "{} is the socket of the agent with the configuration {}, not {}: name that file with --config, or set \
             another [control] socket in one of them",
            socket.display(),
            other.display(),
            config.display()
        ),
        _ => Ok(()),
    }
}

/// Connects to the agent of `config`, loaded from `path`; returns `None` if no agent runs. An agent
/// of another configuration is an error.
pub(super) fn connect_to_own(path: Option<&Path>, config: &Config) -> anyhow::Result<Option<Client>> {
    match footprint::connect(path, &config.control.socket) {
        Ok(mut agent) => {
            check_owner(&mut agent, &config.control.socket, &config.file)?;
            Ok(Some(agent))
        }
        Err(ControlError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
