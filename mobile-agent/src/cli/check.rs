//! The verb `mobile check`, which tells whether this host can run the agent.

use std::path::Path;

use anyhow::bail;

/// Runs all checks, with or without a running agent. An ordinary user sees fewer checks than root.
pub(super) fn check(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let runtime = super::runtime()?;
    let report = runtime.block_on(crate::check::check(config));
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
