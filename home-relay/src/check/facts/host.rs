//! The facts about this host's network that decide whether a configuration can be served, at the
//! start and at a reload.

use ipnet::IpNet;
use mobile_host::sysctl;
use mobile_netlink::{Family, InterfaceSnapshot, Netlink, NetlinkError, RouteKind, TABLE_MAIN};

use super::Failure;
use crate::config::Config;
use crate::network::{self, nft};
use crate::reach::Reach;

/// The facts about this host's network.
#[derive(Debug)]
pub(in crate::check) struct HostFacts {
    /// Whether this host can serve one of the pools, or why it cannot.
    pub(in crate::check) servable: Result<(), Failure>,
    /// The address families with a pool, each with whether this host forwards its packets, or
    /// `None` if the host does not have the family.
    pub(in crate::check) forwarding: Vec<(&'static str, Option<bool>)>,
    /// The nftables chains of other programs that drop forwarded packets by default.
    pub(in crate::check) dropping: Vec<String>,
    /// The setting `[clients] reach`; `None` if it is not set.
    pub(in crate::check) reach: Option<Reach>,
    /// The name of the relay's device.
    pub(in crate::check) device: String,
    /// The kind of a device with that name that is no TUN device; `None` if there is none.
    pub(in crate::check) other_kind: Option<String>,
    /// The interface on which clients are masqueraded, and its state; `None` if packets are
    /// masqueraded on all interfaces or on none.
    pub(in crate::check) interface: Option<(String, InterfaceState)>,
    /// The configured address pools.
    pub(in crate::check) pools: Vec<IpNet>,
    /// The networks of this host's devices other than the relay's, and the destinations of their
    /// routes, each with the device's name.
    pub(in crate::check) local: Result<Vec<LocalNetwork>, Failure>,
}

/// A network of one of this host's devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::check) struct LocalNetwork {
    /// The name of the device.
    pub(in crate::check) device: String,
    /// The network.
    pub(in crate::check) net: IpNet,
    /// Whether the network is only the destination of a route, and no address of the device is in
    /// it.
    pub(in crate::check) is_route: bool,
}

/// The state of a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::check) enum InterfaceState {
    /// The interface is up.
    Up,
    /// The interface exists, but is down or without a carrier.
    Down,
    /// No interface has this name.
    Missing,
}

impl HostFacts {
    /// Gathers the facts for `config` and a relay with the device `device`; `dropping` are the
    /// chains of other firewalls ([`dropping_chains`]).
    pub(in crate::check) async fn gather(config: &Config, device: &str, dropping: Vec<String>) -> Self {
        let pools: Vec<IpNet> = config.pools().map(|pools| pools.networks().collect()).unwrap_or_default();
        let (snapshot, local) = match read(device).await {
            Ok((snapshot, local)) => (snapshot, Ok(local)),
            Err(error) => (InterfaceSnapshot::default(), Err(Failure::of(error))),
        };
        let link = |name: &str| snapshot.links.iter().find(|link| link.name == *name);
        let state = |name: &str| match link(name) {
            Some(link) if link.up && link.carrier => InterfaceState::Up,
            Some(_) => InterfaceState::Down,
            None => InterfaceState::Missing,
        };
        let interface = config.nat.interface.clone().filter(|_| config.nat.masquerade && local.is_ok());
        let other_kind = link(device).filter(|link| link.kind.as_deref() != Some("tun"));
        let servable = config.pools().and_then(network::servable);
        Self {
            servable: servable.map(drop).map_err(|error| Failure::Other(format!("{error:#}"))),
            forwarding: pools.iter().map(forwarding).collect(),
            dropping,
            reach: config.clients.reach.clone(),
            device: device.to_owned(),
            other_kind: other_kind.map(|link| link.kind.clone().unwrap_or_else(|| "physical".to_owned())),
            interface: interface.map(|name| (name.clone(), state(&name))),
            pools,
            local,
        }
    }
}

fn forwarding(pool: &IpNet) -> (&'static str, Option<bool>) {
    match pool {
        IpNet::V4(_) => ("IPv4", setting("net/ipv4/ip_forward")),
        IpNet::V6(_) => {
            ("IPv6", if network::has_ipv6() { setting("net/ipv6/conf/all/forwarding") } else { None })
        }
    }
}

fn setting(name: &str) -> Option<bool> {
    Some(sysctl::read(name).ok()? == "1")
}

/// Reads all devices and addresses, and returns them with the networks of all devices but `own`
/// (the relay's) and the destinations of their routes in the main table. A default route is no
/// network of a device.
async fn read(own: &str) -> Result<(InterfaceSnapshot, Vec<LocalNetwork>), NetlinkError> {
    let netlink = Netlink::new()?;
    let snapshot = netlink.snapshot().await?;
    let mut networks: Vec<(u32, IpNet, bool)> = Vec::new();
    let addresses = snapshot.addresses.iter().filter(|address| address.global);
    networks.extend(addresses.map(|address| (address.index, address.net.trunc(), false)));
    for family in Family::ALL {
        let routes = match netlink.routes(TABLE_MAIN, family).await {
            Err(error) if error.is_family_unavailable() => continue,
            routes => routes?,
        };
        networks.extend(routes.iter().filter_map(|route| match route.kind {
            RouteKind::Unicast { oif, .. } if route.dst.prefix_len() > 0 => Some((oif, route.dst, true)),
            _ => None,
        }));
    }
    let name = |index| snapshot.links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let local = networks.into_iter().filter_map(|(index, net, is_route)| {
        let device = name(index).filter(|device| device != own)?;
        Some(LocalNetwork { device, net, is_route })
    });
    let local = local.collect();
    Ok((snapshot, local))
}

/// Returns the nftables chains of other programs that drop forwarded packets by default; none if
/// nft cannot list them. Blocks the thread.
pub(in crate::check) fn dropping_chains() -> Vec<String> {
    nft::list_chains().map(|json| dropping(&json)).unwrap_or_default()
}

/// Returns the nftables chains of other programs at the forward hook that drop by default, each as
/// its family, table and name.
fn dropping(json: &serde_json::Value) -> Vec<String> {
    let chains = json["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("chain"));
    chains
        .filter(|chain| {
            let ours = chain["table"].as_str().is_some_and(|table| table.starts_with(nft::TABLE));
            chain["hook"] == "forward" && chain["policy"] == "drop" && !ours
        })
        .map(|chain| {
            let word = |key: &str| chain[key].as_str().unwrap_or("?");
            format!("{} {} {}", word("family"), word("table"), word("name"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_chains_that_drop_by_default_are_found() {
        let chain = |table: &str, name: &str, hook: &str, policy: &str| {
            serde_json::json!({"chain": {"family": "ip", "table": table, "name": name, "handle": 1, "type": "filter",
                "hook": hook, "prio": 0, "policy": policy}})
        };
        let json = serde_json::json!({"nftables": [
            {"metainfo": {"json_schema_version": 1}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 2}},
            chain("filter", "INPUT", "input", "drop"),
            chain("filter", "FORWARD", "forward", "drop"),
            chain("other", "FORWARD", "forward", "accept"),
            chain("home_relay", "forward", "forward", "drop"),
        ]});
        assert_eq!(dropping(&json), ["ip filter FORWARD"]);
        assert!(dropping(&serde_json::json!({})).is_empty());
    }
}
