//! Adds routes to the relay over links whose default route a VPN has replaced.
//!
//! The routes are in a separate table that is looked up after the main table. So they apply only to
//! a socket that is bound to such a link and has no other route. See
//! docs/adr/0002-vpn-as-uplink.md.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use mobile_netlink::{
    Family, InterfaceSnapshot, Netlink, NetlinkError, PROTOCOL_STATIC, Route, RouteKind, Rule, TABLE_MAIN,
};

use super::links::{ObservedLink, RelayRoute, RouteTargets, has_address, route_to};

/// The priority of the rule that leads to the detours' table, after the rules for the main table
/// (32766) and the default table (32767).
pub(crate) const PRIORITY: u32 = 33_000;

/// The metric of a detour as the uplink policy sees it, so that links with an ordinary route to the
/// relay rank first.
const METRIC: u32 = u32::MAX;

/// The agent's routes to the relay that avoid VPNs, and the known routers of the links that these
/// routes use.
#[derive(Debug)]
pub(crate) struct Detours {
    table: u32,
    /// The last known router on each link, by interface index and family (`None` is a link without
    /// a router), with the host's addresses on the link at that time.
    routers: BTreeMap<(u32, Family), (Option<IpAddr>, Vec<IpAddr>)>,
    /// The detours in the kernel, or `None` while they are unknown.
    in_force: Option<Vec<Route>>,
}

impl Detours {
    /// Creates an empty set of detours in the routing table `table`. The detours in the kernel are
    /// unknown at first, because an earlier agent may have left some.
    pub(crate) fn new(table: u32) -> Self {
        Self { table, routers: BTreeMap::new(), in_force: None }
    }

    /// Adds a route to the relay over each link whose own route was replaced by a VPN, deletes
    /// detours that are no longer needed, and sets the present ones as the routes to the relay in
    /// `links`.
    pub(crate) async fn apply(
        &mut self,
        netlink: &Netlink,
        links: &mut [ObservedLink],
        snapshot: &InterfaceSnapshot,
        targets: &RouteTargets,
    ) -> Result<(), NetlinkError> {
        let mut wanted = Vec::new();
        let mut served = Vec::new();
        self.routers.retain(|(index, _), _| links.iter().any(|link| link.index == *index));
        for (family, place) in Family::ALL.into_iter().zip(0..) {
            let relay: Vec<IpAddr> =
                targets.relay.iter().copied().filter(|address| Family::from(*address) == family).collect();
            let mut replaced = None;
            for (number, link) in links.iter().enumerate() {
                let key = (link.index, family);
                if !has_address(&link.uplink, family) || !link.uplink.up || !link.uplink.carrier {
                    self.routers.remove(&key);
                    continue;
                }
                match link.relay_routes[place] {
                    Some(RelayRoute { table, gateway, .. }) if table != self.table => {
                        self.routers.insert(key, (gateway, link.uplink.addresses.clone()));
                        continue;
                    }
                    _ if relay.is_empty() || link.uplink.tunnel => continue,
                    _ => {}
                }
                if replaced.is_none() {
                    replaced = Some(is_replaced(netlink, &relay, snapshot, links).await?);
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
                            "a VPN has replaced the default route: adding a route to the relay \
                            over the link's router"
                        );
                    }
                    wanted.extend(routes);
                    served.push((number, place, relay.clone()));
                }
            }
        }
        self.ensure(netlink, wanted).await?;
        for link in links.iter_mut() {
            // Forget the detours that were deleted.
            for route in &mut link.relay_routes {
                route.take_if(|route| route.table == self.table);
            }
        }
        for (number, place, relay) in served {
            let index = links[number].index;
            let route = route_to(netlink, index, &relay).await?;
            links[number].relay_routes[place] = route.map(|route| RelayRoute { metric: METRIC, ..route });
        }
        for link in links {
            link.apply_routes();
        }
        Ok(())
    }

    /// Returns the router on a link, or `None` if it is unknown.
    ///
    /// The router is the last known one, if the link still has an address that it had with that
    /// router. Otherwise the router is the next hop of a host route, which a VPN client adds for
    /// its server. An inner `None` means that the link has no router.
    async fn router(
        &mut self,
        netlink: &Netlink,
        link: &ObservedLink,
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

    /// Returns the route to `to` over a device. The device index serves as metric, because a table
    /// holds only one route for each destination and metric.
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
                // The link may be in another network meanwhile.
                tracing::debug!(%error, "cannot add a route to the relay around a VPN");
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

/// Returns the rule that leads packets without a route in the ordinary tables to the detours'
/// table.
pub(crate) fn rule(family: Family, table: u32) -> Rule {
    Rule { priority: PRIORITY, family, fwmark: None, from: None, table }
}

/// Returns whether packets of ordinary processes to the relay enter a tunnel, the host virtual
/// device included.
async fn is_replaced(
    netlink: &Netlink,
    relay: &[IpAddr],
    snapshot: &InterfaceSnapshot,
    links: &[ObservedLink],
) -> Result<bool, NetlinkError> {
    for to in relay {
        let Some(oif) = netlink.lookup(*to, 0).await?.and_then(|way| way.oif) else { continue };
        let is_link = links.iter().any(|link| link.index == oif && !link.uplink.tunnel);
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
