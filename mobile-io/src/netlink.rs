//! The kernel's network configuration: one serialised handle over rtnetlink.
//!
//! Every `ensure_*` may be called again and again: it makes true what it says and reports whether it had to.

mod address;
mod channel;
mod link;
mod listed_rule;
mod lookup;
pub mod netfilter;
mod nft_table;
mod notification;
mod route;
mod rule;
mod snapshot;
mod subscription;
#[cfg(test)]
pub(crate) mod tests;
mod watch;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use tokio::sync::Mutex;

pub use address::Address;
pub use link::Link;
pub use listed_rule::ListedRule;
pub use lookup::{BoundRoute, RouteLookup};
pub use nft_table::{TableWatch, table_exists};
pub use notification::RouteInterest;
pub use route::{Route, RouteKind};
pub use rule::Rule;
pub use snapshot::InterfaceSnapshot;
pub use watch::{Changes, Watch};

use self::channel::{Channel, Explain};

/// The table ordinary routes are in.
pub const TABLE_MAIN: u32 = 254;

/// `RTPROT_KERNEL`: networkd and its like leave such rules and routes alone.
pub const PROTOCOL_KERNEL: u8 = 2;

/// `RTPROT_STATIC`: a route an administrator would set.
pub const PROTOCOL_STATIC: u8 = 4;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why the kernel's configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel or this device has no such family (IPv6 is disabled): an ordinary host.
    #[error("{family} is disabled on this host or device, so cannot {what}")]
    FamilyUnavailable {
        /// The family.
        family: Family,
        /// What was tried.
        what: String,
    },
    /// Not allowed.
    #[error("not allowed to {0}: run as root, or with CAP_NET_ADMIN")]
    NotAllowed(String),
    /// There is no such device.
    #[error("there is no network device `{0}`")]
    NoSuchLink(String),
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Refused {
        /// What was tried.
        what: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The netlink socket failed.
    #[error("the netlink socket failed while trying to {what}: {message}")]
    Socket {
        /// What was tried.
        what: String,
        /// How it failed.
        message: String,
    },
}

/// The handle. Clones share one socket, and their changes are made one after the other.
#[derive(Debug, Clone)]
pub struct Netlink(Arc<Mutex<Channel>>);

impl Netlink {
    /// Opens a netlink socket in this thread's network namespace, served by the current runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn new() -> Result<Self, NetlinkError> {
        let channel = Channel::open().explain(None, || "open it".to_owned())?;
        Ok(Self(Arc::new(Mutex::new(channel))))
    }
}

impl NetlinkError {
    /// The family is not there: to be reported once, and lived without.
    #[must_use]
    pub fn is_family_unavailable(&self) -> bool {
        matches!(self, Self::FamilyUnavailable { .. })
    }
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The network of all addresses: what a default route leads to.
    #[must_use]
    pub fn any(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Self::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }

    fn of(raw: AddressFamily) -> Option<Self> {
        match raw {
            AddressFamily::Inet => Some(Self::V4),
            AddressFamily::Inet6 => Some(Self::V6),
            _ => None,
        }
    }

    fn raw(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl From<IpNet> for Family {
    fn from(net: IpNet) -> Self {
        net.addr().into()
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
