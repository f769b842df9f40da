//! Turns IP forwarding on and off, and records which forwarding the relay turned on.
//!
//! A host that did not forward before the relay started was never meant to forward packets of
//! others. A file in the state directory names what the relay turned on, so that the relay drops
//! such packets and `cleanup` turns forwarding off again.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use mobile_host::{ownership, sysctl};
use tracing::{info, warn};

use super::undo_log::UndoLog;
use crate::pool::Pools;

/// The sysctls that turn on forwarding, of IPv4 and of IPv6.
const SWITCHES: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
/// The file in the state directory that names the forwarding sysctls that the relay turned on.
const FILE: &str = "forwarding";

/// The forwarding sysctls that this relay, or an earlier run of it, turned on since the host
/// booted.
pub(super) struct EnabledForwarding {
    path: PathBuf,
    turned_on: [bool; 2],
    /// The `accept_ra` sysctls that were set from 1 to 2 when forwarding was turned on.
    accept_ra: Vec<String>,
}

impl EnabledForwarding {
    /// Reads the file [`FILE`] in a state directory. A file from before the last boot, or from
    /// another network namespace, is ignored, because another program must then have turned on any
    /// forwarding that is on now.
    pub(super) fn load(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines();
        let is_valid = host().is_some_and(|host| lines.next() == Some(&host));
        let named: Vec<&str> = lines.collect();
        let turned_on = SWITCHES.map(|switch| is_valid && named.contains(&switch));
        // `cleanup` acts on the file as root, and the relay's user may write it.
        let accept_ra = named.into_iter().filter(|name| is_valid && is_accept_ra(name));
        Self { path, turned_on, accept_ra: accept_ra.map(str::to_owned).collect() }
    }

    /// Returns for IPv4 and IPv6 whether it is the relay that turned forwarding on, once [`enable`]
    /// has run: either earlier, or because forwarding is needed and still off now. Saves the result
    /// before anything is turned on.
    pub(super) fn update(&mut self, pools: &Pools, device: &str) -> [bool; 2] {
        let wanted = [pools.ipv4().is_some(), pools.ipv6().is_some()];
        let mut turned_on = self.turned_on;
        for ((on, switch), wanted) in turned_on.iter_mut().zip(SWITCHES).zip(wanted) {
            *on |= wanted && sysctl::read(switch).is_ok_and(|value| value != "1");
        }
        let mut accept_ra = self.accept_ra.clone();
        if is_about_to_forward_ipv6(pools).unwrap_or(false) {
            accept_ra.extend(ignored_when_forwarding(device).unwrap_or_default());
            accept_ra.sort();
            accept_ra.dedup();
        }
        if (turned_on, &accept_ra) != (self.turned_on, &self.accept_ra) {
            (self.turned_on, self.accept_ra) = (turned_on, accept_ra);
            let named = SWITCHES.into_iter().zip(turned_on).filter(|(_, on)| *on).map(|(switch, _)| switch);
            let named = named.map(str::to_owned).chain(self.accept_ra.iter().cloned());
            let text: Vec<String> = host().into_iter().chain(named).collect();
            if let Err(error) = write(&self.path, &(text.join("\n") + "\n")) {
                let path = self.path.display();
                warn!(
                    "cannot write {path}: {error}; after a restart the relay will forward between other devices too"
                );
            }
        }
        turned_on
    }

    /// Turns off the forwarding that the relay turned on, sets `accept_ra` from 2 back to 1 where
    /// the relay changed it, removes the file [`FILE`], and returns each sysctl that was changed
    /// with its former and its present value.
    pub(super) fn undo(self) -> anyhow::Result<Vec<(String, [&'static str; 2])>> {
        let mut undone = Vec::new();
        for (switch, _) in SWITCHES.into_iter().zip(self.turned_on).filter(|(_, on)| *on) {
            if sysctl::ensure(switch, "0")?.is_some() {
                undone.push((switch.to_owned(), ["1", "0"]));
            }
        }
        for setting in self.accept_ra {
            // An interface may have disappeared, and somebody may have set another value.
            if sysctl::read(&setting).is_ok_and(|value| value == "2") {
                sysctl::write(&setting, "1")?;
                undone.push((setting, ["2", "1"]));
            }
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(undone),
        }
    }
}

/// Writes a file that belongs to the owner of its directory, because a relay may run as root once
/// and as another user later.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    // Never write through a link that the directory's owner made: a new file replaces it.
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&new)?;
    file.write_all(text.as_bytes())?;
    ownership::inherit_from_directory(&file, path)?;
    std::fs::rename(&new, path)
}

/// Returns a text that identifies this boot and this network namespace.
fn host() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::metadata("/proc/self/ns/net").ok()?.ino();
    Some(format!("{} {namespace}", boot.trim()))
}

/// Turns on forwarding of the pools' address families, for the host and for the home virtual
/// device.
pub(super) fn enable(pools: &Pools, device: &str, undo_log: &mut UndoLog) -> anyhow::Result<()> {
    if pools.ipv4().is_some() {
        set("net/ipv4/ip_forward", "1", undo_log)?;
        set(&format!("net/ipv4/conf/{device}/forwarding"), "1", undo_log)?;
    }
    if pools.ipv6().is_some() {
        if is_about_to_forward_ipv6(pools)? {
            // Forwarding hosts ignore router advertisements at 1, and a server configured by them
            // would lose its default route; 2 accepts them while forwarding.
            for setting in ignored_when_forwarding(device)? {
                set(&setting, "2", undo_log)?;
            }
            set("net/ipv6/conf/all/forwarding", "1", undo_log)?;
        }
        set(&format!("net/ipv6/conf/{device}/forwarding"), "1", undo_log)?;
    }
    Ok(())
}

/// Returns whether IPv6 is to be forwarded and is not yet.
fn is_about_to_forward_ipv6(pools: &Pools) -> anyhow::Result<bool> {
    Ok(pools.ipv6().is_some() && sysctl::read("net/ipv6/conf/all/forwarding")? != "1")
}

/// Returns the `accept_ra` sysctls of devices other than the relay's that have the value 1, at
/// which a host that forwards IPv6 ignores router advertisements.
fn ignored_when_forwarding(device: &str) -> anyhow::Result<Vec<String>> {
    let conf = "/proc/sys/net/ipv6/conf";
    let mut settings = Vec::new();
    for entry in std::fs::read_dir(conf).with_context(|| format!("cannot read {conf}"))? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| *name != device && *name != "all") else { continue };
        let setting = format!("net/ipv6/conf/{name}/accept_ra");
        // An interface may disappear at any time.
        if sysctl::read(&setting).is_ok_and(|value| value == "1") {
            settings.push(setting);
        }
    }
    Ok(settings)
}

/// Returns whether this is the name of a device's `accept_ra` sysctl.
fn is_accept_ra(name: &str) -> bool {
    let device = name.strip_prefix("net/ipv6/conf/").and_then(|rest| rest.strip_suffix("/accept_ra"));
    device.is_some_and(|device| !device.contains('/') && !["", ".", ".."].contains(&device))
}

fn set(name: &str, value: &str, undo_log: &mut UndoLog) -> anyhow::Result<()> {
    let before = undo_log.set_sysctl(name, value).map_err(|error| {
        let dotted = name.replace('/', ".");
        anyhow!(error).context(format!("this host must forward packets: run `sysctl -w {dotted}={value}`"))
    })?;
    if let Some(before) = before {
        info!("set sysctl {name} from {before} to {value}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_accept_ra_of_a_device_is_restored() {
        assert!(is_accept_ra("net/ipv6/conf/eth0.5/accept_ra"));
        for other in [
            "net/ipv6/conf/accept_ra",
            "net/ipv6/conf//accept_ra",
            "net/ipv6/conf/../accept_ra",
            "net/ipv6/conf/../../ipv4/accept_ra",
            "net/ipv4/ip_forward",
        ] {
            assert!(!is_accept_ra(other), "{other}");
        }
    }
}
