//! Converts routes to and from netlink messages.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteScope,
    RouteType, RouteVia,
};

use super::{Route, RouteKind};
use crate::Family;

impl Route {
    /// Returns the netlink message that describes this route in a request.
    pub(super) fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = self.family().raw();
        header.destination_prefix_length = self.dst.prefix_len();
        header.protocol = self.protocol.into();
        let attributes = &mut message.attributes;
        // The header's field has eight bits; the attribute holds any table.
        attributes.push(RouteAttribute::Table(self.table));
        if self.dst.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(self.dst.network().into()));
        }
        if self.metric > 0 {
            attributes.push(RouteAttribute::Priority(self.metric));
        }
        match self.kind {
            RouteKind::Throw => header.kind = RouteType::Throw,
            RouteKind::Unreachable => header.kind = RouteType::Unreachable,
            RouteKind::Unicast { oif, gateway, prefsrc } => {
                header.kind = RouteType::Unicast;
                if gateway.is_none() && self.family() == Family::V4 {
                    header.scope = RouteScope::Link;
                }
                attributes.push(RouteAttribute::Oif(oif));
                attributes.extend(gateway.map(|gateway| self.gateway_attribute(gateway)));
                attributes.extend(prefsrc.map(|source| RouteAttribute::PrefSource(source.into())));
            }
        }
        message
    }

    /// Returns the netlink attribute for the router of the route. An IPv4 route may lead through an
    /// IPv6 router.
    fn gateway_attribute(&self, gateway: IpAddr) -> RouteAttribute {
        if Family::from(gateway) == self.family() {
            RouteAttribute::Gateway(gateway.into())
        } else {
            RouteAttribute::Via(gateway.into())
        }
    }

    /// Parses a route from a netlink message; returns one [`Route`] for each device that the route
    /// leads through.
    pub(crate) fn from_message(message: RouteNetlinkMessage) -> Vec<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return Vec::new() };
        Self::parse(&message).unwrap_or_default()
    }

    fn parse(message: &RouteMessage) -> Option<Vec<Self>> {
        let header = &message.header;
        let family = Family::of(header.address_family)?;
        // Skip routes that nobody configured: one that the kernel caches for a destination (a path
        // MTU, a redirect). Also skip routes for a type of service or for a source prefix.
        let special = header.tos != 0 || header.source_prefix_length != 0;
        if special || header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let mut dst = family.any().addr();
        let mut route = Self {
            dst: family.any(),
            table: header.table.into(),
            kind: RouteKind::Unreachable,
            metric: 0,
            protocol: header.protocol.into(),
        };
        let mut next_hops: &[RouteNextHop] = &[];
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => dst = ip(address)?,
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::MultiPath(several) => next_hops = several,
                _ => {}
            }
        }
        route.dst = IpNet::new(dst, header.destination_prefix_length).ok()?;
        let dead = RouteNextHopFlags::Dead;
        let kinds = match header.kind {
            RouteType::Throw => vec![RouteKind::Throw],
            RouteType::Unreachable => vec![RouteKind::Unreachable],
            RouteType::Unicast if next_hops.is_empty() => {
                let living = !header.flags.contains(RouteFlags::Dead);
                living.then(|| unicast(None, &message.attributes, None)).flatten().into_iter().collect()
            }
            RouteType::Unicast => next_hops
                .iter()
                .filter(|hop| !hop.flags.contains(dead))
                .filter_map(|hop| {
                    unicast(Some(hop.interface_index), &hop.attributes, prefsrc(&message.attributes))
                })
                .collect(),
            _ => return None,
        };
        Some(kinds.into_iter().map(|kind| Self { kind, ..route }).collect())
    }
}

fn unicast(oif: Option<u32>, attributes: &[RouteAttribute], shared: Option<IpAddr>) -> Option<RouteKind> {
    let oif = oif.or_else(|| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(oif) => Some(*oif),
            _ => None,
        })
    })?;
    let gateway = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    });
    Some(RouteKind::Unicast { oif, gateway, prefsrc: shared.or_else(|| prefsrc(attributes)) })
}

fn prefsrc(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip(address),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
