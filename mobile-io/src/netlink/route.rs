//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Family, Netlink, NetlinkError};

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What it leads to.
    pub dst: IpNet,
    /// The table it is in.
    pub table: u32,
    /// What it does.
    pub kind: RouteKind,
    /// The lower, the sooner it is taken. 0: the kernel's default (for IPv6 that is 1024).
    pub metric: u32,
    /// Who made it (`RTPROT_…`).
    pub protocol: u8,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Through a device.
    Unicast {
        /// The device.
        oif: u32,
        /// The router on it, if any.
        gateway: Option<IpAddr>,
        /// The source address sockets get that have none.
        prefsrc: Option<IpAddr>,
    },
    /// Goes on with the next rule.
    Throw,
    /// Fails with "no route to host".
    Unreachable,
}

impl Route {
    /// A route through a device, without a router.
    #[must_use]
    pub fn device(dst: IpNet, table: u32, oif: u32, prefsrc: Option<IpAddr>) -> Self {
        let kind = RouteKind::Unicast { oif, gateway: None, prefsrc };
        Self { dst, table, kind, metric: 0, protocol: super::PROTOCOL_STATIC }
    }

    /// A route that goes on with the next rule.
    #[must_use]
    pub fn throw(dst: IpNet, table: u32) -> Self {
        Self { dst, table, kind: RouteKind::Throw, metric: 0, protocol: super::PROTOCOL_STATIC }
    }

    /// A default route of the worst metric that fails: nothing falls through to the next rule.
    #[must_use]
    pub fn unreachable(family: Family, table: u32) -> Self {
        let kind = RouteKind::Unreachable;
        Self { dst: family.any(), table, kind, metric: u32::MAX, protocol: super::PROTOCOL_STATIC }
    }
}

impl Netlink {
    /// The routes of one table and family; none where the family is disabled.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn routes(&self, _table: u32, _family: Family) -> Result<Vec<Route>, NetlinkError> {
        unimplemented!()
    }

    /// Adds a route; an error if it is there.
    ///
    /// # Errors
    /// When the kernel refuses; `FamilyUnavailable` for IPv6 where it is disabled.
    pub async fn add_route(&self, _route: &Route) -> Result<(), NetlinkError> {
        unimplemented!()
    }

    /// Makes this the one route of its table, destination and metric; true if anything had to change.
    ///
    /// # Errors
    /// As `add_route`.
    pub async fn ensure_route(&self, _route: &Route) -> Result<bool, NetlinkError> {
        unimplemented!()
    }

    /// Removes a route; false if there is none such.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn del_route(&self, _route: &Route) -> Result<bool, NetlinkError> {
        unimplemented!()
    }
}
