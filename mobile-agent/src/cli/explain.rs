//! The verb `mobile explain`, which tells how a connection is routed, and why.

use std::path::Path;

use mobile_host::control::ControlError;

use super::connect;
use crate::footprint;
use crate::protocol::{Reply, Request};
use crate::status::SessionState;

/// Prints how a connection is routed, and why. Needs neither a running agent nor root; the output
/// names what an ordinary user may not see.
pub(super) fn explain(config: Option<&Path>, target: &str, json: bool) -> anyhow::Result<()> {
    let path = config;
    let mut config = footprint::for_client(path)?;
    let mut warning = None;
    let session = match footprint::connect(path, &config.control.socket) {
        Ok(mut agent) => {
            if path.is_some() {
                connect::check_owner(&mut agent, &config.control.socket, &config.file)?;
            }
            // `mobile bypass` changes the running agent's list only; without an agent, the file's
            // list applies.
            if let Ok(Reply::Bypasses(nets)) = super::ask(&mut agent, &Request::Bypasses) {
                config.routing.bypass = nets;
            }
            let session = match super::ask(&mut agent, &Request::Status) {
                Ok(Reply::Status(status)) => Some(status.session == SessionState::Connected),
                _ => None,
            };
            // A mobile process resolves names with the relay's resolvers, so do this too.
            if session == Some(true) && target.parse::<i32>().is_err() {
                warning = super::ask(&mut agent, &Request::Run).err();
            }
            session
        }
        Err(ControlError::NotRunning { .. }) => Some(false),
        Err(_) => None,
    };
    if let Some(error) = warning {
        super::complain(&error.context("resolving the name as an ordinary process"));
    }
    let runtime = super::runtime()?;
    let explanation = runtime.block_on(crate::explain::explain(&config, session, target));
    // A lookup that still waits for a resolver runs on a blocking thread: do not wait for it.
    runtime.shutdown_background();
    let explanation = explanation?;
    if json { super::print_json(&explanation) } else { super::print(&explanation.text()) }
}
