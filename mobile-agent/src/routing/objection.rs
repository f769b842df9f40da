//! The reasons to refuse an assignment of the relay, or an address or resolver in it.

use std::fmt;

use ipnet::IpNet;

/// The reason why this host refuses an address or resolver of the relay, or a whole assignment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Objection {
    /// No host can have the address: it is loopback, multicast, link-local, unspecified, broadcast
    /// or reserved.
    Unusable,
    /// The address is in no network that a relay may assign from: neither a private network nor one
    /// of `[tunnel] addresses`.
    NotAllowed,
    /// The device of this name on this host has the address already.
    Local(String),
    /// The address is in this network, which is on the device of this name.
    Connected(String, IpNet),
    /// The address is a next hop of this host's routes.
    NextHop,
    /// Ordinary processes of this host use the address as a resolver.
    Resolver,
    /// The address is one of the relay's endpoint, to which the tunnel itself connects.
    Relay,
    /// The resolver is a persistent address of this host.
    Persistent,
    /// The MTU that the relay assigned (the value held here) is out of bounds.
    Mtu(u16),
    /// The assignment has no address.
    Empty,
}

impl Objection {
    /// Every value that [`word`](Self::word) returns.
    pub(crate) const WORDS: [&str; 10] = [
        "unusable",
        "not_allowed",
        "local",
        "connected",
        "next_hop",
        "resolver",
        "relay",
        "persistent",
        "mtu",
        "empty",
    ];

    /// Returns the short name of the objection, as the metric and `mobile status --json` show it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Unusable => "unusable",
            Self::NotAllowed => "not_allowed",
            Self::Local(_) => "local",
            Self::Connected(..) => "connected",
            Self::NextHop => "next_hop",
            Self::Resolver => "resolver",
            Self::Relay => "relay",
            Self::Persistent => "persistent",
            Self::Mtu(_) => "mtu",
            Self::Empty => "empty",
        }
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable => f.write_str("is not an address that a host can have"),
            Self::NotAllowed => f.write_str("is neither private nor in [tunnel] addresses"),
            Self::Local(device) => write!(f, "is an address of {device}"),
            Self::Connected(device, net) => write!(f, "is in the network {net} on {device}"),
            Self::NextHop => f.write_str("is a router of this host's routes"),
            Self::Resolver => f.write_str("is a resolver of this host"),
            Self::Relay => f.write_str("is the relay's own address"),
            Self::Persistent => f.write_str("is a persistent address of this host"),
            Self::Mtu(mtu) => write!(f, "has an MTU of {mtu}, which is out of bounds"),
            Self::Empty => f.write_str("has no address"),
        }
    }
}
