//! The verb `mobile explain`, which tells how a connection is routed, and why.

use std::path::Path;

use mobile_host::control::ControlError;

use crate::footprint;
use crate::protocol::{Reply, Request};
use crate::status::SessionState;

/// Prints how a connection is routed, and why. Needs neither a running agent nor root; the output
/// names what an ordinary user may not see.
pub(super) fn explain(config: Option<&Path>, target: &str) -> anyhow::Result<()> {
    let path = config;
    let mut config = footprint::for_client(path)?;
    let session = match footprint::connect(path, &config.control.socket) {
        Ok(mut agent) => {
            // `mobile bypass` changes the running agent's list only; without an agent, the file's
            // list applies.
            if let Ok(Reply::Bypasses(nets)) = super::ask(&mut agent, &Request::Bypasses) {
                config.routing.bypass = nets;
            }
            match super::ask(&mut agent, &Request::Status) {
                Ok(Reply::Status(status)) => Some(status.session == SessionState::Connected),
                _ => None,
            }
        }
        Err(ControlError::NotRunning { .. }) => Some(false),
        Err(_) => None,
    };
    let runtime = super::runtime()?;
    let text = runtime.block_on(crate::explain::explain(&config, session, target));
    // A lookup that still waits for a resolver runs on a blocking thread: do not wait for it.
    runtime.shutdown_background();
    super::print(&text?)
}
