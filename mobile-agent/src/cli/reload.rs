//! The verb `mobile reload`, which makes the running agent read its configuration again.

use std::path::Path;

use crate::protocol::{Reloaded, Reply, Request};

/// Reloads the configuration; prints the changed settings, one per line, and on stderr those that
/// need a restart.
pub(super) fn reload(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let reloaded = match super::ask(&mut super::agent(config)?, &Request::Reload)? {
        Reply::Reloaded(reloaded) => reloaded,
        other => return Err(super::unexpected(&other)),
    };
    if json {
        return super::print_json(&reloaded);
    }
    let Reloaded { changed, kept } = reloaded;
    if changed.is_empty() && kept.is_empty() {
        eprintln!("the configuration is unchanged");
    }
    super::print(&changed.iter().map(|key| format!("{key}\n")).collect::<String>())?;
    for key in kept {
        eprintln!("{key} keeps its value until the agent is restarted");
    }
    Ok(())
}
