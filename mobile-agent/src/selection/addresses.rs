//! The eBPF maps of addresses that the relay assigns: the resolvers for DNS queries of mobile
//! processes, and the persistent addresses. Of each family, the first resolver is used that is not
//! local or link-local and that a persistent address of its family can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use mobile_ebpf_common::{Address, map};

use super::bpf_error::{BpfError, Result};

/// At most one IP address of each family, because the eBPF programs can use only one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// The IPv4 address, such as the persistent address; `None` if the relay assigned none.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The IPv6 address; `None` if the relay assigned none.
    pub(crate) ipv6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Returns the first usable resolver of each family in `dns`, the resolvers that the relay
    /// assigned. A family without a persistent address cannot reach its resolver.
    pub(crate) fn resolvers(dns: &[IpAddr], persistent: Self) -> Self {
        let usable = dns.iter().filter(|address| {
            let address = packed(**address);
            !address.is_local() && !address.is_link_local()
        });
        let mut resolvers = Self::default();
        for address in usable {
            match address {
                IpAddr::V4(ipv4) if persistent.ipv4.is_some() => {
                    resolvers.ipv4.get_or_insert(*ipv4);
                }
                IpAddr::V6(ipv6) if persistent.ipv6.is_some() && ipv6.to_ipv4_mapped().is_none() => {
                    resolvers.ipv6.get_or_insert(*ipv6);
                }
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
        }
        resolvers
    }
}

/// An eBPF map from address family to IP address.
pub(super) struct AddressMap {
    map: HashMap<MapData, u32, Address>,
    name: &'static str,
}

impl AddressMap {
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self> {
        let map = ebpf.take_map(name).ok_or(BpfError::Missing(name))?;
        let map = HashMap::try_from(map).map_err(|source| BpfError::Map { name, source })?;
        Ok(Self { map, name })
    }

    /// Replaces the addresses in the map.
    pub(super) fn set(&mut self, addresses: Addresses) -> Result<()> {
        let families =
            [(map::IPV4, addresses.ipv4.map(IpAddr::V4)), (map::IPV6, addresses.ipv6.map(IpAddr::V6))];
        for (family, address) in families {
            let done = match address {
                Some(address) => self.map.insert(&family, &packed(address), 0),
                None => match self.map.remove(&family) {
                    // The map had no address of this family.
                    Err(MapError::KeyNotFound) => Ok(()),
                    Err(MapError::SyscallError(error))
                        if error.io_error.kind() == std::io::ErrorKind::NotFound =>
                    {
                        Ok(())
                    }
                    result => result,
                },
            };
            done.map_err(|source| BpfError::Map { name: self.name, source })?;
        }
        Ok(())
    }
}

/// Returns an address in the form that the eBPF programs compare.
pub(super) fn packed(address: IpAddr) -> Address {
    let ipv6 = match address {
        IpAddr::V4(ipv4) => ipv4.to_ipv6_mapped(),
        IpAddr::V6(ipv6) => ipv6,
    };
    Address::from_octets(ipv6.octets())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn persistent() -> Addresses {
        Addresses { ipv4: Some("10.77.0.2".parse().unwrap()), ipv6: Some("fd77::2".parse().unwrap()) }
    }

    fn dns(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_usable_resolver_of_each_family_is_chosen() {
        let bad = ["127.0.0.1", "224.0.0.1", "::1", "fe80::1", "::ffff:9.9.9.9", "169.254.1.1"];
        assert_eq!(Addresses::resolvers(&dns(&bad), persistent()), Addresses::default());
        let good = ["127.0.0.1", "9.9.9.9", "8.8.8.8", "2620:fe::fe", "2620:fe::9"];
        let resolvers = Addresses::resolvers(&dns(&good), persistent());
        assert_eq!(resolvers.ipv4, Some("9.9.9.9".parse().unwrap()));
        assert_eq!(resolvers.ipv6, Some("2620:fe::fe".parse().unwrap()));
    }

    #[test]
    fn a_family_without_a_persistent_address_has_no_resolver() {
        let both = dns(&["9.9.9.9", "2620:fe::fe"]);
        let only4 = Addresses { ipv6: None, ..persistent() };
        assert_eq!(Addresses::resolvers(&both, only4).ipv6, None);
        let only6 = Addresses { ipv4: None, ..persistent() };
        assert_eq!(Addresses::resolvers(&both, only6).ipv4, None);
    }
}
