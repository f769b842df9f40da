//! Reads, adds and removes routes.

mod message;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use nix::errno::Errno;

use super::channel::{CREATE, Channel, Explain, Failure, REPLACE};
use super::{Family, Netlink, NetlinkError};

/// The metric that the kernel gives IPv6 routes without one (`IP6_RT_PRIO_USER`).
const DEFAULT_METRIC_V6: u32 = 1024;

/// A route in one of the kernel's routing tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The destination of the route.
    pub dst: IpNet,
    /// The table that holds the route.
    pub table: u32,
    /// The action of the route.
    pub kind: RouteKind,
    /// The metric; the route with the lowest is preferred. 0 selects the kernel's default, which is
    /// 1024 for IPv6.
    pub metric: u32,
    /// The origin of the route (`RTPROT_…`).
    pub protocol: u8,
}

/// The action of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends packets through a device.
    Unicast {
        /// The index of the device.
        oif: u32,
        /// The router on the device, if any.
        gateway: Option<IpAddr>,
        /// The source address of packets from sockets that are not bound to an address, if any.
        prefsrc: Option<IpAddr>,
    },
    /// Ends the lookup in this table and continues with the next policy routing rule.
    Throw,
    /// Rejects packets with "no route to host".
    Unreachable,
}

impl Route {
    /// Creates a route through a device, without a router.
    #[must_use]
    pub fn device(dst: IpNet, table: u32, oif: u32, prefsrc: Option<IpAddr>) -> Self {
        let kind = RouteKind::Unicast { oif, gateway: None, prefsrc };
        Self { dst, table, kind, metric: 0, protocol: super::PROTOCOL_STATIC }
    }

    /// Creates a route whose action is to end the lookup in `table` and continue with the next
    /// policy routing rule.
    #[must_use]
    pub fn throw(dst: IpNet, table: u32) -> Self {
        Self { dst, table, kind: RouteKind::Throw, metric: 0, protocol: super::PROTOCOL_STATIC }
    }

    /// Creates a default route with the highest metric that rejects packets, so that no packet is
    /// passed on to the next policy routing rule.
    #[must_use]
    pub fn unreachable(family: Family, table: u32) -> Self {
        let kind = RouteKind::Unreachable;
        Self { dst: family.any(), table, kind, metric: u32::MAX, protocol: super::PROTOCOL_STATIC }
    }

    /// Returns the route as the kernel reports it: without host bits in the destination, and with
    /// the effective metric.
    #[must_use]
    pub fn normalised(self) -> Self {
        let metric = match self.dst {
            IpNet::V6(_) if self.metric == 0 => DEFAULT_METRIC_V6,
            _ => self.metric,
        };
        Self { dst: self.dst.trunc(), metric, ..self }
    }

    fn family(&self) -> Family {
        self.dst.into()
    }

    /// Returns whether a routing table cannot hold both routes, because they have the same table,
    /// destination and metric.
    fn same_key(&self, other: &Self) -> bool {
        (self.table, self.dst, self.metric) == (other.table, other.dst, other.metric)
    }
}

impl Netlink {
    /// Returns the routes of one table and address family; the list is empty if the family is
    /// disabled.
    ///
    /// A route over several devices is returned once for each. Routes of other kinds than those of
    /// [`RouteKind`] (local, broadcast…) are omitted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn routes(&self, table: u32, family: Family) -> Result<Vec<Route>, NetlinkError> {
        self.0.lock().await.routes(table, family).await
    }

    /// Returns the routes of one table and address family that lead through one device.
    ///
    /// The kernel filters the routes, so that the reply does not contain the other routes of the
    /// table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn routes_over(
        &self,
        table: u32,
        family: Family,
        oif: u32,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = self.0.lock().await.dump_routes(table, family, Some(oif)).await?;
        routes.retain(|route| matches!(route.kind, RouteKind::Unicast { oif: over, .. } if over == oif));
        Ok(routes)
    }

    /// Adds a route; fails if it exists already.
    ///
    /// # Errors
    /// When the kernel refuses; `FamilyUnavailable` for IPv6 where it is disabled.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.0.lock().await.put_route(route, CREATE).await
    }

    /// Makes `route` the only route with its table, destination and metric; returns whether
    /// anything was changed.
    ///
    /// A different route with the same key is replaced atomically, so that there is a route for
    /// every packet at all times.
    ///
    /// # Errors
    /// As [`add_route`](Self::add_route).
    pub async fn ensure_route(&self, route: &Route) -> Result<bool, NetlinkError> {
        let route = route.normalised();
        let mut channel = self.0.lock().await;
        let mut existing = channel.routes(route.table, route.family()).await?;
        existing.retain(|other| other.same_key(&route));
        if existing == [route] {
            return Ok(false);
        }
        // The first route is replaced. Remove the others (over further devices, or appended by
        // hand) before.
        for extra in existing.iter().skip(1) {
            channel.del_route(extra).await?;
        }
        channel.put_route(&route, REPLACE).await?;
        Ok(true)
    }

    /// Removes a route of any origin; returns false if it does not exist.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_route(&self, route: &Route) -> Result<bool, NetlinkError> {
        let route = route.normalised();
        let mut channel = self.0.lock().await;
        // The kernel treats the request as a pattern, which may match a route of another kind or
        // metric.
        let existing = channel.routes(route.table, route.family()).await?;
        if !existing.iter().any(|other| other.same_key(&route) && other.kind == route.kind) {
            return Ok(false);
        }
        channel.del_route(&route).await
    }
}

impl Channel {
    pub(super) async fn routes(&mut self, table: u32, family: Family) -> Result<Vec<Route>, NetlinkError> {
        self.dump_routes(table, family, None).await
    }

    async fn dump_routes(
        &mut self,
        table: u32,
        family: Family,
        oif: Option<u32>,
    ) -> Result<Vec<Route>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family.raw();
        message.attributes.push(RouteAttribute::Table(table));
        message.attributes.extend(oif.map(RouteAttribute::Oif));
        match self.dump(RouteNetlinkMessage::GetRoute(message)).await {
            // The table has never held a route, or the device was removed.
            Err(failure) if failure.is(Errno::ENOENT) || failure.is(Errno::ENODEV) => Ok(Vec::new()),
            reply => {
                match reply.explain(Some(family), || format!("list the {family} routes of table {table}")) {
                    Err(error) if error.is_family_unavailable() => Ok(Vec::new()),
                    reply => {
                        let routes = reply?.into_iter().flat_map(Route::from_message);
                        // A kernel without IPv6 returns the routes of IPv4.
                        Ok(routes.filter(|route| route.table == table && route.family() == family).collect())
                    }
                }
            }
        }
    }

    async fn put_route(&mut self, route: &Route, flags: u16) -> Result<(), NetlinkError> {
        let outcome = self.change(RouteNetlinkMessage::NewRoute(route.message()), flags).await;
        outcome.explain(Some(route.family()), || format!("set {route}"))
    }

    async fn del_route(&mut self, route: &Route) -> Result<bool, NetlinkError> {
        let mut message = route.message();
        // Match any scope and any origin.
        message.header.scope = RouteScope::NoWhere;
        message.header.protocol = RouteProtocol::Unspec;
        match self.change(RouteNetlinkMessage::DelRoute(message), 0).await {
            Err(failure) if is_absent(&failure) => Ok(false),
            outcome => outcome.map(|()| true).explain(Some(route.family()), || format!("remove {route}")),
        }
    }
}

fn is_absent(failure: &Failure) -> bool {
    failure.is(Errno::ESRCH) || failure.is(Errno::ENODEV)
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dst, table, metric, .. } = self;
        match self.kind {
            RouteKind::Throw => write!(f, "the throw route")?,
            RouteKind::Unreachable => write!(f, "the unreachable route")?,
            RouteKind::Unicast { oif, .. } => write!(f, "the route over device {oif}")?,
        }
        write!(f, " to {dst} of metric {metric} in table {table}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, with_a_pair, write_sysctl};
    use super::super::{PROTOCOL_STATIC, TABLE_MAIN};
    use super::*;

    /// The number of a routing table that does not fit the eight bits in the header of a message.
    const TABLE: u32 = 7700;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    async fn with_addresses(netlink: &Netlink) -> u32 {
        let index = netlink.link_index("left").await.unwrap();
        netlink.ensure_address(index, net("10.77.0.2/32")).await.unwrap();
        netlink.ensure_address(index, net("fd77::2/128")).await.unwrap();
        index
    }

    fn mobile_routes(oif: u32, family: Family) -> [Route; 3] {
        let (source, bypass) = match family {
            Family::V4 => ("10.77.0.2", "192.168.0.0/16"),
            Family::V6 => ("fd77::2", "fd99::/16"),
        };
        [
            Route::device(family.any(), TABLE, oif, source.parse().ok()),
            Route::throw(net(bypass), TABLE),
            Route::unreachable(family, TABLE),
        ]
    }

    #[test]
    fn routes_are_added_once_and_removed_once() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let index = with_addresses(&netlink).await;
            for family in Family::ALL {
                assert_eq!(netlink.routes(TABLE, family).await.unwrap(), []);
                for route in mobile_routes(index, family) {
                    assert!(netlink.ensure_route(&route).await.unwrap(), "{route}");
                    assert!(!netlink.ensure_route(&route).await.unwrap(), "{route}");
                    let error = netlink.add_route(&route).await.unwrap_err().to_string();
                    assert!(error.contains("File exists"), "{error}");
                    assert!(netlink.routes(TABLE, family).await.unwrap().contains(&route.normalised()));
                }
                assert_eq!(netlink.routes(TABLE, family).await.unwrap().len(), 3);
            }
            let seen = ip("route show table 7700");
            assert!(seen.contains("default dev left proto static scope link src 10.77.0.2"), "{seen}");
            assert!(seen.contains("throw 192.168.0.0/16 proto static"), "{seen}");
            assert!(seen.contains("unreachable default proto static metric 4294967295"), "{seen}");
            let seen = ip("-6 route show table 7700");
            assert!(seen.contains("default dev left proto static src fd77::2 metric 1024"), "{seen}");
            for family in Family::ALL {
                for route in mobile_routes(index, family) {
                    assert!(netlink.del_route(&route).await.unwrap(), "{route}");
                    assert!(!netlink.del_route(&route).await.unwrap(), "{route}");
                }
                assert_eq!(netlink.routes(TABLE, family).await.unwrap(), []);
            }
        });
    }

    #[test]
    fn a_different_route_with_the_same_key_is_replaced() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let index = with_addresses(&netlink).await;
            for (family, option) in [(Family::V4, "-4"), (Family::V6, "-6")] {
                ip(&format!("{option} route add unreachable default table {TABLE} metric 1024"));
                let route = Route { metric: 1024, ..mobile_routes(index, family)[0] };
                assert!(netlink.ensure_route(&route).await.unwrap());
                assert_eq!(netlink.routes(TABLE, family).await.unwrap(), [route]);
                ip(&format!("{option} route append default dev right table {TABLE} metric 1024"));
                assert_eq!(netlink.routes(TABLE, family).await.unwrap().len(), 2);
                assert!(netlink.ensure_route(&route).await.unwrap());
                assert_eq!(netlink.routes(TABLE, family).await.unwrap(), [route]);
                // Replace it with a route of another kind.
                let route = Route { kind: RouteKind::Throw, ..route };
                assert!(netlink.ensure_route(&route).await.unwrap());
                assert_eq!(netlink.routes(TABLE, family).await.unwrap(), [route]);
            }
        });
    }

    #[test]
    fn only_the_route_that_is_named_is_removed() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let index = with_addresses(&netlink).await;
            for family in Family::ALL {
                let fallback = Route::unreachable(family, TABLE);
                netlink.add_route(&fallback).await.unwrap();
                let worse = Route { metric: 2000, ..mobile_routes(index, family)[0] };
                netlink.add_route(&worse).await.unwrap();
                for metric in [0, 2001] {
                    assert!(!netlink.del_route(&Route { metric, ..worse }).await.unwrap());
                }
                assert_eq!(netlink.routes(TABLE, family).await.unwrap(), [worse, fallback]);
            }
        });
    }

    #[test]
    fn a_route_over_several_devices_is_listed_for_each() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let left = netlink.link_index("left").await.unwrap();
            let right = netlink.link_index("right").await.unwrap();
            ip("addr add 10.1.0.2/24 dev left");
            ip("addr add 10.2.0.2/24 dev right");
            ip("route add default metric 7 nexthop via 10.1.0.1 dev left nexthop via 10.2.0.1 dev right");
            let mut found = netlink.routes(TABLE_MAIN, Family::V4).await.unwrap();
            found.retain(|route| route.dst.prefix_len() == 0);
            let route = |oif, gateway: &str| Route {
                dst: Family::V4.any(),
                table: TABLE_MAIN,
                kind: RouteKind::Unicast { oif, gateway: gateway.parse().ok(), prefsrc: None },
                metric: 7,
                protocol: 3,
            };
            assert_eq!(found, [route(left, "10.1.0.1"), route(right, "10.2.0.1")]);
        });
    }

    #[test]
    fn a_route_through_a_router_of_the_other_family_is_read_and_added() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let oif = with_addresses(&netlink).await;
            let kind = RouteKind::Unicast { oif, gateway: "fe80::1".parse().ok(), prefsrc: None };
            let route =
                Route { dst: net("10.9.0.0/16"), table: TABLE, kind, metric: 3, protocol: PROTOCOL_STATIC };
            assert!(netlink.ensure_route(&route).await.unwrap());
            assert_eq!(netlink.routes(TABLE, Family::V4).await.unwrap(), [route]);
        });
    }

    #[test]
    fn a_refusal_includes_the_kernels_message() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let oif = with_addresses(&netlink).await;
            let kind = RouteKind::Unicast { oif, gateway: "192.0.2.1".parse().ok(), prefsrc: None };
            let route = Route { kind, ..Route::throw(net("10.9.0.0/16"), TABLE) };
            let error = netlink.ensure_route(&route).await.unwrap_err().to_string();
            let what =
                format!("cannot set the route over device {oif} to 10.9.0.0/16 of metric 0 in table 7700: ");
            assert!(error.starts_with(&what) && error.contains("Nexthop has invalid gateway"), "{error}");

            write_sysctl("net/ipv6/conf/left/disable_ipv6", "1");
            let route = Route::device(Family::V6.any(), TABLE, oif, None);
            assert!(netlink.ensure_route(&route).await.unwrap_err().is_family_unavailable());
        });
    }
}
