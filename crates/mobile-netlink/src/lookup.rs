//! Looks up the route that the kernel chooses for a destination and a mark.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType, RouteVia,
};
use nix::errno::Errno;

use super::channel::{Channel, Explain};
use super::{Family, Netlink, NetlinkError, Route, RouteKind};

/// The route that the kernel chooses for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteLookup {
    /// The table that the route is in.
    pub table: u32,
    /// Whether the destination is this host.
    pub local: bool,
    /// The device of the route, if any.
    pub oif: Option<u32>,
    /// The router on the device, if any.
    pub gateway: Option<IpAddr>,
    /// The source address of packets from sockets that are not bound to an address, if any.
    pub source: Option<IpAddr>,
}

/// The route that a socket bound to a device has to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundRoute {
    /// The table that the route is in.
    pub table: u32,
    /// The router on the device, if any.
    pub gateway: Option<IpAddr>,
    /// The metric; the route with the lowest is preferred.
    pub metric: u32,
}

impl Netlink {
    /// Looks up the route to `destination` for a socket that is bound to the device `oif`; returns
    /// `None` if there is none.
    ///
    /// No packet is sent, and the cost does not depend on the number of routes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn lookup_bound(
        &self,
        destination: IpAddr,
        oif: u32,
    ) -> Result<Option<BoundRoute>, NetlinkError> {
        self.0.lock().await.lookup_bound(destination, oif).await
    }

    /// Looks up the route of a packet with the given firewall mark; returns `None` if the
    /// destination is unreachable.
    ///
    /// No packet is sent.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn lookup(&self, destination: IpAddr, mark: u32) -> Result<Option<RouteLookup>, NetlinkError> {
        self.0.lock().await.lookup(destination, mark).await
    }
}

impl Channel {
    async fn lookup_bound(
        &mut self,
        destination: IpAddr,
        oif: u32,
    ) -> Result<Option<BoundRoute>, NetlinkError> {
        let family = Family::from(destination);
        let mut message = route_request(destination);
        // Without the flag, IPv4 reports that the destination is on-link if the device has no
        // routes.
        message.header.flags |= RouteFlags::FibMatch;
        message.attributes.push(RouteAttribute::Oif(oif));
        match self.get(RouteNetlinkMessage::GetRoute(message)).await {
            Err(failure) if UNREACHABLE_ERRORS.iter().any(|&errno| failure.is(errno)) => Ok(None),
            // The device has been removed.
            Err(failure) if failure.is(Errno::ENODEV) => Ok(None),
            reply => {
                let what = || format!("look up the route to {destination} over device {oif}");
                match reply.explain(Some(family), what) {
                    Err(error) if error.is_family_unavailable() => Ok(None),
                    reply => Ok(reply?.and_then(|reply| BoundRoute::from_message(reply, oif))),
                }
            }
        }
    }

    async fn lookup(&mut self, destination: IpAddr, mark: u32) -> Result<Option<RouteLookup>, NetlinkError> {
        let family = Family::from(destination);
        let mut message = route_request(destination);
        message.attributes.push(RouteAttribute::Mark(mark));
        match self.get(RouteNetlinkMessage::GetRoute(message)).await {
            Err(failure) if UNREACHABLE_ERRORS.iter().any(|&errno| failure.is(errno)) => Ok(None),
            reply => {
                let reply = reply.explain(Some(family), || format!("look up the route to {destination}"))?;
                Ok(reply.and_then(RouteLookup::from_message))
            }
        }
    }
}

/// Returns a netlink request for the route to one destination.
fn route_request(destination: IpAddr) -> RouteMessage {
    let family = Family::from(destination);
    let mut message = RouteMessage::default();
    message.header.address_family = family.raw();
    message.header.destination_prefix_length = family.any().max_prefix_len();
    if family == Family::V4 {
        // Without the flag, IPv4 always reports the main table. IPv6 reports the right table, and
        // rejects the flag.
        message.header.flags = RouteFlags::LookupTable;
    }
    message.attributes.push(RouteAttribute::Destination(destination.into()));
    message
}

/// The errors with which the kernel answers a lookup that hits an unreachable, prohibit or
/// blackhole route, or no route.
const UNREACHABLE_ERRORS: [Errno; 4] =
    [Errno::EHOSTUNREACH, Errno::ENETUNREACH, Errno::EACCES, Errno::EINVAL];

impl BoundRoute {
    /// Parses the reply to a lookup, which is the route as configured with all its nexthops;
    /// returns the nexthop over `device`, if any.
    fn from_message(message: RouteNetlinkMessage, device: u32) -> Option<Self> {
        Route::from_message(message).into_iter().find_map(|route| match route.kind {
            RouteKind::Unicast { oif, gateway, .. } if oif == device => {
                Some(Self { table: route.table, gateway, metric: route.metric })
            }
            _ => None,
        })
    }
}

impl RouteLookup {
    fn from_message(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        let local = match message.header.kind {
            RouteType::Local => true,
            RouteType::Unicast | RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => false,
            _ => return None,
        };
        let table = message.header.table.into();
        let mut lookup = Self { table, local, oif: None, gateway: None, source: None };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(table) => lookup.table = *table,
                RouteAttribute::Oif(oif) => lookup.oif = Some(*oif),
                RouteAttribute::Gateway(address) => lookup.gateway = ip(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => lookup.gateway = Some((*address).into()),
                RouteAttribute::Via(RouteVia::Inet6(address)) => lookup.gateway = Some((*address).into()),
                RouteAttribute::PrefSource(address) => lookup.source = ip(address),
                _ => {}
            }
        }
        Some(lookup)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ip, with_a_pair};
    use super::*;

    #[test]
    fn the_mark_selects_the_route() {
        with_a_pair(async {
            ip("addr add 10.1.0.2/24 dev left");
            ip("addr add fd01::2/64 dev left nodad");
            ip("addr add 10.77.0.2/32 dev right");
            ip("addr add fd77::2/128 dev right nodad");
            ip("route add default via 10.1.0.1 dev left");
            ip("-6 route add default via fd01::1 dev left");
            for option in ["-4", "-6"] {
                ip(&format!("{option} rule add fwmark 0x10/0xf0 lookup 7700 pref 100"));
                ip(&format!("{option} route add default dev right table 7700"));
                ip(&format!("{option} rule add fwmark 0x20/0xf0 lookup 7701 pref 101"));
                ip(&format!("{option} route add unreachable default table 7701"));
            }
            let netlink = Netlink::new().unwrap();
            let left = netlink.link_index("left").await.unwrap();
            let right = netlink.link_index("right").await.unwrap();
            for (to, router) in [("192.0.2.9", "10.1.0.1"), ("2001:db8::9", "fd01::1")] {
                let to: IpAddr = to.parse().unwrap();
                let plain = netlink.lookup(to, 0).await.unwrap().unwrap();
                assert_eq!((plain.table, plain.oif, plain.local), (254, Some(left), false));
                assert_eq!(plain.gateway, router.parse().ok());
                let marked = netlink.lookup(to, 0x4d00_0010).await.unwrap().unwrap();
                assert_eq!((marked.table, marked.oif, marked.gateway), (7700, Some(right), None));
                assert_eq!(netlink.lookup(to, 0x20).await.unwrap(), None);
            }
            let source = |lookup: Option<RouteLookup>| lookup.unwrap().source.unwrap().to_string();
            let lookup = async |to: &str, mark| netlink.lookup(to.parse().unwrap(), mark).await.unwrap();
            assert_eq!(source(lookup("192.0.2.9", 0x10).await), "10.77.0.2");
            assert_eq!(source(lookup("2001:db8::9", 0x10).await), "fd77::2");
            assert!(lookup("127.0.0.1", 0x10).await.unwrap().local);
        });
    }

    #[test]
    fn a_bound_socket_only_has_the_routes_over_its_device() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            let [left, right] = ["left", "right"].map(|name| netlink.link_index(name));
            let (left, right) = (left.await.unwrap(), right.await.unwrap());
            ip("addr add 10.1.0.2/24 dev left");
            ip("addr add fd01::2/64 dev left nodad");
            for to in ["192.0.2.9", "2001:db8::9"] {
                let to: IpAddr = to.parse().unwrap();
                for oif in [left, right, 4711] {
                    assert_eq!(netlink.lookup_bound(to, oif).await.unwrap(), None, "{to}");
                }
            }
            ip("route add default via 10.1.0.1 dev left metric 100");
            ip("-6 route add default via fd01::1 dev left metric 100");
            // Routes such as a VPN client adds.
            ip("route add 128.0.0.0/1 dev right");
            ip("-6 route add default dev right metric 50");
            for (to, router, metric) in [("192.0.2.9", "10.1.0.1", 0), ("2001:db8::9", "fd01::1", 50)] {
                let to: IpAddr = to.parse().unwrap();
                let found = netlink.lookup_bound(to, left).await.unwrap().unwrap();
                assert_eq!(found, BoundRoute { table: 254, gateway: router.parse().ok(), metric: 100 });
                let found = netlink.lookup_bound(to, right).await.unwrap().unwrap();
                assert_eq!(found, BoundRoute { table: 254, gateway: None, metric });
                assert_eq!(netlink.lookup(to, 0).await.unwrap().unwrap().oif, Some(right));
            }
            // The reply names another table.
            ip("route del default via 10.1.0.1 dev left metric 100");
            ip("rule add lookup 7701 pref 33000");
            ip("route add 192.0.2.9 via 10.1.0.1 dev left metric 7 table 7701");
            let found = netlink.lookup_bound("192.0.2.9".parse().unwrap(), left).await.unwrap().unwrap();
            assert_eq!(found, BoundRoute { table: 7701, gateway: "10.1.0.1".parse().ok(), metric: 7 });
            ip("route add unreachable 192.0.2.0/24");
            assert_eq!(netlink.lookup_bound("192.0.2.9".parse().unwrap(), left).await.unwrap(), None);
        });
    }

    #[test]
    fn a_route_over_several_devices_is_found_for_each() {
        with_a_pair(async {
            let netlink = Netlink::new().unwrap();
            ip("addr add 10.1.0.2/24 dev left");
            ip("addr add 10.2.0.2/24 dev right");
            ip("route add default nexthop via 10.1.0.1 dev left nexthop via 10.2.0.1 dev right");
            for (name, gateway) in [("left", "10.1.0.1"), ("right", "10.2.0.1")] {
                let oif = netlink.link_index(name).await.unwrap();
                let found = netlink.lookup_bound("192.0.2.9".parse().unwrap(), oif).await.unwrap().unwrap();
                assert_eq!(found.gateway, gateway.parse().ok(), "{name}");
            }
        });
    }
}
