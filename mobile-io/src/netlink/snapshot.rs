//! Everything a policy looks at, read at one moment.

use std::net::IpAddr;

use super::{Address, Family, Link, Netlink, NetlinkError, Route, RouteKind, TABLE_MAIN};

/// A default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Its device.
    pub oif: u32,
    /// The router on it, if any.
    pub gateway: Option<IpAddr>,
    /// The lower, the better.
    pub metric: u32,
    /// Its family.
    pub family: Family,
}

/// Devices, addresses and default routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every device.
    pub links: Vec<Link>,
    /// Every address.
    pub addresses: Vec<Address>,
    /// The default routes of the main table.
    pub default_routes: Vec<DefaultRoute>,
}

impl Netlink {
    /// Reads it. Addresses that cannot be used or do not lead beyond their link are in it, and say so; default
    /// routes are those to a device that is there, one for each device of a route over several.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn snapshot(&self) -> Result<Snapshot, NetlinkError> {
        let mut channel = self.0.lock().await;
        let links = channel.links().await?;
        let addresses = channel.addresses(None).await?;
        let mut default_routes = Vec::new();
        for family in Family::ALL {
            let routes = channel.routes(TABLE_MAIN, family).await?;
            default_routes.extend(routes.iter().filter_map(DefaultRoute::from_route));
        }
        Ok(Snapshot { links, addresses, default_routes })
    }
}

impl DefaultRoute {
    fn from_route(route: &Route) -> Option<Self> {
        let RouteKind::Unicast { oif, gateway, .. } = route.kind else { return None };
        let family = Family::from(route.dst);
        (route.dst == family.any()).then_some(Self { oif, gateway, metric: route.metric, family })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, with_a_pair};
    use super::*;

    #[test]
    fn default_routes_are_told_with_their_device_router_and_metric() {
        with_a_pair(async {
            ip("addr add 10.1.0.2/24 dev left");
            ip("route add default via 10.1.0.1 dev left metric 100");
            ip("route add default dev right metric 600");
            ip("route add 10.0.0.0/8 dev right");
            ip("route add default dev right table 77");
            ip("-6 route add default via fe80::1 dev left metric 50");
            ip("-6 route add unreachable default metric 4000");
            let netlink = Netlink::new().unwrap();
            let snapshot = netlink.snapshot().await.unwrap();
            let index = |name| snapshot.links.iter().find(|link| link.name == name).unwrap().index;
            let route = |oif, gateway: Option<&str>, metric, family| DefaultRoute {
                oif: index(oif),
                gateway: gateway.map(|text| text.parse().unwrap()),
                metric,
                family,
            };
            assert_eq!(
                snapshot.default_routes,
                [
                    route("left", Some("10.1.0.1"), 100, Family::V4),
                    route("right", None, 600, Family::V4),
                    route("left", Some("fe80::1"), 50, Family::V6),
                ]
            );
            let left = index("left");
            assert!(snapshot.addresses.iter().any(|a| a.index == left && a.net.to_string() == "10.1.0.2/24"));
        });
    }
}
