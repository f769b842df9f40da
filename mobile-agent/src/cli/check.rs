//! The verb `mobile check`, which tells whether this host can run the agent.

use std::path::Path;

use anyhow::bail;
use mobile_host::control::ControlError;

use super::connect::connect_to_own;
use crate::check::{AgentStatus, FactError};
use crate::config::Config;
use crate::protocol::{Reply, Request};

/// Runs all checks, with or without a running agent. An ordinary user sees fewer checks than root.
pub(super) fn check(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let runtime = super::runtime()?;
    let report = runtime.block_on(crate::check::check(config, |loaded| ask_agent(config, loaded)));
    // A lookup that still waits for a resolver runs on a blocking thread: do not wait for it.
    runtime.shutdown_background();
    if json {
        super::print_json(&report)?;
    } else {
        super::print(&report.render())?;
    }
    if report.ok {
        return Ok(());
    }
    bail!("{}: {}", report.failures(), crate::check::consequence(&report.findings))
}

/// Asks the agent of this configuration, loaded from `path`, for its status.
fn ask_agent(path: Option<&Path>, config: &Config) -> AgentStatus {
    match connect_to_own(path, config) {
        Ok(Some(mut agent)) => match agent.call::<_, Reply>(&Request::Status) {
            Ok(Reply::Status(status)) => Ok(Some(status)),
            Ok(other) => Err(format!("the agent sent an unexpected reply: {other:?}").into()),
            Err(error) => Err(mobile_host::error_chain(&error.into()).into()),
        },
        Ok(None) => Ok(None),
        Err(error) => match error.downcast_ref() {
            Some(denied @ ControlError::NotAllowed { .. }) => Err(FactError::denied(denied)),
            _ => Err(mobile_host::error_chain(&error).into()),
        },
    }
}
