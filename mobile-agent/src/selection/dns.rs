//! Where queries of mobile processes go, and which destinations stay direct: the maps behind `mobile-ebpf`'s `dns.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use ipnet::IpNet;
use mobile_ebpf_common::{Address, map};

use super::bpf_error::{BpfError, Result};
use crate::routing::lease::Assigned;

/// The relay's resolvers, at most one for each family: the programs have one address to put in place of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolvers {
    /// For queries over IPv4.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// For queries over IPv6.
    pub(crate) ipv6: Option<Ipv6Addr>,
}

impl Resolvers {
    /// The first usable one of each family that the relay pushed. A family without a persistent address cannot reach its
    /// resolver.
    pub(crate) fn pushed(assigned: &Assigned) -> Self {
        let usable = assigned.dns.iter().filter(|address| {
            let address = packed(**address);
            !address.is_local() && !address.is_link_local()
        });
        let mut resolvers = Self::default();
        for address in usable {
            match address {
                IpAddr::V4(ipv4) if assigned.ipv4.is_some() => {
                    resolvers.ipv4.get_or_insert(*ipv4);
                }
                IpAddr::V6(ipv6) if assigned.ipv6.is_some() && ipv6.to_ipv4_mapped().is_none() => {
                    resolvers.ipv6.get_or_insert(*ipv6);
                }
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
        }
        resolvers
    }
}

/// The programs' map of resolvers.
pub(super) struct ResolverMap(HashMap<MapData, u32, Address>);

impl ResolverMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf.take_map(map::RESOLVERS).ok_or(BpfError::Missing(map::RESOLVERS))?;
        HashMap::try_from(map).map(Self).map_err(failed(map::RESOLVERS))
    }

    /// From now on queries go there.
    pub(super) fn set(&mut self, resolvers: Resolvers) -> Result<()> {
        let families =
            [(map::IPV4, resolvers.ipv4.map(IpAddr::V4)), (map::IPV6, resolvers.ipv6.map(IpAddr::V6))];
        for (family, resolver) in families {
            let done = match resolver {
                Some(address) => self.0.insert(&family, &packed(address), 0),
                None => match self.0.remove(&family) {
                    // There was none.
                    Err(MapError::KeyNotFound) => Ok(()),
                    Err(MapError::SyscallError(error))
                        if error.io_error.kind() == std::io::ErrorKind::NotFound =>
                    {
                        Ok(())
                    }
                    result => result,
                },
            };
            done.map_err(failed(map::RESOLVERS))?;
        }
        Ok(())
    }
}

/// The programs' map of what mobile processes reach directly.
pub(super) struct BypassMap(LpmTrie<MapData, Address, u8>);

impl BypassMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf.take_map(map::BYPASS).ok_or(BpfError::Missing(map::BYPASS))?;
        LpmTrie::try_from(map).map(Self).map_err(failed(map::BYPASS))
    }

    pub(super) fn add(&mut self, net: IpNet) -> Result<()> {
        self.0.insert(&prefix(net), &1, 0).map_err(|error| match &error {
            MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(nix::libc::ENOSPC) => {
                BpfError::Full {
                    name: map::BYPASS,
                    entries: map::BYPASS_ENTRIES,
                    next_step: "bypass larger networks in place of many small ones",
                }
            }
            _ => failed(map::BYPASS)(error),
        })
    }

    pub(super) fn remove(&mut self, net: IpNet) -> Result<()> {
        self.0.remove(&prefix(net)).map_err(failed(map::BYPASS))
    }
}

fn prefix(net: IpNet) -> Key<Address> {
    // Of an IPv4-mapped address the first 96 bits are always the same.
    let length = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
    Key::new(length, packed(net.network()))
}

fn packed(address: IpAddr) -> Address {
    let ipv6 = match address {
        IpAddr::V4(ipv4) => ipv4.to_ipv6_mapped(),
        IpAddr::V6(ipv6) => ipv6,
    };
    Address::from_octets(ipv6.octets())
}

fn failed(name: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map { name, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(dns: &[&str]) -> Assigned {
        Assigned {
            ipv4: Some("10.77.0.2".parse().unwrap()),
            ipv6: Some("fd77::2".parse().unwrap()),
            mtu: 1500,
            dns: dns.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn the_first_usable_resolver_of_each_family_is_taken() {
        let bad = ["127.0.0.1", "224.0.0.1", "::1", "fe80::1", "::ffff:9.9.9.9", "169.254.1.1"];
        assert_eq!(Resolvers::pushed(&assigned(&bad)), Resolvers::default());
        let good = ["127.0.0.1", "9.9.9.9", "8.8.8.8", "2620:fe::fe", "2620:fe::9"];
        let resolvers = Resolvers::pushed(&assigned(&good));
        assert_eq!(resolvers.ipv4, Some("9.9.9.9".parse().unwrap()));
        assert_eq!(resolvers.ipv6, Some("2620:fe::fe".parse().unwrap()));
    }

    #[test]
    fn a_family_without_a_persistent_address_has_no_resolver() {
        let only4 = Assigned { ipv6: None, ..assigned(&["9.9.9.9", "2620:fe::fe"]) };
        assert_eq!(Resolvers::pushed(&only4).ipv6, None);
        let only6 = Assigned { ipv4: None, ..assigned(&["9.9.9.9", "2620:fe::fe"]) };
        assert_eq!(Resolvers::pushed(&only6).ipv4, None);
    }
}
