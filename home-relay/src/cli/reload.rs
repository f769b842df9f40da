//! The `reload` command: makes the running relay reload its configuration.

use anyhow::{Context as _, bail};

use super::clients::{UNEXPECTED_REPLY, call, connect, not_running};
use crate::admin::{AdminReply, Request};
use crate::config::Config;

/// Makes the running relay reload its configuration; prints the changed keys, one per line, and on
/// stderr the keys that need a restart.
pub(crate) fn run(config: &Config, json: bool) -> anyhow::Result<()> {
    let Some(mut relay) = connect(config)? else { bail!(not_running(config)) };
    let AdminReply::Reloaded(reloaded) = call(&mut relay, &Request::Reload)? else { bail!(UNEXPECTED_REPLY) };
    if json {
        println!("{}", serde_json::to_string_pretty(&reloaded).context("cannot encode the answer")?);
        return Ok(());
    }
    reloaded.changed.iter().for_each(|key| println!("{key}"));
    if reloaded.changed.is_empty() {
        eprintln!("nothing changed");
    }
    for key in &reloaded.kept {
        eprintln!("{key} keeps its value until the relay is restarted");
    }
    Ok(())
}
