//! Addresses in place of any host of the Internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Remote addresses for look-ups of default routes. They are reserved for benchmarks (RFC 2544, RFC
/// 5180), so no host has a more specific route to them.
pub(crate) const REMOTE_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1))];
