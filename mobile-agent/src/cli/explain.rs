//! `mobile explain`: what a connection gets, and why.

use std::path::Path;

use crate::config::Config;
use crate::control::protocol::{Reply, Request};

/// Needs no agent and no rights; what this user may not see is said.
pub(super) fn explain(config: Option<&Path>, target: &str) -> anyhow::Result<()> {
    let mut config = Config::of_client(config)?;
    // The agent knows what `mobile bypass` has changed; without one the file's will do.
    if let Ok(Reply::Bypasses(nets)) =
        super::agent_of(&config).and_then(|mut agent| super::ask(&mut agent, &Request::Bypasses))
    {
        config.routing.bypass = nets;
    }
    let runtime = super::runtime()?;
    let story = runtime.block_on(crate::explain::explain(&config, target));
    // A resolver that does not answer is no reason to wait.
    runtime.shutdown_background();
    super::print(&story?)
}
