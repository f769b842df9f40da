//! Forwarding: a host that does not forward yet is an ordinary host, so the relay turns it on. It is
//! left on afterwards: nobody can tell who else has come to rely on it.

use anyhow::{Context as _, anyhow};
use mobile_io::sysctl;
use tracing::info;

use super::made::Made;
use crate::pool::Pools;

/// Turns on what the pools need, for the host and for the device.
pub(super) fn enable(pools: &Pools, device: &str, made: &mut Made) -> anyhow::Result<()> {
    if pools.ipv4().is_some() {
        set("net/ipv4/ip_forward", "1", made)?;
        set(&format!("net/ipv4/conf/{device}/forwarding"), "1", made)?;
    }
    if pools.ipv6().is_some() {
        if sysctl::read("net/ipv6/conf/all/forwarding")? != "1" {
            keep_router_advertisements(device, made)?;
            set("net/ipv6/conf/all/forwarding", "1", made)?;
        }
        set(&format!("net/ipv6/conf/{device}/forwarding"), "1", made)?;
    }
    Ok(())
}

/// A host that forwards IPv6 stops listening to router advertisements (`accept_ra` = 1), and a server
/// configured by them would lose its own default route. 2 says: listen although forwarding.
fn keep_router_advertisements(device: &str, made: &mut Made) -> anyhow::Result<()> {
    let conf = "/proc/sys/net/ipv6/conf";
    for entry in std::fs::read_dir(conf).with_context(|| format!("cannot read {conf}"))? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| *name != device && *name != "all") else { continue };
        let setting = format!("net/ipv6/conf/{name}/accept_ra");
        // An interface may go away at any time.
        if sysctl::read(&setting).is_ok_and(|value| value == "1") {
            set(&setting, "2", made)?;
        }
    }
    Ok(())
}

fn set(name: &str, value: &str, made: &mut Made) -> anyhow::Result<()> {
    let before = made.set(name, value).map_err(|error| {
        let dotted = name.replace('/', ".");
        anyhow!(error).context(format!("this host must forward packets: run `sysctl -w {dotted}={value}`"))
    })?;
    if let Some(before) = before {
        info!("set {name} from {before} to {value}");
    }
    Ok(())
}
