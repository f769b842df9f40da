//! The destinations that clients may reach.

use std::net::IpAddr;

use ipnet::IpNet;

use super::chain::drop_rule;
use crate::metrics::DropReason;
use crate::reach::Reach;

/// The destinations that each client may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destinations {
    /// The reach of clients without a reach of their own.
    pub(super) reach: Reach,
    /// The persistent addresses of the other clients, each with the reach of its client.
    pub(super) reach_of: Vec<(IpAddr, Reach)>,
    /// The DNS resolvers that are pushed to clients, which clients may query even outside their
    /// reach.
    pub(super) resolvers: Vec<IpAddr>,
}

/// A reach, with the addresses of the clients that have it as their own.
pub(super) type ReachGroup<'a> = (&'a Reach, Vec<IpAddr>);

impl Destinations {
    /// Returns whether the reach of any client excludes a destination.
    pub(super) fn is_bounded(&self) -> bool {
        self.reach != Reach::All || self.reach_of.iter().any(|(_, own)| *own != Reach::All)
    }

    /// Returns the distinct reaches, each with the addresses of the clients that have it as their
    /// own. The first one is the reach of all other clients.
    pub(super) fn groups(&self) -> Vec<ReachGroup<'_>> {
        let mut groups = vec![(&self.reach, Vec::new())];
        for (address, reach) in &self.reach_of {
            // A client's reach that equals the common one needs no entry.
            match groups.iter_mut().find(|(known, _)| *known == reach) {
                Some((known, _)) if **known == self.reach => {}
                Some((_, of)) => of.push(*address),
                None => groups.push((reach, vec![*address])),
            }
        }
        groups
    }
}

/// Returns the nftables rules that admit new connections to the destinations within `reach`,
/// subject to the limits, and drop all others.
pub(super) fn rules(reach: &Reach) -> Vec<String> {
    let Some(ranges) = reach.ranges() else { return vec!["goto limits".to_owned()] };
    let mut rules = Vec::new();
    let mut allow = |networks: Vec<String>, ip: &str| {
        if !networks.is_empty() {
            rules.push(format!("{ip} daddr {{ {} }} goto limits", networks.join(", ")));
        }
    };
    if reach.has_internet() {
        // Listed networks come first, including this host's own addresses in them.
        let (four, six): (Vec<IpNet>, Vec<IpNet>) =
            reach.networks().partition(|net| matches!(net, IpNet::V4(_)));
        for (networks, ip) in [(four, "ip"), (six, "ip6")] {
            let networks = IpNet::aggregate(&networks);
            allow(networks.iter().map(ToString::to_string).collect(), ip);
        }
        rules.push(drop_rule("fib daddr type { local, anycast }", DropReason::Reach));
    }
    let mut allow = |ranges: Vec<(IpAddr, IpAddr)>, ip: &str| {
        let ranges: Vec<String> = ranges
            .iter()
            .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") })
            .collect();
        if !ranges.is_empty() {
            rules.push(format!("{ip} daddr {{ {} }} goto limits", ranges.join(", ")));
        }
    };
    allow(ranges.ipv4().collect(), "ip");
    allow(ranges.ipv6().collect(), "ip6");
    rules.push(drop_rule("", DropReason::Reach));
    rules
}
