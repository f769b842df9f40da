//! Addresses in the form in which the eBPF programs compare them, and the addresses that never use
//! the MOBILE route.

/// The port of DNS resolvers.
pub const DNS_PORT: u16 = 53;

/// The third word of an IPv4-mapped IPv6 address, in network byte order.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IPv6 or IPv4-mapped address: four words in network byte order, as the kernel passes them to
/// the eBPF programs.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address(pub [u32; 4]);

/// A DNS query of a socket that was redirected to the relay's resolver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RedirectedQuery {
    /// The resolver that the application addressed.
    pub original_resolver: Address,
    /// The relay's resolver, which answers instead.
    pub relay_resolver: Address,
}

impl Address {
    /// Creates an address from an IPv4 address, a word in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn mapped(ipv4: u32) -> Self {
        Self([0, 0, MAPPED, ipv4])
    }

    /// Creates an address from 16 bytes in the order of an IPv6 header.
    #[must_use]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// Returns whether this is an IPv4-mapped address.
    #[inline(always)]
    #[must_use]
    pub const fn is_mapped(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// Returns whether the address is loopback, "this host", multicast or broadcast: these never
    /// use the MOBILE route.
    #[inline(always)]
    #[must_use]
    pub const fn is_local(&self) -> bool {
        if self.is_mapped() {
            let first = self.0[3].to_be() >> 24;
            // The blocks from 240 on are reserved, except for the broadcast address.
            return first == 0 || first == 127 || first >= 224;
        }
        let short = self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0;
        (short && self.0[3].to_be() <= 1) || self.0[0].to_be() >> 24 == 0xff
    }

    /// Returns whether the address is in 169.254.0.0/16 or fe80::/10: such addresses are reached on
    /// the link itself, whatever the routes say.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(&self) -> bool {
        if self.is_mapped() {
            return self.0[3].to_be() >> 16 == 0xa9fe;
        }
        self.0[0].to_be() >> 22 == 0xfe80 >> 6
    }
}

// SAFETY: transparent over integers.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Address {}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::net::{IpAddr, Ipv6Addr};

    fn address(text: &str) -> Address {
        let ip: Ipv6Addr = match text.parse().unwrap() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Address::from_octets(ip.octets())
    }

    #[test]
    fn an_ipv4_address_is_the_same_from_a_word_and_from_bytes() {
        let word = u32::from_ne_bytes([192, 0, 2, 53]);
        assert_eq!(Address::mapped(word), address("192.0.2.53"));
        assert!(address("192.0.2.53").is_mapped());
        assert!(!address("2001:db8::53").is_mapped());
        assert!(!address("::").is_mapped());
    }

    #[test]
    fn local_and_link_local_addresses_are_recognised() {
        for local in ["127.0.0.53", "0.0.0.0", "224.0.0.251", "255.255.255.255", "::1", "::", "ff02::fb"] {
            assert!(address(local).is_local(), "{local}");
        }
        for other in
            ["126.0.0.1", "128.0.0.1", "10.0.0.1", "169.254.1.1", "::2", "fe80::1", "2001:db8::1", "1::"]
        {
            assert!(!address(other).is_local(), "{other}");
        }
        for link in ["169.254.1.1", "fe80::1", "febf::1"] {
            assert!(address(link).is_link_local(), "{link}");
        }
        for other in ["169.253.1.1", "fec0::1", "fd00::1", "10.0.0.1"] {
            assert!(!address(other).is_link_local(), "{other}");
        }
    }
}
