//! `mobile check`: is this machine able to run it.

use std::path::Path;

use anyhow::bail;

/// With an agent or without, as root or, less deep, as any user.
pub(super) fn check(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let runtime = super::runtime()?;
    let report = runtime.block_on(crate::check::check(config));
    // A resolver that does not answer is no reason to wait.
    runtime.shutdown_background();
    if json {
        super::print_json(&report)?;
    } else {
        super::print(&report.render())?;
    }
    if report.ok {
        return Ok(());
    }
    let failed = report.findings.iter().filter(|it| it.level == mobile_io::check::Level::Fail).count();
    bail!("not able to run: {failed} of {} findings are FAIL", report.findings.len())
}
