//! Finds out whether this host can serve, and what prevents it: for the command `check`, before the
//! relay starts, and before it reloads its configuration. What one of them fails for, the others
//! refuse, in the same words.
//!
//! The `facts` module inspects files and the kernel without changing anything; the `judge` module
//! is pure and turns these facts into findings, each with its next step.

mod facts;
mod judge;

use std::path::Path;

use mobile_host::check::{CheckError, CheckReport, Finding};
use tracing::warn;

use self::facts::HostFacts;
use crate::config::Config;

/// Inspects this host and the configuration file `config`, and reports whether the relay can serve.
pub(crate) async fn check(config: &Path) -> CheckReport {
    CheckReport::new(judge::judge(&facts::gather(config).await))
}

/// Refuses a start with `config` that `check` would fail, and logs its warnings. The admin socket
/// must be bound already, so no other relay runs with this configuration.
pub(crate) async fn before_start(config: &Config) -> Result<(), CheckError> {
    let facts = facts::gather_for_start(config, facts::is_privileged(), Ok(false)).await;
    refuse(judge::configured(&facts))
}

/// Refuses a reload to `config` that `check` would fail, and logs its warnings; `device` is the
/// device of the running relay. The settings that need a restart are judged at the restart.
pub(crate) async fn before_reload(config: &Config, device: &str) -> Result<(), CheckError> {
    // nft may be slow, and packets must not wait for it.
    let dropping = tokio::task::spawn_blocking(facts::dropping_chains).await.unwrap_or_default();
    let mut facts = HostFacts::gather(config, device, dropping).await;
    // The reload turns forwarding on again.
    facts.forwarding.clear();
    refuse(judge::host::judge(&facts, true))
}

fn refuse(findings: Vec<Finding>) -> Result<(), CheckError> {
    for finding in CheckReport::new(findings).into_warnings()? {
        warn!("{finding}");
    }
    Ok(())
}
