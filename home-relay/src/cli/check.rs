//! The `check` command: reports whether this host can serve.

use std::path::Path;

use anyhow::{Context as _, bail};
use mobile_io::check::Level;

/// Runs the checks and prints the findings; works with or without a running relay, and checks less
/// without root.
pub(crate) fn run(config: &Path, json: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = runtime.context("cannot start the runtime")?.block_on(crate::check::check(config));
    if json {
        println!("{}", serde_json::to_string_pretty(&report).context("cannot encode the answer")?);
    } else {
        print!("{}", report.render());
    }
    if report.ok {
        return Ok(());
    }
    let failed = report.findings.iter().filter(|finding| finding.level == Level::Fail).count();
    bail!("this host cannot serve: {failed} of {} findings are FAIL", report.findings.len())
}
