//! Reads, changes and watches the kernel's network configuration over netlink.
//!
//! The agent and the relay decide which addresses, routes and rules a host gets; this crate carries
//! the decisions out and reports what other programs change. The crate depends on no other crate
//! of the workspace, and its names are the kernel's: see rtnetlink(7) and ip(8).
//!
//! # Reading and changing
//!
//! [`Netlink`] is a handle to the network configuration of one network namespace, that of the
//! thread that opens it. All clones of the handle share one socket, which carries one request at a
//! time.
//!
//! - Devices: [`Netlink::links`] lists them; other functions set their state, MTU and group.
//!   [`Netlink::snapshot`] reads devices and addresses together.
//! - Addresses: [`Netlink::addresses`], [`Netlink::ensure_address`].
//! - Routes: [`Route`] describes one in any table. [`Netlink::lookup`] asks the kernel which route
//!   it would choose for a packet with a mark, and [`Netlink::lookup_bound`] for a socket that is
//!   bound to a device.
//! - Policy routing rules: [`Rule`] describes one that this project makes, and [`ListedRule`] one
//!   of any program.
//!
//! The `ensure_*` functions are idempotent: they establish a state and return whether they had to
//! change anything. The `del_*` functions return whether there was anything to delete.
//!
//! # Watching
//!
//! [`Watch`] waits for changes of devices, addresses, routes and rules, and [`TableWatch`] for
//! changes of an nftables table. The kernel drops notifications when a socket's buffer is full;
//! both then report a change, so that their owner reads the state again.
//!
//! # Netfilter
//!
//! [`netfilter`] deletes tracked connections and reads nftables counters. Its functions and
//! [`table_exists`] block; everything else is asynchronous and needs a tokio runtime.
//!
//! # Errors
//!
//! A [`NetlinkError`] names the action that failed. A host without IPv6 is not faulty:
//! [`NetlinkError::is_family_unavailable`] tells such a failure from all others.
//!
//! # Example
//!
//! ```no_run
//! use mobile_netlink::{Family, Netlink, NetlinkError, Route};
//!
//! /// Lets packets that look up this table fail, until the table has a better route.
//! async fn close(table: u32) -> Result<(), NetlinkError> {
//!     let netlink = Netlink::new()?;
//!     for family in Family::ALL {
//!         match netlink.ensure_route(&Route::unreachable(family, table)).await {
//!             Err(error) if error.is_family_unavailable() => {}
//!             outcome => drop(outcome?),
//!         }
//!     }
//!     Ok(())
//! }
//! ```

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
mod tests;
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
pub use notification::{Changes, RouteInterest};
pub use route::{Route, RouteKind};
pub use rule::Rule;
pub use snapshot::InterfaceSnapshot;
pub use watch::Watch;

use self::channel::{Channel, Explain};

/// The main routing table, which holds ordinary routes.
pub const TABLE_MAIN: u32 = 254;

/// The protocol of rules and routes made by the kernel (`RTPROT_KERNEL`), which network managers
/// such as systemd-networkd do not remove.
pub const PROTOCOL_KERNEL: u8 = 2;

/// The protocol of routes made by an administrator (`RTPROT_STATIC`).
pub const PROTOCOL_STATIC: u8 = 4;

/// An IP address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// The family of IPv4.
    V4,
    /// The family of IPv6.
    V6,
}

/// The reason why the kernel's configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel or the device lacks the address family. A host on which IPv6 is disabled is not
    /// faulty.
    #[error("cannot {what}: {family} is disabled on this host or device")]
    FamilyUnavailable {
        /// The address family that is missing.
        family: Family,
        /// The attempted action, as an infinitive.
        what: String,
    },
    /// The process lacks the permission for the action.
    #[error(
        "not allowed to {0}: this takes CAP_NET_ADMIN, which root has unless a container or a service's unit takes it away"
    )]
    NotAllowed(String),
    /// No network device has the given name.
    #[error("network device `{0}` does not exist")]
    NoSuchLink(String),
    /// The kernel refused the request.
    #[error("cannot {what}: {source}")]
    Refused {
        /// The attempted action, as an infinitive.
        what: String,
        /// The kernel's error, with its message if there was one.
        source: io::Error,
    },
    /// The netlink socket failed.
    #[error("the netlink socket failed while trying to {what}: {message}")]
    Socket {
        /// The attempted action, as an infinitive.
        what: String,
        /// The description of the failure.
        message: String,
    },
}

/// A handle to the kernel's network configuration.
///
/// Clones share one socket, and their requests are executed one after the other.
#[derive(Debug, Clone)]
pub struct Netlink(Arc<Mutex<Channel>>);

impl Netlink {
    /// Opens a netlink socket in this thread's network namespace, and spawns a task on the current
    /// tokio runtime that sends and receives on the socket.
    ///
    /// # Errors
    /// When the kernel provides no socket, or outside of a tokio runtime.
    pub fn new() -> Result<Self, NetlinkError> {
        let channel = Channel::open().explain(None, || "open it".to_owned())?;
        Ok(Self(Arc::new(Mutex::new(channel))))
    }
}

impl NetlinkError {
    /// Returns whether the error only means that the kernel or the device lacks an address family.
    ///
    /// Callers report such an error once and work without the family.
    #[must_use]
    pub fn is_family_unavailable(&self) -> bool {
        matches!(self, Self::FamilyUnavailable { .. })
    }
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the network of all addresses, which is the destination of a default route.
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
