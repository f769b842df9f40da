//! Routes to the relay over links whose default route a VPN has replaced.
//!
//! These routes are in a table of their own, which is looked up after the main table: only a socket
//! that is bound to such a link, and finds no other route, uses them. See
//! docs/adr/0002-vpn-as-uplink.md.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use mobile_io::netlink::{
    Family, InterfaceSnapshot, Netlink, NetlinkError, PROTOCOL_STATIC, Route, RouteKind, Rule, TABLE_MAIN,
};

use super::look::{Found, Reached, Targets, has_address, reach};

/// The priority of the rule: after the main (32766) and the default table (32767).
pub(crate) const PRIORITY: u32 = 33_000;

/// The metric that the policy sees, so that links with a route of their own come first.
const METRIC: u32 = u32::MAX;

/// The routes around VPNs, and the routers they lead over.
#[derive(Debug)]
pub(crate) struct Detours {
    table: u32,
    /// The last router on each link, with the host's addresses on the link at that time.
    routers: BTreeMap<(u32, Family), (Option<IpAddr>, Vec<IpAddr>)>,
    /// The routes in the kernel; `None` while they are not known.
    in_force: Option<Vec<Route>>,
}

impl Detours {
    /// Creates the set for routes in `table`, where an earlier agent may have left some.
    pub(crate) fn new(table: u32) -> Self {
        Self { table, routers: BTreeMap::new(), in_force: None }
    }

    /// Makes a route for each link whose route to the relay a VPN replaced, removes routes that are
    /// no longer needed, and adds the new ones to `found`.
    pub(crate) async fn apply(
        &mut self,
        netlink: &Netlink,
        found: &mut [Found],
        snapshot: &InterfaceSnapshot,
        targets: &Targets,
    ) -> Result<(), NetlinkError> {
        let mut wanted = Vec::new();
        let mut served = Vec::new();
        self.routers.retain(|(index, _), _| found.iter().any(|link| link.index == *index));
        for (family, place) in Family::ALL.into_iter().zip(0..) {
            let relay: Vec<IpAddr> =
                targets.relay.iter().copied().filter(|address| Family::from(*address) == family).collect();
            let mut replaced = None;
            for (number, link) in found.iter().enumerate() {
                let key = (link.index, family);
                if !has_address(&link.uplink, family) || !link.uplink.up || !link.uplink.carrier {
                    self.routers.remove(&key);
                    continue;
                }
                match link.reach[place] {
                    Some(Reached { table, gateway, .. }) if table != self.table => {
                        self.routers.insert(key, (gateway, link.uplink.addresses.clone()));
                        continue;
                    }
                    _ if relay.is_empty() || link.uplink.tunnel => continue,
                    _ => {}
                }
                if replaced.is_none() {
                    replaced = Some(is_replaced(netlink, &relay, snapshot, found).await?);
                }
                if replaced == Some(true)
                    && let Some(gateway) = self.router(netlink, link, family).await?
                {
                    let routes = relay.iter().map(|to| self.route(*to, link.index, gateway));
                    let routes: Vec<Route> = routes.collect();
                    if self.in_force.as_ref().is_none_or(|known| routes.iter().any(|it| !known.contains(it)))
                    {
                        let uplink = link.uplink.name.as_str();
                        tracing::info!(
                            uplink,
                            ?gateway,
                            "a VPN has replaced the default route: leading to the relay over the link's router"
                        );
                    }
                    wanted.extend(routes);
                    served.push((number, place, relay.clone()));
                }
            }
        }
        self.ensure(netlink, wanted).await?;
        for link in found.iter_mut() {
            // Delete the routes that are no longer wanted.
            for route in &mut link.reach {
                route.take_if(|route| route.table == self.table);
            }
        }
        for (number, place, relay) in served {
            let index = found[number].index;
            let route = reach(netlink, index, &relay).await?;
            found[number].reach[place] = route.map(|route| Reached { metric: METRIC, ..route });
        }
        for link in found {
            link.apply_routes();
        }
        Ok(())
    }

    /// Returns the router on a link: that of the last route over it, else that of a host route,
    /// such as a VPN client makes to its server; `None` if neither is known.
    async fn router(
        &mut self,
        netlink: &Netlink,
        link: &Found,
        family: Family,
    ) -> Result<Option<Option<IpAddr>>, NetlinkError> {
        let key = (link.index, family);
        let same_network =
            |addresses: &[IpAddr]| addresses.iter().any(|address| link.uplink.addresses.contains(address));
        if let Some((gateway, addresses)) = self.routers.get(&key)
            && same_network(addresses)
        {
            return Ok(Some(*gateway));
        }
        let mut routes = netlink.routes_over(TABLE_MAIN, family, link.index).await?;
        routes.extend(netlink.routes_over(self.table, family, link.index).await?);
        let gateway = routes.iter().find_map(|route| match route.kind {
            RouteKind::Unicast { gateway, .. } if is_host(route.dst) => gateway,
            _ => None,
        });
        if gateway.is_some() {
            self.routers.insert(key, (gateway, link.uplink.addresses.clone()));
        }
        Ok(gateway.map(Some))
    }

    /// Returns the route to `to` over a device. The device index is its metric, because a table
    /// takes one route for each destination and metric.
    fn route(&self, to: IpAddr, oif: u32, gateway: Option<IpAddr>) -> Route {
        let kind = RouteKind::Unicast { oif, gateway, prefsrc: None };
        Route { dst: to.into(), table: self.table, kind, metric: oif, protocol: PROTOCOL_STATIC }
    }

    async fn ensure(&mut self, netlink: &Netlink, wanted: Vec<Route>) -> Result<(), NetlinkError> {
        if wanted.is_empty() && self.in_force.as_ref().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        self.in_force = None;
        for family in Family::ALL {
            let present = netlink.routes(self.table, family).await?;
            for route in present.iter().filter(|route| !wanted.contains(route)) {
                netlink.del_route(route).await?;
            }
        }
        for route in &wanted {
            if let Err(error) = netlink.ensure_route(route).await {
                // The link may be in another network by now.
                tracing::debug!(%error, "cannot lead around a VPN");
            }
        }
        for family in Family::ALL {
            let rule = rule(family, self.table);
            if wanted.iter().any(|route| Family::from(route.dst) == family) {
                netlink.ensure_rule(&rule).await?;
            } else {
                netlink.del_rule(&rule).await?;
            }
        }
        self.in_force = Some(wanted);
        Ok(())
    }
}

/// Returns the rule that leads to the table.
pub(crate) fn rule(family: Family, table: u32) -> Rule {
    Rule { priority: PRIORITY, family, fwmark: None, from: None, table }
}

/// Returns whether ordinary packets for the relay go into a tunnel, our own included.
async fn is_replaced(
    netlink: &Netlink,
    relay: &[IpAddr],
    snapshot: &InterfaceSnapshot,
    found: &[Found],
) -> Result<bool, NetlinkError> {
    for to in relay {
        let Some(oif) = netlink.lookup(*to, 0).await?.and_then(|way| way.oif) else { continue };
        let is_link = found.iter().any(|link| link.index == oif && !link.uplink.tunnel);
        let loopback = snapshot.links.iter().any(|link| link.index == oif && link.loopback);
        if !is_link && !loopback {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_host(net: IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}
