//! The reach of clients: the setting, and the address ranges it stands for. The source filter and
//! the nftables rules are both generated from these ranges, so that each stops what the other
//! misses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mobile_host::network::{self, NetworkError};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The destinations that clients may reach: `[clients] reach`, or a client's own reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Allows every destination that the relay's host reaches.
    All,
    /// Allows the listed destinations only; an empty list allows none.
    Only(Vec<Destination>),
}

/// One entry of a reach: a set of destinations that clients may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Destination {
    /// Every public address that is not in [`NOT_INTERNET`] and not in a network of this host.
    Internet,
    /// A network, this host's own addresses in it included.
    Network(IpNet),
}

/// The IPv4 blocks that "internet" excludes: those blocks of the IANA special-purpose registries
/// (RFC 6890) that are not forwarded, shared or private, and the metadata services of clouds
/// outside of them. The documentation prefixes are not excluded: nobody uses them, so nothing would
/// be protected.
const NOT_INTERNET: [(Ipv4Addr, u8); 13] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    // Shared address space (RFC 6598), with the metadata service of Alibaba Cloud, 100.100.100.200.
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Azure's metadata service, at a public address.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    // Link-local, with the metadata service of most clouds, 169.254.169.254.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    // IETF protocol assignments, with Oracle's metadata service, 192.0.0.192.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    // 6to4 relays (RFC 7526): anycast, so the nearest relay receives these packets.
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    // Benchmarks (RFC 2544): used inside a network only.
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The IPv6 unicast addresses that are routed between networks (RFC 4291, 2.4). Unique local
/// addresses (with Amazon's metadata service fd00:ec2::254), link-local and multicast are outside.
const INTERNET6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// The 6to4 prefix, which "internet" excludes because its addresses embed an IPv4 address that may
/// be private.
const SIX_TO_FOUR: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16);
/// The NAT64 prefix (RFC 6052). An address in it belongs to "internet" if the IPv4 address in its
/// last four bytes does.
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

impl Reach {
    /// Returns whether the reach lists "internet", which excludes this host's own addresses.
    pub(crate) fn has_internet(&self) -> bool {
        matches!(self, Self::Only(parts) if parts.contains(&Destination::Internet))
    }

    /// Returns the networks that the reach lists, without "internet".
    pub(crate) fn networks(&self) -> impl Iterator<Item = IpNet> {
        let parts = match self {
            Self::All => &[][..],
            Self::Only(parts) => parts,
        };
        parts.iter().filter_map(|part| match part {
            Destination::Network(network) => Some(*network),
            Destination::Internet => None,
        })
    }

    /// Returns the address ranges that the reach allows, or `None` if it allows every address.
    pub(crate) fn ranges(&self) -> Option<Ranges> {
        self.ranges_without(&[])
    }

    /// Returns the address ranges that the reach allows on a host with the networks `local`, which
    /// "internet" excludes and listed networks include; `None` if it allows every address.
    pub(crate) fn ranges_without(&self, local: &[IpNet]) -> Option<Ranges> {
        if *self == Self::All {
            return None;
        }
        let mut ranges = if self.has_internet() { Ranges::internet() } else { Ranges::default() };
        local.iter().for_each(|net| ranges.remove(*net));
        for network in self.networks() {
            match network {
                IpNet::V4(net) => ranges.ipv4.push(bounds4(net)),
                IpNet::V6(net) => ranges.ipv6.push(bounds6(net)),
            }
        }
        merge(&mut ranges.ipv4, |end| end.checked_add(1));
        merge(&mut ranges.ipv6, |end| end.checked_add(1));
        Some(ranges)
    }
}

/// Sorted and disjoint address ranges, each with its first and last address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    ipv4: Vec<(u32, u32)>,
    ipv6: Vec<(u128, u128)>,
}

impl Ranges {
    /// Returns the address ranges that "internet" stands for, on a host without networks of its
    /// own.
    pub(crate) fn internet() -> Self {
        let refused = NOT_INTERNET.map(|(address, length)| bounds4(Ipv4Net::new_assert(address, length)));
        let mut ipv4 = Vec::new();
        let mut next = Some(0);
        for (first, last) in refused {
            if let Some(from) = next.filter(|from| *from < first) {
                ipv4.push((from, first - 1));
            }
            next = last.checked_add(1);
        }
        ipv4.extend(next.map(|from| (from, u32::MAX)));
        let (first, last) = bounds6(Ipv6Net::new_assert(INTERNET6.0, INTERNET6.1));
        let (without, until) = bounds6(Ipv6Net::new_assert(SIX_TO_FOUR.0, SIX_TO_FOUR.1));
        let nat64 = |address: u32| NAT64.to_bits() | u128::from(address);
        let mut ipv6: Vec<(u128, u128)> = ipv4.iter().map(|(from, to)| (nat64(*from), nat64(*to))).collect();
        ipv6.extend([(first, without - 1), (until + 1, last)]);
        Self { ipv4, ipv6 }
    }

    /// Returns whether the address is in one of the ranges.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => is_within(&self.ipv4, address.to_bits()),
            IpAddr::V6(address) => is_within(&self.ipv6, address.to_bits()),
        }
    }

    /// Removes the addresses of a network from the ranges.
    pub(crate) fn remove(&mut self, network: IpNet) {
        match network {
            IpNet::V4(net) => subtract(&mut self.ipv4, bounds4(net), |at| at - 1, |at| at + 1),
            IpNet::V6(net) => subtract(&mut self.ipv6, bounds6(net), |at| at - 1, |at| at + 1),
        }
    }

    /// Returns the first and last address of each IPv4 range.
    pub(crate) fn ipv4(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        self.ipv4
            .iter()
            .map(|(from, to)| (Ipv4Addr::from_bits(*from).into(), Ipv4Addr::from_bits(*to).into()))
    }

    /// Returns the first and last address of each IPv6 range.
    pub(crate) fn ipv6(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        self.ipv6
            .iter()
            .map(|(from, to)| (Ipv6Addr::from_bits(*from).into(), Ipv6Addr::from_bits(*to).into()))
    }
}

fn is_within<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|(from, _)| *from <= address);
    after.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|(_, to)| address <= *to)
}

fn subtract<T: Ord + Copy>(
    ranges: &mut Vec<(T, T)>,
    (first, last): (T, T),
    before: impl Fn(T) -> T,
    after: impl Fn(T) -> T,
) {
    let rest = |&(from, to): &(T, T)| {
        // The remainder on either side is not empty, so there is an address before or after.
        let lower = (from < first).then(|| (from, to.min(before(first))));
        let upper = (to > last).then(|| (from.max(after(last)), to));
        [lower, upper].into_iter().flatten()
    };
    *ranges = ranges.iter().flat_map(rest).collect();
}

/// Sorts the ranges and joins adjacent and overlapping ones.
fn merge<T: Ord + Copy>(ranges: &mut Vec<(T, T)>, after: impl Fn(T) -> Option<T>) {
    ranges.sort_unstable();
    let mut joined: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for &(from, to) in ranges.iter() {
        match joined.last_mut() {
            Some(last) if after(last.1).is_none_or(|next| from <= next) => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    *ranges = joined;
}

fn bounds4(net: Ipv4Net) -> (u32, u32) {
    (net.network().to_bits(), net.broadcast().to_bits())
}

fn bounds6(net: Ipv6Net) -> (u128, u128) {
    (net.network().to_bits(), net.broadcast().to_bits())
}

/// The error for a text that is no destination.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum NoDestination {
    /// The text is neither a word of a reach nor a network.
    #[error(
        "{0:?} is not accepted: write \"internet\" or a network, such as \"192.168.1.0/24\"; \"all\" and \
         \"none\" stand alone"
    )]
    Word(String),
    /// The text has an address, but is not a network.
    #[error(transparent)]
    Network(NetworkError),
}

/// Parses "internet", a network, or an address, which stands for the network of that one address.
impl FromStr for Destination {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "internet" {
            return Ok(Self::Internet);
        }
        match network::parse(text) {
            Ok(network) => Ok(Self::Network(network)),
            Err(NetworkError::NotANetwork { given }) => Err(NoDestination::Word(given)),
            Err(error) => Err(NoDestination::Network(error)),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet => f.write_str("internet"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

/// Parses "all", "none", or destinations separated by commas.
impl FromStr for Reach {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "all" => Ok(Self::All),
            "none" => Ok(Self::Only(Vec::new())),
            list => {
                list.split(',').map(|part| part.trim().parse()).collect::<Result<Vec<_>, _>>().map(Self::of)
            }
        }
    }
}

impl Reach {
    fn of(mut parts: Vec<Destination>) -> Self {
        parts.sort_unstable();
        parts.dedup();
        Self::Only(parts)
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(parts) if parts.is_empty() => f.write_str("none"),
            Self::Only(parts) => {
                f.write_str(&parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl Serialize for Reach {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reach {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReachVisitor)
    }
}

/// The serde visitor: accepts the text of the command line, and in TOML a list of texts too.
struct ReachVisitor;

impl<'de> Visitor<'de> for ReachVisitor {
    type Value = Reach;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"internet\", \"all\", \"none\", or a list of networks and \"internet\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Reach, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Reach, A::Error> {
        let mut parts = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            parts.push(text.parse().map_err(de::Error::custom)?);
        }
        Ok(Reach::of(parts))
    }
}

#[cfg(test)]
mod tests;
