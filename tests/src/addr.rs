//! The fixed addresses of the lab's relay and server.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The relay's public IPv4 address.
pub const RELAY4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The relay's public IPv6 address.
pub const RELAY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
/// The server's IPv4 address.
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The server's IPv6 address.
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x52, 0, 0, 0, 0, 2);
