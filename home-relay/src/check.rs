//! The `check` command: finds out whether this host can serve, and what prevents it.
//!
//! `facts` gathers facts from files and the kernel without changing anything; `judge` is pure and
//! turns the facts into findings, each with its next step.

mod facts;
mod judge;

use std::path::Path;

use mobile_io::check::CheckReport;

/// Gathers the facts and judges them.
pub(crate) async fn check(config: &Path) -> CheckReport {
    CheckReport::new(judge::judge(&facts::gather(config).await))
}
