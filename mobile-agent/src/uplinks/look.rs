//! Asks the kernel about the links by route lookups, whose cost does not depend on the number of
//! routes.

use std::net::{IpAddr, SocketAddr};

use mobile_io::netlink::{Address, Family, InterfaceSnapshot, Link, Netlink, NetlinkError};

use super::policy::Uplink;
use crate::routing::plan::ANYWHERE;

/// The addresses whose route decides whether a link serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Targets {
    /// The relay's addresses, as far as they are known.
    pub(crate) relay: Vec<IpAddr>,
}

/// A link, with its routes to the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The facts that the policy decides by.
    pub(crate) uplink: Uplink,
    /// The index of the device.
    pub(crate) index: u32,
    /// Whether the link is a TUN or TAP, whose packets a process reads.
    pub(crate) by_process: bool,
    /// The IPv4 and the IPv6 route to the relay.
    pub(crate) reach: [Option<Reached>; 2],
}

/// The route of a link to the relay, or to anywhere in a family where the relay has no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    /// The table that holds the route.
    pub(crate) table: u32,
    /// The router.
    pub(crate) gateway: Option<IpAddr>,
    /// The metric.
    pub(crate) metric: u32,
}

impl Targets {
    /// Creates the targets for a relay with these addresses.
    pub(crate) fn new(relay: &[SocketAddr]) -> Self {
        let mut relay: Vec<IpAddr> = relay.iter().map(|address| address.ip().to_canonical()).collect();
        relay.sort_unstable();
        relay.dedup();
        Self { relay }
    }

    /// Returns the addresses of one family; if the relay has none, a distant address of that
    /// family.
    pub(crate) fn of(&self, family: Family) -> Vec<IpAddr> {
        let of_family = |address: &IpAddr| Family::from(*address) == family;
        let relay: Vec<IpAddr> = self.relay.iter().copied().filter(of_family).collect();
        if relay.is_empty() { ANYWHERE.into_iter().filter(of_family).collect() } else { relay }
    }

    /// Returns the addresses of both families.
    pub(crate) fn all(&self) -> Vec<IpAddr> {
        Family::ALL.into_iter().flat_map(|family| self.of(family)).collect()
    }
}

/// Reads every link but loopback and our own device. Looks up the routes of links that are up and
/// have an address.
pub(crate) async fn look(
    netlink: &Netlink,
    own_device: &str,
    targets: &Targets,
) -> Result<(Vec<Found>, InterfaceSnapshot), NetlinkError> {
    let snapshot = netlink.snapshot().await?;
    let mut all = Vec::new();
    for link in snapshot.links.iter().filter(|link| !link.loopback && link.name != own_device) {
        let mut found = from_link(link, &snapshot.addresses);
        for (family, place) in Family::ALL.into_iter().zip(0..) {
            if !link.up || !link.carrier || !has_address(&found.uplink, family) {
                continue;
            }
            found.reach[place] = reach(netlink, link.index, &targets.of(family)).await?;
        }
        found.apply_routes();
        all.push(found);
    }
    Ok((all, snapshot))
}

/// Returns the best route of a socket bound to the device to one of the addresses.
pub(crate) async fn reach(
    netlink: &Netlink,
    index: u32,
    targets: &[IpAddr],
) -> Result<Option<Reached>, NetlinkError> {
    for target in targets {
        if let Some(route) = netlink.lookup_bound(*target, index).await? {
            let mobile_io::netlink::BoundRoute { table, gateway, metric } = route;
            return Ok(Some(Reached { table, gateway, metric }));
        }
    }
    Ok(None)
}

/// Returns whether a link has an address of the family, deprecated ones included.
pub(crate) fn has_address(uplink: &Uplink, family: Family) -> bool {
    [&uplink.addresses, &uplink.fading].into_iter().flatten().any(|address| Family::from(*address) == family)
}

impl Found {
    /// Copies the routes into the facts that the policy decides by.
    pub(crate) fn apply_routes(&mut self) {
        let [four, six] = self.reach;
        self.uplink.ipv4_route = four.map(|route| route.metric);
        self.uplink.ipv6_route = six.map(|route| route.metric);
        self.uplink.gateways = [four, six].into_iter().filter_map(|route| route?.gateway).collect();
    }
}

fn from_link(link: &Link, addresses: &[Address]) -> Found {
    let of_link = |usable| {
        let fits = move |address: &&Address| {
            address.index == link.index && address.global && address.usable == usable
        };
        addresses.iter().filter(fits).map(|address| address.net.addr()).collect()
    };
    Found {
        uplink: Uplink {
            name: link.name.clone(),
            up: link.up,
            carrier: link.carrier,
            addresses: of_link(true),
            fading: of_link(false),
            ipv4_route: None,
            ipv6_route: None,
            gateways: Vec::new(),
            tunnel: link.tunnel,
            fed_by: None,
        },
        index: link.index,
        by_process: link.kind.as_deref() == Some("tun"),
        reach: [None; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_told_with_its_addresses() {
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
        let found = from_link(
            &link,
            &[
                address(2, "192.0.2.7/24", true, true),
                address(2, "2001:db8::7/64", true, false),
                address(2, "fe80::1/64", false, true),
                address(3, "192.0.2.8/24", true, true),
            ],
        );
        assert_eq!(found.uplink.addresses, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(found.uplink.fading, ["2001:db8::7".parse::<IpAddr>().unwrap()]);
        assert!(Family::ALL.iter().all(|family| has_address(&found.uplink, *family)));
    }

    #[test]
    fn a_family_without_an_address_of_the_relay_is_judged_by_any_other() {
        let targets = Targets::new(&["[::ffff:198.51.100.2]:443".parse().unwrap()]);
        assert_eq!(targets.of(Family::V4), ["198.51.100.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(targets.of(Family::V6), ANYWHERE[1..]);
        assert_eq!(targets.all().len(), 2);
        assert_eq!(Targets::new(&[]).all(), ANYWHERE);
    }
}
