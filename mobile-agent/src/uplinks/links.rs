//! Reads the network links of this host and looks up their routes to the relay.
//!
//! The cost of a route look-up does not depend on the number of routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mobile_netlink::{Address, Family, InterfaceSnapshot, Link, Netlink, NetlinkError};

use super::policy::Uplink;

/// Remote addresses for look-ups of default routes. They are reserved for benchmarks (RFC 2544, RFC
/// 5180), so no host has a more specific route to them.
pub(crate) const REMOTE_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1))];

/// The destinations (the relay, or remote addresses in its place) whose routes decide whether a
/// link can carry the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteTargets {
    /// The known addresses of the relay.
    pub(crate) relay: Vec<IpAddr>,
}

/// A link as read from the kernel, with its routes to the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedLink {
    /// The properties that the policy uses.
    pub(crate) uplink: Uplink,
    /// The interface index of the link.
    pub(crate) index: u32,
    /// Whether the link is a TUN or TAP, whose packets a process reads.
    pub(crate) is_tun: bool,
    /// The IPv4 and the IPv6 route to the relay.
    pub(crate) relay_routes: [Option<RelayRoute>; 2],
}

/// The route of a link to the relay. In a family where the relay has no address, a remote address
/// stands for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelayRoute {
    /// The table that holds the route.
    pub(crate) table: u32,
    /// The next hop of the route.
    pub(crate) gateway: Option<IpAddr>,
    /// The metric of the route.
    pub(crate) metric: u32,
}

impl RouteTargets {
    /// Creates the route targets for a relay with these addresses.
    pub(crate) fn new(relay: &[SocketAddr]) -> Self {
        let mut relay: Vec<IpAddr> = relay.iter().map(|address| address.ip().to_canonical()).collect();
        relay.sort_unstable();
        relay.dedup();
        Self { relay }
    }

    /// Returns the relay's addresses of one family, or else a remote address of that family, whose
    /// route is the link's default route.
    pub(crate) fn of(&self, family: Family) -> Vec<IpAddr> {
        let of_family = |address: &IpAddr| Family::from(*address) == family;
        let relay: Vec<IpAddr> = self.relay.iter().copied().filter(of_family).collect();
        if relay.is_empty() { REMOTE_ADDRESSES.into_iter().filter(of_family).collect() } else { relay }
    }

    /// Returns the route targets of both address families.
    pub(crate) fn all(&self) -> Vec<IpAddr> {
        Family::ALL.into_iter().flat_map(|family| self.of(family)).collect()
    }
}

/// Reads every link except loopback and the host virtual device, and looks up the routes of links
/// that are up and have an address.
pub(crate) async fn read_links(
    netlink: &Netlink,
    own_device: &str,
    targets: &RouteTargets,
) -> Result<(Vec<ObservedLink>, InterfaceSnapshot), NetlinkError> {
    let snapshot = netlink.snapshot().await?;
    let mut links = Vec::new();
    for link in snapshot.links.iter().filter(|link| !link.loopback && link.name != own_device) {
        let mut observed = from_link(link, &snapshot.addresses);
        for (family, place) in Family::ALL.into_iter().zip(0..) {
            if !link.up || !link.carrier || !has_address(&observed.uplink, family) {
                continue;
            }
            observed.relay_routes[place] = route_to(netlink, link.index, &targets.of(family)).await?;
        }
        observed.apply_routes();
        links.push(observed);
    }
    Ok((links, snapshot))
}

/// Returns the route by which a socket bound to the device with this index reaches the first of
/// `targets` that it has a route to.
pub(crate) async fn route_to(
    netlink: &Netlink,
    index: u32,
    targets: &[IpAddr],
) -> Result<Option<RelayRoute>, NetlinkError> {
    for target in targets {
        if let Some(route) = netlink.lookup_bound(*target, index).await? {
            let mobile_netlink::BoundRoute { table, gateway, metric } = route;
            return Ok(Some(RelayRoute { table, gateway, metric }));
        }
    }
    Ok(None)
}

/// Returns whether a link has an address of the family, deprecated ones included.
pub(crate) fn has_address(uplink: &Uplink, family: Family) -> bool {
    [&uplink.addresses, &uplink.deprecated]
        .into_iter()
        .flatten()
        .any(|address| Family::from(*address) == family)
}

impl ObservedLink {
    /// Copies the metrics and next hops of the routes to the relay into the properties that the
    /// policy uses.
    pub(crate) fn apply_routes(&mut self) {
        let [four, six] = self.relay_routes;
        self.uplink.ipv4_route = four.map(|route| route.metric);
        self.uplink.ipv6_route = six.map(|route| route.metric);
        self.uplink.gateways = [four, six].into_iter().filter_map(|route| route?.gateway).collect();
    }
}

fn from_link(link: &Link, addresses: &[Address]) -> ObservedLink {
    let of_link = |usable| {
        let fits = move |address: &&Address| {
            address.index == link.index && address.global && address.usable == usable
        };
        addresses.iter().filter(fits).map(|address| address.net.addr()).collect()
    };
    ObservedLink {
        uplink: Uplink {
            name: link.name.clone(),
            up: link.up,
            carrier: link.carrier,
            addresses: of_link(true),
            deprecated: of_link(false),
            ipv4_route: None,
            ipv6_route: None,
            gateways: Vec::new(),
            tunnel: link.tunnel,
            mobile_reader: None,
        },
        index: link.index,
        is_tun: link.kind.as_deref() == Some("tun"),
        relay_routes: [None; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_its_own_global_addresses() {
        let link = Link {
            index: 2,
            name: "eth0".into(),
            kind: None,
            up: true,
            carrier: true,
            loopback: false,
            tunnel: false,
            mtu: 1500,
            group: 0,
            multicast: true,
        };
        let address =
            |index, net: &str, global, usable| Address { index, net: net.parse().unwrap(), global, usable };
        let observed = from_link(
            &link,
            &[
                address(2, "192.0.2.7/24", true, true),
                address(2, "2001:db8::7/64", true, false),
                address(2, "fe80::1/64", false, true),
                address(3, "192.0.2.8/24", true, true),
            ],
        );
        assert_eq!(observed.uplink.addresses, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(observed.uplink.deprecated, ["2001:db8::7".parse::<IpAddr>().unwrap()]);
        assert!(Family::ALL.iter().all(|family| has_address(&observed.uplink, *family)));
    }

    #[test]
    fn a_family_without_a_relay_address_uses_a_remote_address() {
        let targets = RouteTargets::new(&["[::ffff:198.51.100.2]:443".parse().unwrap()]);
        assert_eq!(targets.of(Family::V4), ["198.51.100.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(targets.of(Family::V6), REMOTE_ADDRESSES[1..]);
        assert_eq!(targets.all().len(), 2);
        assert_eq!(RouteTargets::new(&[]).all(), REMOTE_ADDRESSES);
    }
}
