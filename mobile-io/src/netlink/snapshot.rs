//! Everything a policy looks at, read at one moment.

use std::net::IpAddr;

use super::{Address, Family, Link, Netlink, NetlinkError};

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
    /// Reads it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn snapshot(&self) -> Result<Snapshot, NetlinkError> {
        unimplemented!()
    }
}
