//! Judges the addresses and resolvers that the relay pushes. Each of them is a claim: the host uses
//! it only while it does not conflict with the host's own networks, and an address only if it is
//! private or `[tunnel] addresses` allows it.
//!
//! A persistent address becomes a local address of this host, and everything sent from it enters
//! the tunnel. A relay that could choose any address could therefore capture the traffic of
//! ordinary processes (by the uplink's own address), make it vanish (by the address of the router
//! or of a public server), or reach services that are meant for the local network. The judgement is
//! a pure function.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::assignment::Assignment;
use super::objection::Objection;
use crate::status;

/// The networks that a relay may assign addresses from without the setting `[tunnel] addresses`:
/// RFC 1918, RFC 6598 (shared address space) and RFC 4193 (unique local addresses). None of them is
/// reachable across the Internet.
const PRIVATE: [IpNet; 5] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7)),
];

/// The networks of this host, except those of the host virtual device, with which the addresses and
/// resolvers that the relay pushes must not conflict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostNetworks {
    /// The addresses of this host with their prefix lengths, each with the name of its device.
    pub(crate) addresses: Vec<(String, IpNet)>,
    /// The networks that are directly on a device according to routes of the kernel, router
    /// advertisements and DHCP, each with the name of its device.
    pub(crate) on_link: Vec<(String, IpNet)>,
    /// The next hops of routes in the main table.
    pub(crate) next_hops: Vec<IpAddr>,
    /// The resolvers that ordinary processes of this host use.
    pub(crate) resolvers: Vec<IpAddr>,
    /// The addresses of the relay's endpoint.
    pub(crate) relay: Vec<IpAddr>,
}

/// The part of the relay's assignment that an [`Objection`] concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    /// An address that the relay assigns to this host as a persistent address.
    Address(IpAddr),
    /// A DNS resolver that the relay assigns for mobile processes.
    Resolver(IpAddr),
    /// The assignment as a whole.
    Assignment,
}

/// A part of the relay's assignment that this host refuses, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    /// The refused part of the assignment.
    pub(crate) claim: Claim,
    /// The reason for the refusal.
    pub(crate) objection: Objection,
}

/// The parts of an assignment that this host uses, and the parts that it refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClaimVerdict {
    /// The assignment without the refused addresses and resolvers.
    pub(crate) in_force: Assignment,
    /// The refused addresses and resolvers, with the reasons.
    pub(crate) refusals: Vec<Refusal>,
}

/// Judges each address and resolver of a pushed assignment by the networks of this host; `allowed`
/// are the networks of `[tunnel] addresses`.
pub(crate) fn judge(pushed: &Assignment, allowed: &[IpNet], host: &HostNetworks) -> ClaimVerdict {
    let mut refusals = Vec::new();
    let mut keep = |claim: Claim, objection: Option<Objection>| match objection {
        Some(objection) => {
            refusals.push(Refusal { claim, objection });
            false
        }
        None => true,
    };
    let addresses = pushed.addresses();
    let ipv4 = pushed.ipv4.filter(|ipv4| {
        let address = IpAddr::V4(*ipv4);
        keep(Claim::Address(address), against_address(address, allowed, host))
    });
    let ipv6 = pushed.ipv6.filter(|ipv6| {
        let address = IpAddr::V6(*ipv6);
        keep(Claim::Address(address), against_address(address, allowed, host))
    });
    let against = |server: IpAddr| {
        let persistent = addresses.contains(&server).then_some(Objection::Persistent);
        persistent.or_else(|| against_resolver(server, host))
    };
    let dns = pushed.dns.iter().copied();
    let dns = dns.filter(|&server| keep(Claim::Resolver(server), against(server))).collect();
    ClaimVerdict { in_force: Assignment { ipv4, ipv6, mtu: pushed.mtu, dns }, refusals }
}

fn against_address(address: IpAddr, allowed: &[IpNet], host: &HostNetworks) -> Option<Objection> {
    if is_unusable(address) {
        Some(Objection::Unusable)
    } else if let Some(objection) = held(address, host) {
        Some(objection)
    } else if host.resolvers.contains(&address) {
        Some(Objection::Resolver)
    } else if !PRIVATE.iter().chain(allowed).any(|net| net.contains(&address)) {
        Some(Objection::NotAllowed)
    } else {
        None
    }
}

/// Returns the reason to refuse a pushed resolver, or `None`. A public resolver is allowed even if
/// ordinary processes use it, because most relays push one.
fn against_resolver(server: IpAddr, host: &HostNetworks) -> Option<Objection> {
    if is_unusable(server) { Some(Objection::Unusable) } else { held(server, host) }
}

/// Returns the reason to refuse an address that this host, its networks or the relay already use;
/// `None` if none of them does.
fn held(address: IpAddr, host: &HostNetworks) -> Option<Objection> {
    let of = |(device, _): &(String, IpNet)| device.clone();
    if let Some(local) = host.addresses.iter().find(|(_, net)| net.addr() == address) {
        return Some(Objection::Local(of(local)));
    }
    if host.relay.contains(&address) {
        return Some(Objection::Relay);
    }
    if host.next_hops.contains(&address) {
        return Some(Objection::NextHop);
    }
    let mut networks = host.addresses.iter().chain(&host.on_link);
    let connected = networks.find(|(_, net)| net.contains(&address))?;
    Some(Objection::Connected(of(connected), connected.1.trunc()))
}

/// Returns whether the address is loopback, multicast, link-local, unspecified or reserved, so that
/// it cannot be a persistent address or a resolver.
fn is_unusable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            // 0.0.0.0/8 (RFC 1122) and 240.0.0.0/4 (RFC 1112), including 255.255.255.255.
            first == 0
                || first >= 240
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
        }
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address.to_ipv4().is_some()
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) | Self::Resolver(address) => address.fmt(f),
            Self::Assignment => f.write_str("the assignment"),
        }
    }
}

impl Refusal {
    /// Returns what a person can do about the refusal.
    pub(crate) fn next_step(&self) -> &'static str {
        match (self.claim, &self.objection) {
            (Claim::Resolver(_), _) => {
                "have the relay's operator name another resolver in [dns] servers of relay.toml"
            }
            (Claim::Assignment, _) => {
                "have the relay's operator correct [tunnel] mtu and [pool] of relay.toml"
            }
            (_, Objection::NotAllowed) => {
                "if the relay's operator was given this network, add it to [tunnel] addresses of agent.toml; \
                 otherwise have a private [pool] chosen on the relay"
            }
            (_, Objection::Local(_) | Objection::Connected(..) | Objection::NextHop) => {
                "leave the network that has it, or have another [pool] chosen on the relay; the \
                address returns by itself"
            }
            _ => "have another [pool] chosen on the relay",
        }
    }

    /// Returns the refusal as `mobile status --json` prints it.
    pub(crate) fn to_status(&self) -> status::Refusal {
        let (kind, subject) = match self.claim {
            Claim::Address(_) => ("address", "the pushed address "),
            Claim::Resolver(_) => ("resolver", "the pushed resolver "),
            Claim::Assignment => ("assignment", ""),
        };
        status::Refusal {
            kind: kind.to_owned(),
            claim: self.claim.to_string(),
            reason: self.objection.word().to_owned(),
            cause: format!("{subject}{} {}", self.claim, self.objection),
            next_step: self.next_step().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
