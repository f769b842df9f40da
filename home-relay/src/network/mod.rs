//! What the relay needs of the kernel: the home virtual device with its addresses, forwarding, and
//! masquerading. All of it may be there already, from a relay that was killed: it is then adopted.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use mobile_io::netlink::{Netlink, NetlinkError};
use mobile_io::sysctl;
use mobile_io::tun::Tun;
use tracing::info;

use self::nft::Ruleset;
use self::undo::{Step, Undo};
use crate::config::Config;
use crate::pool::Pools;

mod forwarding;
pub(crate) mod nft;
pub(crate) mod ports;
mod undo;

/// The pools this host can serve: without IPv6 where the host has none, which is not an error.
pub(crate) fn servable(pools: Pools) -> anyhow::Result<Pools> {
    if pools.ipv6().is_none() || has_ipv6() {
        return Ok(pools);
    }
    if pools.ipv4().is_none() {
        bail!(
            "IPv6 is disabled on this host and [pool] has no ipv4: add an IPv4 pool, or enable IPv6 \
             (sysctl net.ipv6.conf.all.disable_ipv6=0)"
        );
    }
    info!("IPv6 is disabled on this host: clients get their IPv4 addresses only");
    Ok(pools.without_ipv6()?)
}

/// Whether IPv6 is enabled on this host.
pub(crate) fn has_ipv6() -> bool {
    // No such file: ipv6.disable=1, or a kernel without IPv6.
    let enabled = |scope: &str| {
        sysctl::read(&format!("net/ipv6/conf/{scope}/disable_ipv6")).is_ok_and(|value| value == "0")
    };
    // A new device follows `default`.
    enabled("all") && enabled("default")
}

/// Sets everything up and opens the device; when that fails, removes again what it made.
pub(crate) async fn set_up(config: &Config, pools: &Pools, ruleset: &Ruleset) -> anyhow::Result<Tun> {
    let mut undo = Undo::default();
    match try_set_up(config, pools, ruleset, &mut undo).await {
        Ok(tun) => Ok(tun),
        Err(error) => {
            undo.roll_back().await;
            Err(error)
        }
    }
}

async fn try_set_up(
    config: &Config,
    pools: &Pools,
    ruleset: &Ruleset,
    undo: &mut Undo,
) -> anyhow::Result<Tun> {
    let device = config.tunnel.device.as_str();
    let netlink = Netlink::new()?;
    let adopted = match netlink.link_index(device).await {
        Ok(_) => true,
        Err(NetlinkError::NoSuchLink(_)) => false,
        Err(error) => return Err(error.into()),
    };
    // Persistent: while the relay restarts, replies to clients are dropped here like on a slow link,
    // not answered with "unreachable", which would end their connections.
    let tun = Tun::open(device, true, config.tunnel.offload)?;
    if !adopted {
        undo.push(Step::RemoveDevice(device.to_owned()));
    }
    let index = netlink.link_index(device).await?;
    configure_device(&netlink, device, index, config.tunnel.mtu, pools, undo).await?;

    if install(ruleset)? {
        undo.push(Step::RemoveTable);
    }
    // Last: from here on packets flow, and the rules above are in place.
    forwarding::enable(pools, device, undo)?;
    info!(
        device,
        adopted,
        addresses = ?pools.own_addresses(),
        masquerade = config.nat.masquerade,
        "home virtual device is up"
    );
    Ok(tun)
}

/// Puts the ruleset into the kernel; says whether there was none of ours before. A host without nftables serves all the
/// same where nothing depends on it.
fn install(ruleset: &Ruleset) -> anyhow::Result<bool> {
    let installed = nft::exists().and_then(|there| ruleset.apply().map(|()| !there));
    match installed {
        Err(error) if !ruleset.is_needed() => {
            info!("clients' TCP is not fitted to a smaller MTU on the way out, without nftables: {error:#}");
            Ok(false)
        }
        installed => installed.context(nft::HINT),
    }
}

/// Puts another ruleset in the place of the running one.
pub(crate) fn change(ruleset: &Ruleset) -> anyhow::Result<()> {
    install(ruleset).map(drop)
}

async fn configure_device(
    netlink: &Netlink,
    device: &str,
    index: u32,
    mtu: u16,
    pools: &Pools,
    undo: &mut Undo,
) -> anyhow::Result<()> {
    // Strict filtering would drop clients' packets where another route to their addresses is better;
    // the relay checks their sources itself, more strictly.
    sysctl::ensure(&format!("net/ipv4/conf/{device}/rp_filter"), "2").context("home virtual device")?;
    if pools.ipv6().is_some() {
        // No link-local address and no router solicitations: nobody is on this link but clients.
        for (name, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
            sysctl::ensure(&format!("net/ipv6/conf/{device}/{name}"), value)
                .context("home virtual device")?;
        }
    }
    netlink.set_mtu(index, mtu.into()).await?;
    netlink.set_link_up(index).await?;
    let own = pools.own_addresses();
    for &net in &own {
        // The prefix length brings the route to the pool with it.
        if netlink.ensure_address(index, net).await? {
            undo.push(Step::RemoveAddress(index, net));
        }
    }
    for address in netlink.addresses(index).await? {
        if !own.contains(&address.net) && !is_link_local(address.net) {
            info!(device, address = %address.net, "removing an address of an earlier configuration");
            netlink.del_address(index, address.net).await?;
        }
    }
    Ok(())
}

fn is_link_local(net: IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
