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

    /// Returns the number of clients that the pool `net` can hold.
    pub(crate) fn capacity(net: IpNet) -> u128 {
        match net {
            // Without the network, the relay's own and the broadcast address.
            IpNet::V4(net) => u128::from(net.broadcast().to_bits() - own_ipv4(net).to_bits() - 1),
            IpNet::V6(net) => net.broadcast().to_bits() - own_ipv6(net).to_bits(),
        }
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
                capacity: Pools::capacity(net.into()),
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
                capacity: Pools::capacity(net.into()),
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
mod tests;
