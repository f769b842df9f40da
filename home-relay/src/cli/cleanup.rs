//! The `cleanup` command: removes the relay's kernel objects. After a failure it goes on with the
//! other objects, and it reports every failure.

use std::path::Path;

use anyhow::{Context as _, bail};
use mobile_host::shutdown;
use mobile_host::state_file::StateFile;
use mobile_transport::tun::TunError;

use super::clients::connect_to;
use crate::footprint::{self, Footprint};
use crate::network::{self, nft};

/// Removes the home virtual device (with its addresses and routes) and its nftables table, but no
/// other relay's; running it again is harmless.
///
/// Turns IP forwarding off again if the relay turned it on: the relay then dropped transit packets,
/// so no other host can rely on forwarding by this one. With `transit = "accept"` others may rely
/// on it, and forwarding stays on.
///
/// With `unless_shutdown`, removes nothing while the machine shuts down.
pub(crate) fn run(path: &Path, unless_shutdown: bool) -> anyhow::Result<()> {
    if unless_shutdown && shutdown::is_under_way().context(
        "nothing removed, because systemd does not tell whether the machine is shutting down: run `home-relay cleanup`",
    )? {
        eprintln!("the machine is shutting down: nothing removed");
        return Ok(());
    }
    let record = footprint::state_file(path).context("cannot open the relay's state file")?;
    let names = footprint::for_cleanup(path, &record)?;
    for footprint in &names {
        if connect_to(&footprint.socket)?.is_some() {
            bail!("the relay is running: stop it before `cleanup`, which removes its device");
        }
    }
    remove(&names, &record)
}

fn remove(names: &[Footprint], record: &StateFile) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for Footprint { device, forwarding, .. } in names {
        // Opening a TUN device takes a tokio runtime to register it with.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let removed = mobile_transport::tun::remove(device);
        drop(guard);
        if let Err(error @ TunError::Busy(_)) = removed {
            // The relay is running although its socket does not answer, so its rules are in use
            // too.
            return Err(error).context("nothing removed: stop the relay first");
        }
        let removed = removed.with_context(|| format!("cannot remove {device}"));
        let table = nft::table(device);
        let removed_table = nft::remove(&table);
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
        match forwarding {
            Some(state) if !network::has_other_relay() => match network::undo_forwarding(state) {
                Ok(settings) => {
                    settings.iter().for_each(|setting| eprintln!("set sysctl {setting} from 1 to 0"));
                }
                Err(error) => failures.push(format!("{error:#}")),
            },
            _ => {}
        }
    }
    if !failures.is_empty() {
        bail!(failures.join("; "));
    }
    Ok(record.remove()?)
}
