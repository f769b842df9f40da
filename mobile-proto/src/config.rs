//! What the relay tells the client about its side of the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The configuration that the relay pushes: in every WELCOME, and in CONFIG when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushConfig {
    /// The persistent IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The persistent IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The MTU of the virtual devices.
    pub mtu: u16,
    /// Resolvers to use through the tunnel, best first.
    pub dns: Vec<IpAddr>,
}
