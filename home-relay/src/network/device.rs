//! The home virtual device: its addresses, settings and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use ipnet::IpNet;
use mobile_netlink::{Netlink, NetlinkError, PROTOCOL_KERNEL, Route, TABLE_MAIN};
use mobile_transport::tun::{DeviceLifetime, Tun};
use tracing::info;

use super::ReconcileError;
use super::ruleset::DEVICE_GROUP;
use super::undo_log::{UndoAction, UndoLog};
use crate::config::Config;
use crate::pool::Pools;

/// The home virtual device, with the settings that it should have.
pub(super) struct HomeDevice {
    netlink: Netlink,
    pub(super) name: String,
    index: u32,
    mtu: u16,
    pub(super) pools: Pools,
}

impl HomeDevice {
    /// Opens the device, or creates it unless an earlier relay left it behind. The returned Boolean
    /// tells whether one did.
    pub(super) async fn open(
        config: &Config,
        pools: &Pools,
        undo_log: &mut UndoLog,
    ) -> anyhow::Result<(Self, Tun, bool)> {
        let name = config.tunnel.device.clone();
        let netlink = Netlink::new()?;
        let adopted = match netlink.link_index(&name).await {
            Ok(_) => true,
            Err(NetlinkError::NoSuchLink(_)) => false,
            Err(error) => return Err(error.into()),
        };
        // Make the device persistent: while the relay restarts, replies to clients are dropped, as
        // on a slow link. An "unreachable" error instead would end their connections.
        let tun = Tun::open(&name, DeviceLifetime::Persistent, config.tunnel.offload)?;
        if !adopted {
            undo_log.record(format!("device {name}"), UndoAction::RemoveDevice(name.clone()));
        }
        let index = netlink.link_index(&name).await?;
        Ok((Self { netlink, name, index, mtu: config.tunnel.mtu, pools: *pools }, tun, adopted))
    }

    /// Returns a device that is not in the kernel.
    #[cfg(test)]
    pub(super) fn detached(config: &Config, pools: Pools) -> Self {
        let netlink = Netlink::new().unwrap();
        Self { netlink, name: config.tunnel.device.clone(), index: 0, mtu: config.tunnel.mtu, pools }
    }

    /// Checks by its index that the device is the one that the relay has open, because another
    /// program may have created a new device of the same name.
    pub(super) async fn check(&self) -> Result<(), ReconcileError> {
        match self.netlink.link_index(&self.name).await {
            Ok(index) if index == self.index => Ok(()),
            Ok(_) | Err(NetlinkError::NoSuchLink(_)) => Err(ReconcileError::DeviceGone(self.name.clone())),
            Err(error) => Err(ReconcileError::Other(error.into())),
        }
    }

    /// Returns the networks of this host's devices other than the relay's. The reach "internet"
    /// excludes them, in order to protect the services of the host itself and of its neighbours.
    pub(super) async fn local_networks(&self) -> anyhow::Result<Vec<IpNet>> {
        let all = self.netlink.all_addresses().await?;
        let others = all.iter().filter(|address| address.index != self.index);
        let mut local: Vec<IpNet> = others.map(|address| address.net.trunc()).collect();
        local.sort_unstable();
        local.dedup();
        Ok(local)
    }

    /// Ensures the device's sysctls, MTU, group, link state, addresses and routes.
    pub(super) async fn ensure(&self, undo_log: &mut UndoLog) -> anyhow::Result<()> {
        let Self { netlink, name: device, index, mtu, pools } = self;
        let (index, mtu) = (*index, u32::from(*mtu));
        // Strict reverse-path filtering would drop clients' packets where another route to their
        // addresses is better; the relay checks their sources itself, more strictly.
        undo_log
            .set_sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "2")
            .context("home virtual device")?;
        if pools.ipv6().is_some() {
            // No link-local address and no router solicitations: only clients are on this link.
            for (name, value) in [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0")] {
                undo_log
                    .set_sysctl(&format!("net/ipv6/conf/{device}/{name}"), value)
                    .context("home virtual device")?;
            }
        }
        let link = netlink.link(device).await?;
        if link.mtu != mtu {
            netlink.set_mtu(index, mtu).await?;
            undo_log.record(format!("the MTU of {device}"), None);
        }
        if link.group != DEVICE_GROUP {
            netlink.set_group(index, DEVICE_GROUP).await?;
            undo_log.record(format!("the group of {device}"), None);
        }
        if !link.up {
            netlink.set_link_up(index).await?;
            undo_log.record(format!("the link state of {device}"), None);
        }
        let own = pools.own_addresses();
        for &net in &own {
            if netlink.ensure_address(index, net).await? {
                undo_log.record(format!("address {net} of {device}"), UndoAction::RemoveAddress(index, net));
            }
            self.ensure_route(net, undo_log).await?;
        }
        for address in netlink.addresses(index).await? {
            if !own.contains(&address.net) && !is_link_local(address.net) {
                info!(device, address = %address.net, "removing an address that is not in the configuration");
                netlink.del_address(index, address.net).await?;
            }
        }
        Ok(())
    }

    /// Ensures the route to the pool of the address `own`. The kernel adds the route together with
    /// the address, but another program may have removed it.
    async fn ensure_route(&self, own: IpNet, undo_log: &mut UndoLog) -> anyhow::Result<()> {
        let Some(client) = first_client(own) else { return Ok(()) };
        let route = self.netlink.lookup(client, 0).await?;
        if route.is_some_and(|route| route.oif == Some(self.index)) {
            return Ok(());
        }
        let source = own.addr().is_ipv4().then_some(own.addr());
        let route = Route::device(own.trunc(), TABLE_MAIN, self.index, source);
        // Add the route as the kernel does, so that it is removed with the address.
        if self.netlink.ensure_route(&Route { protocol: PROTOCOL_KERNEL, ..route }).await? {
            undo_log.record(format!("route to {}", own.trunc()), None);
        }
        Ok(())
    }
}

/// Returns the address after `own`, the relay's own, or `None` if that is outside the pool.
fn first_client(own: IpNet) -> Option<IpAddr> {
    let next = match own.addr() {
        IpAddr::V4(address) => IpAddr::from(address.to_bits().checked_add(1).map(Ipv4Addr::from_bits)?),
        IpAddr::V6(address) => IpAddr::from(address.to_bits().checked_add(1).map(Ipv6Addr::from_bits)?),
    };
    own.contains(&next).then_some(next)
}

fn is_link_local(net: IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
