//! Assigns persistent addresses to clients: pure arithmetic on the two pools.
//!
//! The first usable address of a pool is the home virtual device's own. A client gets the lowest
//! address that no client has held or, if there is none, the address that was freed longest ago,
//! because Internet hosts may still send to a former holder.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The persistent addresses that one client holds, one of each family that the relay serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// The persistent IPv4 address, if any.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The persistent IPv6 address, if any.
    pub(crate) ipv6: Option<Ipv6Addr>,
}

impl Lease {
    /// Returns the addresses, IPv4 first.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }

    /// Returns the addresses of this lease that are not in `other`.
    pub(crate) fn without(&self, other: Self) -> Vec<IpAddr> {
        self.addresses().filter(|address| !other.addresses().any(|kept| kept == *address)).collect()
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses().map(|address| address.to_string()).collect();
        f.write_str(&if addresses.is_empty() { "none".to_owned() } else { addresses.join(" ") })
    }
}

/// An error of a pool or of an assignment.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum PoolError {
    /// Every address of the pool is held by a client.
    #[error(
        "the {family} pool {pool} is exhausted: all its {capacity} client addresses are leased; revoke a \
         client, or widen [pool] {key} (existing clients keep their addresses)"
    )]
    Exhausted {
        /// The address family: "IPv4" or "IPv6".
        family: &'static str,
        /// The pool as configured.
        pool: IpNet,
        /// The number of clients that the pool can hold.
        capacity: u128,
        /// The configuration key of the pool.
        key: &'static str,
    },
    /// The pool has no room for the relay and a client.
    #[error(
        "the pool {pool} is too small: it must hold the relay and at least one client (/30, /126 or wider)"
    )]
    TooSmall {
        /// The pool as configured.
        pool: IpNet,
    },
    /// The pool's first address can be no host's: multicast, loopback, unspecified or broadcast.
    #[error(
        "the pool {pool} is not made of unicast addresses: use a private range such as 10.x, 100.64/10 or fd00::/8"
    )]
    NotUnicast {
        /// The pool as configured.
        pool: IpNet,
    },
    /// A requested address is in no pool.
    #[error("{address} is in no pool: choose one of {pools}, or widen [pool]")]
    Outside {
        /// The requested address.
        address: IpAddr,
        /// The configured pools, joined by "or".
        pools: String,
    },
    /// A requested address cannot be a client's, because it is the relay's own or has a special
    /// meaning in the pool's network.
    #[error(
        "{address} cannot be a client's: it is the relay's own (the first of the pool), or the network or broadcast address"
    )]
    Reserved {
        /// The requested address.
        address: IpAddr,
    },
    /// No pool of either family is configured.
    #[error("no pool: set [pool] ipv4, ipv6 or both, for the persistent addresses of clients")]
    Missing,
}

/// The IPv4 and IPv6 address pools, of which at least one exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pools {
    ipv4: Option<Ipv4Net>,
    ipv6: Option<Ipv6Net>,
}

impl Pools {
    /// Checks the pools and clears their host bits.
    pub(crate) fn new(ipv4: Option<Ipv4Net>, ipv6: Option<Ipv6Net>) -> Result<Self, PoolError> {
        if ipv4.is_none() && ipv6.is_none() {
            return Err(PoolError::Missing);
        }
        if let Some(net) = ipv4 {
            let address = net.network();
            if address.is_multicast()
                || address.is_loopback()
                || address.is_unspecified()
                || address.is_broadcast()
            {
                return Err(PoolError::NotUnicast { pool: net.into() });
            }
        }
        if let Some(net) = ipv6 {
            let address = net.network();
            if address.is_multicast() || address.is_loopback() || address.is_unspecified() {
                return Err(PoolError::NotUnicast { pool: net.into() });
            }
        }
        let pools = Self { ipv4: ipv4.map(|net| net.trunc()), ipv6: ipv6.map(|net| net.trunc()) };
        for net in pools.networks() {
            if net.max_prefix_len() - net.prefix_len() < 2 {
                return Err(PoolError::TooSmall { pool: net });
            }
        }
        Ok(pools)
    }

    /// Returns the IPv4 pool, if there is one.
    pub(crate) fn ipv4(&self) -> Option<Ipv4Net> {
        self.ipv4
    }

    /// Returns the IPv6 pool, if there is one.
    pub(crate) fn ipv6(&self) -> Option<Ipv6Net> {
        self.ipv6
    }

    /// Returns the pools without IPv6, for a host that has none.
    pub(crate) fn without_ipv6(self) -> Result<Self, PoolError> {
        Self::new(self.ipv4, None)
    }

    /// Returns the existing pools, IPv4 first.
    pub(crate) fn networks(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.ipv4.map(IpNet::V4).into_iter().chain(self.ipv6.map(IpNet::V6))
    }

    /// Returns the home virtual device's addresses, each with the prefix length of its pool.
    pub(crate) fn own_addresses(&self) -> Vec<IpNet> {
        let ipv4 = self.ipv4.map(|net| IpNet::new_assert(own_ipv4(net).into(), net.prefix_len()));
        let ipv6 = self.ipv6.map(|net| IpNet::new_assert(own_ipv6(net).into(), net.prefix_len()));
        ipv4.into_iter().chain(ipv6).collect()
    }

    /// Returns whether the address is in one of the pools.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.networks().any(|net| net.contains(&address))
    }

    /// Returns whether the address is the home virtual device's own.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.is_some_and(|net| own_ipv4(net) == address),
            IpAddr::V6(address) => self.ipv6.is_some_and(|net| own_ipv6(net) == address),
        }
    }

    /// Checks that each of the wanted addresses is in a pool and can be a client's.
    pub(crate) fn check(&self, wanted: Lease) -> Result<(), PoolError> {
        for address in wanted.addresses() {
            if !self.contains(address) {
                let pools: Vec<String> = self.networks().map(|net| net.to_string()).collect();
                return Err(PoolError::Outside { address, pools: pools.join(" or ") });
            }
            let usable = match address {
                IpAddr::V4(address) => self.ipv4.is_some_and(|net| usable_ipv4(net, address)),
                IpAddr::V6(address) => self.ipv6.is_some_and(|net| usable_ipv6(net, address)),
            };
            if !usable {
                return Err(PoolError::Reserved { address });
            }
        }
        Ok(())
    }

    /// Assigns a client's addresses: those of `held` that are in the pools and not taken, and free
    /// ones otherwise. `taken` has the addresses of other clients, and the assigned ones are added
    /// to it.
    pub(crate) fn lease(&self, held: Lease, taken: &mut TakenAddresses) -> Result<Lease, PoolError> {
        let ipv4 = match (self.ipv4, held.ipv4) {
            (None, _) => None,
            (Some(net), Some(address)) if usable_ipv4(net, address) && !taken.ipv4.contains(&address) => {
                Some(address)
            }
            (Some(net), _) => Some(taken.next_free_ipv4(net)?),
        };
        let ipv6 = match (self.ipv6, held.ipv6) {
            (None, _) => None,
            (Some(net), Some(address)) if usable_ipv6(net, address) && !taken.ipv6.contains(&address) => {
                Some(address)
            }
            (Some(net), _) => Some(taken.next_free_ipv6(net)?),
        };
        let lease = Lease { ipv4, ipv6 };
        taken.insert(lease);
        Ok(lease)
    }
}

/// The addresses in the pools that clients hold now, and those that clients held before.
///
/// A search for a free address begins where the last one ended, because thousands of clients may be
/// authorised in one transaction.
#[derive(Debug, Default)]
pub(crate) struct TakenAddresses {
    ipv4: HashSet<Ipv4Addr>,
    ipv6: HashSet<Ipv6Addr>,
    /// Free addresses that a client has held, each with the time at which it became free, in
    /// seconds since 1970.
    freed: HashMap<IpAddr, u64>,
    /// The address, as an integer, below which every address of the pool is taken or was held
    /// before.
    search_from_ipv4: u32,
    search_from_ipv6: u128,
}

impl TakenAddresses {
    /// Marks the addresses of a lease as taken.
    pub(crate) fn insert(&mut self, lease: Lease) {
        self.ipv4.extend(lease.ipv4);
        self.ipv6.extend(lease.ipv6);
    }

    /// Records that an address was held until `since`, in seconds since 1970; such an address is
    /// assigned to others last.
    pub(crate) fn insert_freed(&mut self, address: IpAddr, since: u64) {
        self.freed.insert(address, since);
    }

    /// Returns the formerly held address that has been free longest, among those that `fits`
    /// accepts.
    fn longest_free(&self, fits: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let fitting = self.freed.iter().filter(|(address, _)| fits(**address));
        fitting.min_by_key(|(address, since)| (**since, **address)).map(|(address, _)| *address)
    }

    /// Marks the addresses of a lease as free, before its holder gets another lease.
    pub(crate) fn remove(&mut self, lease: Lease) {
        if let Some(address) = lease.ipv4.filter(|address| self.ipv4.remove(address)) {
            self.search_from_ipv4 = self.search_from_ipv4.min(address.to_bits());
        }
        if let Some(address) = lease.ipv6.filter(|address| self.ipv6.remove(address)) {
            self.search_from_ipv6 = self.search_from_ipv6.min(address.to_bits());
        }
    }

    fn next_free_ipv4(&mut self, net: Ipv4Net) -> Result<Ipv4Addr, PoolError> {
        // Look at as many candidates as there are taken and formerly held addresses, plus one: that
        // one must be free.
        let first = own_ipv4(net).to_bits() + 1;
        let unused = (first.max(self.search_from_ipv4)..net.broadcast().to_bits())
            .map(Ipv4Addr::from_bits)
            .find(|address| !self.ipv4.contains(address) && !self.freed.contains_key(&IpAddr::V4(*address)));
        if let Some(unused) = unused {
            self.search_from_ipv4 = unused.to_bits();
            return Ok(unused);
        }
        let fits = |address| match address {
            IpAddr::V4(address) => usable_ipv4(net, address) && !self.ipv4.contains(&address),
            IpAddr::V6(_) => false,
        };
        let Some(IpAddr::V4(found)) = self.longest_free(fits) else {
            return Err(PoolError::Exhausted {
                family: "IPv4",
                pool: net.into(),
                capacity: u128::from(net.broadcast().to_bits() - own_ipv4(net).to_bits() - 1),
                key: "ipv4",
            });
        };
        Ok(found)
    }

    fn next_free_ipv6(&mut self, net: Ipv6Net) -> Result<Ipv6Addr, PoolError> {
        let first = own_ipv6(net).to_bits() + 1;
        let unused = (first.max(self.search_from_ipv6)..=net.broadcast().to_bits())
            .map(Ipv6Addr::from_bits)
            .find(|address| !self.ipv6.contains(address) && !self.freed.contains_key(&IpAddr::V6(*address)));
        if let Some(unused) = unused {
            self.search_from_ipv6 = unused.to_bits();
            return Ok(unused);
        }
        let fits = |address| match address {
            IpAddr::V6(address) => usable_ipv6(net, address) && !self.ipv6.contains(&address),
            IpAddr::V4(_) => false,
        };
        let Some(IpAddr::V6(found)) = self.longest_free(fits) else {
            return Err(PoolError::Exhausted {
                family: "IPv6",
                pool: net.into(),
                capacity: net.broadcast().to_bits() - own_ipv6(net).to_bits(),
                key: "ipv6",
            });
        };
        Ok(found)
    }
}

impl FromIterator<Lease> for TakenAddresses {
    fn from_iter<T: IntoIterator<Item = Lease>>(leases: T) -> Self {
        let mut taken = Self::default();
        leases.into_iter().for_each(|lease| taken.insert(lease));
        taken
    }
}

fn own_ipv4(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(net.network().to_bits() + 1)
}

fn own_ipv6(net: Ipv6Net) -> Ipv6Addr {
    // The all-zeros host is the subnet-router anycast address (RFC 4291, 2.6.1).
    Ipv6Addr::from_bits(net.network().to_bits() + 1)
}

fn usable_ipv4(net: Ipv4Net, address: Ipv4Addr) -> bool {
    address > own_ipv4(net) && address < net.broadcast()
}

fn usable_ipv6(net: Ipv6Net, address: Ipv6Addr) -> bool {
    address > own_ipv6(net) && address <= net.broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(ipv4: &str, ipv6: &str) -> Pools {
        Pools::new(Some(ipv4.parse().unwrap()), Some(ipv6.parse().unwrap())).unwrap()
    }

    #[test]
    fn the_relay_has_the_first_address_of_a_pool_and_the_first_client_the_second() {
        let pools = pools("10.9.8.77/24", "fd12::/64");
        let own: Vec<String> = pools.own_addresses().iter().map(ToString::to_string).collect();
        assert_eq!(own, ["10.9.8.1/24", "fd12::1/64"]);
        let lease = pools.lease(Lease::default(), &mut TakenAddresses::default()).unwrap();
        assert_eq!(lease.ipv4, Some("10.9.8.2".parse().unwrap()));
        assert_eq!(lease.ipv6, Some("fd12::2".parse().unwrap()));
    }

    #[test]
    fn unused_addresses_are_assigned_first_and_then_the_one_free_longest() {
        let pools = pools("10.9.8.0/24", "fd12::/64");
        let first = pools.lease(Lease::default(), &mut TakenAddresses::default()).unwrap();
        let second = pools.lease(Lease::default(), &mut TakenAddresses::from_iter([first])).unwrap();
        assert_eq!(second.ipv4, Some("10.9.8.3".parse().unwrap()));
        assert_eq!(pools.lease(Lease::default(), &mut TakenAddresses::from_iter([second])).unwrap(), first);

        let small = Pools::new(Some("10.9.8.0/29".parse().unwrap()), None).unwrap();
        let mut taken = TakenAddresses::default();
        // Of .2 to .6, .3 is held, and .4 and .2 were held before.
        taken.insert(Lease { ipv4: Some("10.9.8.3".parse().unwrap()), ipv6: None });
        taken.insert_freed("10.9.8.4".parse().unwrap(), 70);
        taken.insert_freed("10.9.8.2".parse().unwrap(), 80);
        taken.insert_freed("10.9.8.3".parse().unwrap(), 10);
        let mut assigned = Vec::new();
        while let Ok(lease) = small.lease(Lease::default(), &mut taken) {
            assigned.push(lease.to_string());
        }
        assert_eq!(assigned, ["10.9.8.5", "10.9.8.6", "10.9.8.4", "10.9.8.2"]);
    }

    #[test]
    fn an_exhausted_pool_is_named_with_the_next_step() {
        let pools = Pools::new(Some("10.0.0.0/30".parse().unwrap()), None).unwrap();
        let only = pools.lease(Lease::default(), &mut TakenAddresses::default()).unwrap();
        assert_eq!(only.ipv4, Some("10.0.0.2".parse().unwrap()));
        let error =
            pools.lease(Lease::default(), &mut TakenAddresses::from_iter([only])).unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/30") && error.contains("all its 1 client"), "{error}");
        assert!(error.contains("[pool] ipv4"), "{error}");
    }

    #[test]
    fn a_lease_is_kept_while_the_pool_contains_it_and_replaced_otherwise() {
        let before = pools("10.9.8.0/24", "fd12::/64");
        let held = before.lease(Lease::default(), &mut TakenAddresses::default()).unwrap();
        assert_eq!(before.lease(held, &mut TakenAddresses::default()).unwrap(), held);
        let wider = pools("10.9.0.0/16", "fd12::/64");
        assert_eq!(wider.lease(held, &mut TakenAddresses::default()).unwrap(), held);
        let moved = pools("10.7.0.0/24", "fd12::/64");
        let lease = moved.lease(held, &mut TakenAddresses::default()).unwrap();
        assert_eq!(lease.ipv4, Some("10.7.0.2".parse().unwrap()));
        assert_eq!(lease.ipv6, held.ipv6);
    }

    #[test]
    fn a_lease_of_the_relays_own_or_the_broadcast_address_is_replaced() {
        let pools = Pools::new(Some("10.9.8.0/29".parse().unwrap()), None).unwrap();
        for taken in ["10.9.8.0", "10.9.8.1", "10.9.8.7"] {
            let held = Lease { ipv4: Some(taken.parse().unwrap()), ipv6: None };
            assert_eq!(
                pools.lease(held, &mut TakenAddresses::default()).unwrap().ipv4,
                Some("10.9.8.2".parse().unwrap())
            );
        }
    }

    #[test]
    fn unusable_pools_are_refused() {
        assert_eq!(Pools::new(None, None), Err(PoolError::Missing));
        for bad in ["10.0.0.0/31", "10.0.0.1/32"] {
            let result = Pools::new(Some(bad.parse().unwrap()), None);
            assert!(matches!(result, Err(PoolError::TooSmall { .. })), "{bad}: {result:?}");
        }
        for bad in ["224.0.0.0/24", "127.0.0.0/8", "0.0.0.0/0"] {
            let result = Pools::new(Some(bad.parse().unwrap()), None);
            assert!(matches!(result, Err(PoolError::NotUnicast { .. })), "{bad}: {result:?}");
        }
        let result = Pools::new(None, Some("ff02::/64".parse().unwrap()));
        assert!(matches!(result, Err(PoolError::NotUnicast { .. })));
    }

    #[test]
    fn every_address_of_a_pool_can_be_leased_once() {
        let pools = pools("10.9.8.0/28", "fd12::/124");
        let mut leases: Vec<Lease> = Vec::new();
        for _ in 0..13 {
            let lease = pools.lease(Lease::default(), &mut leases.iter().copied().collect()).unwrap();
            assert!(lease.addresses().all(|address| pools.contains(address) && !pools.is_own(address)));
            assert!(!leases.contains(&lease));
            leases.push(lease);
        }
        let error = pools.lease(Lease::default(), &mut leases.iter().copied().collect()).unwrap_err();
        assert!(matches!(error, PoolError::Exhausted { family: "IPv4", capacity: 13, .. }), "{error}");
    }
}
