//! The `check` command: finds out whether this host can serve, and what prevents it.
//!
//! The `facts` module inspects files and the kernel without changing anything; the `judge` module
//! is pure and turns these facts into findings, each with its next step.

mod facts;
mod judge;

use std::path::Path;

use mobile_host::check::CheckReport;

/// Inspects this host and the configuration file `config`, and reports whether the relay can serve.
pub(crate) async fn check(config: &Path) -> CheckReport {
    CheckReport::new(judge::judge(&facts::gather(config).await))
}
