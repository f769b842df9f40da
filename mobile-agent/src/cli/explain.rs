//! The verb `mobile explain`, which tells how a connection is routed, and why.

use std::path::Path;

use crate::config::Config;
use crate::control::protocol::{Reply, Request};

/// Prints how a connection is routed, and why. Needs neither a running agent nor root; the output
/// names what an ordinary user may not see.
pub(super) fn explain(config: Option<&Path>, target: &str) -> anyhow::Result<()> {
    let mut config = Config::of_client(config)?;
    // `mobile bypass` changes the running agent's list only; without an agent, the file's list
    // applies.
    if let Ok(Reply::Bypasses(nets)) =
        super::agent_of(&config).and_then(|mut agent| super::ask(&mut agent, &Request::Bypasses))
    {
        config.routing.bypass = nets;
    }
    let runtime = super::runtime()?;
    let text = runtime.block_on(crate::explain::explain(&config, target));
    // A lookup that still waits for a resolver runs on a blocking thread: do not wait for it.
    runtime.shutdown_background();
    super::print(&text?)
}
