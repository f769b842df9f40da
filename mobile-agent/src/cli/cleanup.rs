//! The verb `mobile cleanup`, which removes every kernel object of the agent and succeeds if there
//! is none.
//!
//! Files stay: the configuration, the key and the addresses cached in `[state] dir`.

use std::path::Path;

use anyhow::{Context, ensure};
use mobile_host::control::{Client, ControlError};
use mobile_host::shutdown;

use crate::cleanup::remove_everything;
use crate::footprint;
use crate::protocol::{Reply, Request};

/// Asks a running agent to remove everything and to end; without an agent, removes everything
/// itself.
///
/// With `unless_shutdown`, removes nothing while the machine shuts down, because mobile processes
/// that still run must not go direct.
pub(super) fn cleanup(config: Option<&Path>, log: Option<&str>, unless_shutdown: bool) -> anyhow::Result<()> {
    mobile_host::log::init(log, "MOBILE_LOG")?;
    if unless_shutdown && shutdown::is_under_way().context(
        "nothing was removed, because systemd does not tell whether the machine is shutting down: run `mobile cleanup`",
    )? {
        tracing::info!("the machine is shutting down: nothing removed, mobile processes wait until they end");
        return Ok(());
    }
    let record =
        footprint::state_file(config).context("cannot locate the record of the agent's kernel objects")?;
    let names = footprint::for_cleanup(config, &record)?;
    for config in &names {
        match Client::connect(&config.control.socket) {
            // The agent reads the record too.
            Ok(mut agent) => {
                return match super::ask(&mut agent, &Request::Cleanup)? {
                    // The agent may lack the right to remove its record's directory.
                    Reply::Done => record.remove().map_err(Into::into),
                    other => Err(super::unexpected(&other)),
                };
            }
            Err(ControlError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(nix::unistd::geteuid().is_root(), "only root may clean up: run `sudo mobile cleanup`");
    super::runtime()?.block_on(remove_everything(&names, &record, None))
}
