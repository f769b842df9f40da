//! `mobile explain`: what a connection gets, and why.

use std::path::Path;

use crate::config::Config;

/// Needs no agent and no rights; what this user may not see is said.
pub(super) fn explain(config: Option<&Path>, target: &str) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let runtime = super::runtime()?;
    let story = runtime.block_on(crate::explain::explain(&config, target));
    // A resolver that does not answer is no reason to wait.
    runtime.shutdown_background();
    super::print(&story?)
}
