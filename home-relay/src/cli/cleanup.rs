//! `cleanup`: removes every kernel object of ours. Tries everything and reports every failure.

use anyhow::{Context as _, bail};

use mobile_io::tun::TunError;

use super::clients::connect;
use crate::config::{Config, Transit};
use crate::network::{self, nft};

/// Removes the home virtual device (with its addresses and routes) and its nftables table, no other relay's;
/// doing it again is fine. Forwarding is turned off again if the relay turned it on: nobody else
/// has come to rely on it, since what was none of the relay's was dropped. Where that was not so,
/// it stays as it is.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    if connect(config)?.is_some() {
        bail!("the relay is running: stop it before `cleanup`, which takes its device away");
    }
    let device = &config.tunnel.device;
    // Opening a TUN registers it with a runtime.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let removed = mobile_io::tun::remove(device);
    drop(guard);
    if let Err(error @ TunError::Busy(_)) = removed {
        // A relay that runs without its socket: its rules are in use too.
        return Err(error).context("nothing removed: stop the relay first");
    }
    let removed = removed.with_context(|| format!("cannot remove {device}"));
    let table = nft::table(device);
    let removed_table = nft::remove(&table);
    let undone = match config.nat.transit {
        Transit::Accept => Ok(Vec::new()),
        Transit::Auto | Transit::Drop if network::has_other_relay() => Ok(Vec::new()),
        Transit::Auto | Transit::Drop => network::undo_forwarding(&config.state.dir),
    };

    let mut failures = Vec::new();
    match removed {
        Ok(true) => eprintln!("removed device {device}"),
        Ok(false) => {}
        Err(error) => failures.push(format!("{error:#}")),
    }
    match removed_table {
        Ok(true) => eprintln!("removed table inet {table}"),
        Ok(false) => {}
        Err(error) => failures.push(format!("{error:#}")),
    }
    match undone {
        Ok(settings) => settings.iter().for_each(|setting| eprintln!("set {setting} from 1 to 0")),
        Err(error) => failures.push(format!("{error:#}")),
    }
    if !failures.is_empty() {
        bail!(failures.join("; "));
    }
    Ok(())
}
