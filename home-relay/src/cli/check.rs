//! The `check` command: reports whether this host can serve.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};

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
    // The findings precede the summary on stderr.
    std::io::stdout().flush().context("cannot write to stdout")?;
    if report.ok {
        return Ok(());
    }
    bail!("{}: the relay may not serve clients before this is corrected", report.failures())
}
