//! Parses the kernel's netlink notifications without allocation and selects those that matter to a
//! subscriber.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::libc::{
    AF_INET, AF_INET6, RTA_DST, RTA_TABLE, RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_DELRULE, RTM_NEWADDR,
    RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWRULE,
};

/// The message types `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`, which the libc crate lacks.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// The length in bytes of a netlink message's header (`nlmsghdr`).
const HEADER_LEN: usize = 16;

/// The length in bytes of an attribute's header (`rtattr`).
const ATTRIBUTE_LEN: usize = 4;

/// The kinds of network objects that have changed since the last report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether devices have changed.
    pub links: bool,
    /// Whether addresses have changed.
    pub addresses: bool,
    /// Whether routes that matter to the subscriber ([`RouteInterest`]) have changed.
    pub routes: bool,
    /// Whether policy routing rules have changed.
    pub rules: bool,
}

impl Changes {
    /// Changes of every kind of object.
    pub const ALL: Self = Self { links: true, addresses: true, routes: true, rules: true };

    /// Returns whether any kind of object has changed.
    #[must_use]
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The routes whose changes matter to a subscriber.
///
/// Changes of devices, addresses and rules always matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RouteInterest {
    /// All routes, in every table, matter.
    #[default]
    All,
    /// Only the routes of some tables, and the routes to some destinations, matter.
    Only {
        /// The routing tables of which every route matters.
        tables: Vec<u32>,
        /// The addresses whose routes matter: every route, in any table, whose destination contains
        /// one of them.
        covering: Vec<IpAddr>,
    },
}

/// Adds the changes that the netlink messages of one datagram report to `changes`.
///
/// A truncated message, or one with an unknown layout, counts as a change of the kind of object
/// that its header names.
pub(super) fn collect_changes(mut bytes: &[u8], interest: &RouteInterest, changes: &mut Changes) {
    while let [l0, l1, l2, l3, k0, k1, ..] = *bytes {
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = bytes.get(HEADER_LEN..length).unwrap_or_default();
        match u16::from_ne_bytes([k0, k1]) {
            RTM_NEWLINK | RTM_DELLINK => changes.links = true,
            RTM_NEWADDR | RTM_DELADDR => changes.addresses = true,
            RTM_NEWROUTE | RTM_DELROUTE if interest.concerns(body) => changes.routes = true,
            // When a nexthop object is removed, the kernel flushes its IPv4 routes without a
            // notification.
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP => changes.routes = true,
            RTM_NEWRULE | RTM_DELRULE => changes.rules = true,
            _ => {}
        }
        // Each step skips at least a header, so the loop terminates.
        match bytes.get(length.max(HEADER_LEN).next_multiple_of(4)..) {
            Some(rest) => bytes = rest,
            None => break,
        }
    }
}

impl RouteInterest {
    /// Returns whether a change of the route in the message `body` matters to the subscriber.
    fn concerns(&self, body: &[u8]) -> bool {
        let Self::Only { tables, covering } = self else { return true };
        match destination(body) {
            Some((table, net)) => {
                tables.contains(&table) || covering.iter().any(|address| net.contains(address))
            }
            // Multicast routes and MPLS labels have other families. A truncated message may be
            // about any route.
            None => {
                let known = |family| body.first().is_some_and(|first| i32::from(*first) == family);
                body.is_empty() || known(AF_INET) || known(AF_INET6)
            }
        }
    }
}

/// Parses the table and the destination of a route from a message body (`rtmsg` and its
/// attributes); `None` if the body is truncated or of another address family.
fn destination(body: &[u8]) -> Option<(u32, IpNet)> {
    let [family, length, _, _, table, _, _, _, _, _, _, _, ..] = *body else { return None };
    let mut table = u32::from(table);
    let is_ipv4 = i32::from(family) == AF_INET;
    if !is_ipv4 && i32::from(family) != AF_INET6 {
        return None;
    }
    let mut address = if is_ipv4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let mut rest = body.get(12..)?;
    while !rest.is_empty() {
        let [l0, l1, k0, k1, ..] = *rest else { return None };
        let end = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(ATTRIBUTE_LEN..end)?;
        match u16::from_ne_bytes([k0, k1]) {
            RTA_TABLE => table = u32::from_ne_bytes(value.try_into().ok()?),
            RTA_DST if is_ipv4 => address = <[u8; 4]>::try_from(value).ok()?.into(),
            RTA_DST => address = <[u8; 16]>::try_from(value).ok()?.into(),
            _ => {}
        }
        rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((table, IpNet::new(address, length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a message of type `kind` with the given body.
    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_LEN + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes.extend(body);
        bytes
    }

    /// Builds the body of a message about a route to `net` in `table`.
    fn route(table: u32, net: &str) -> Vec<u8> {
        let net: IpNet = net.parse().unwrap();
        let family = if net.addr().is_ipv4() { AF_INET } else { AF_INET6 };
        let mut body = vec![u8::try_from(family).unwrap(), net.prefix_len()];
        body.resize(12, 0);
        let mut attribute = |kind: u16, value: &[u8]| {
            body.extend(u16::try_from(ATTRIBUTE_LEN + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        };
        attribute(RTA_TABLE, &table.to_ne_bytes());
        if net.prefix_len() > 0 {
            match net.addr() {
                IpAddr::V4(address) => attribute(RTA_DST, &address.octets()),
                IpAddr::V6(address) => attribute(RTA_DST, &address.octets()),
            }
        }
        body
    }

    fn changes_in(interest: &RouteInterest, bytes: &[u8]) -> Changes {
        let mut changes = Changes::default();
        collect_changes(bytes, interest, &mut changes);
        changes
    }

    fn interest() -> RouteInterest {
        let covering = ["198.51.100.2", "2001:db8::2"].map(|text| text.parse().unwrap());
        RouteInterest::Only { tables: vec![7700], covering: covering.to_vec() }
    }

    #[test]
    fn only_routes_of_the_tables_and_to_the_destinations_matter() {
        for (table, net, expected) in [
            (254, "0.0.0.0/0", true),
            (254, "128.0.0.0/1", true),
            (254, "0.0.0.0/1", false),
            (51820, "0.0.0.0/0", true),
            (254, "198.51.100.2/32", true),
            (254, "198.51.100.3/32", false),
            (254, "10.0.0.0/8", false),
            (7700, "10.0.0.0/8", true),
            (254, "::/0", true),
            (254, "2001:db8::/32", true),
            (254, "2001:db9::/32", false),
        ] {
            for kind in [RTM_NEWROUTE, RTM_DELROUTE] {
                let changes = changes_in(&interest(), &message(kind, &route(table, net)));
                assert_eq!(changes.routes, expected, "{net} in table {table}");
            }
            assert!(changes_in(&RouteInterest::All, &message(RTM_NEWROUTE, &route(table, net))).routes);
        }
    }

    #[test]
    fn a_route_that_cannot_be_parsed_matters() {
        let whole = route(254, "10.0.0.0/8");
        for end in [0, 1, 11, 14, whole.len() - 1] {
            assert!(changes_in(&interest(), &message(RTM_NEWROUTE, &whole[..end])).routes, "{end}");
        }
        // 128 is RTNL_FAMILY_IPMR, the family of multicast routes.
        let mut multicast = whole;
        multicast[0] = 128;
        assert!(!changes_in(&interest(), &message(RTM_NEWROUTE, &multicast)).routes);
    }

    #[test]
    fn every_message_of_a_datagram_is_read() {
        let bytes = [
            message(RTM_NEWROUTE, &route(254, "10.0.0.0/8")),
            message(RTM_NEWROUTE, &route(254, "0.0.0.0/0")),
            message(RTM_NEWRULE, &[]),
        ];
        let expected = Changes { routes: true, rules: true, ..Changes::default() };
        assert_eq!(changes_in(&interest(), &bytes.concat()), expected);
        assert_eq!(changes_in(&interest(), &bytes[0]), Changes::default());
    }

    #[test]
    fn messages_with_wrong_lengths_do_not_loop() {
        let mut changes = Changes::default();
        for bytes in [&[0, 0, 0, 0, 16, 0][..], &[255, 255, 255, 255, 16, 0], &[0; 64], &[16, 0, 0], &[]] {
            collect_changes(bytes, &interest(), &mut changes);
        }
        assert_eq!(changes, Changes { links: true, ..Changes::default() });
    }
}
