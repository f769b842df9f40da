//! The uplink policy: a pure function that ranks the known uplinks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use globset::GlobMatcher;

/// The properties of one link that decide whether it can carry the tunnel, and how well it ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    /// The name of the interface.
    pub(crate) name: String,
    /// Whether the link is administratively up.
    pub(crate) up: bool,
    /// Whether the link has a carrier.
    pub(crate) carrier: bool,
    /// The addresses of the link, without link-local and deprecated ones.
    pub(crate) addresses: Vec<IpAddr>,
    /// The deprecated addresses, which existing connections keep and new ones avoid (RFC 4862,
    /// section 5.5.4).
    pub(crate) deprecated: Vec<IpAddr>,
    /// The metric of the IPv4 route by which a socket bound to the link reaches the relay.
    pub(crate) ipv4_route: Option<u32>,
    /// The metric of the IPv6 route by which a socket bound to the link reaches the relay.
    pub(crate) ipv6_route: Option<u32>,
    /// The next hops of the routes to the relay. Another next hop means another network.
    pub(crate) gateways: Vec<IpAddr>,
    /// Whether the link encapsulates, as a VPN does: its packets leave this host inside packets of
    /// another link.
    pub(crate) tunnel: bool,
    /// The mobile process, if any, that reads the packets sent into this link, as a VPN client
    /// does. The packets that it sends on would come back through the host virtual device.
    pub(crate) mobile_reader: Option<String>,
}

impl Uplink {
    /// Returns whether the link may be attached to another network than in `before`, so that
    /// earlier failures say nothing. Another metric or one more address is no sign of another
    /// network.
    pub(crate) fn is_different_network(&self, before: &Self) -> bool {
        let works = |uplink: &Self| uplink.up && uplink.carrier;
        let served = |uplink: &Self| (uplink.ipv4_route.is_some(), uplink.ipv6_route.is_some());
        let kept = before.addresses.is_empty() == self.addresses.is_empty()
            && (self.addresses.is_empty() || self.addresses.iter().any(|one| before.addresses.contains(one)));
        self.gateways != before.gateways
            || works(self) != works(before)
            || served(self) != served(before)
            || !kept
    }
}

/// The inputs of the ranking of uplinks beside the properties of the links.
#[derive(Debug)]
pub(crate) struct UplinkPreferences<'a> {
    /// The uplink that `mobile use` names. It ranks before all others that did not fail a moment
    /// ago. While it is unusable, the others are used.
    pub(crate) forced: Option<&'a str>,
    /// The globs of `[uplink] prefer`, most preferred first.
    pub(crate) prefer: &'a [GlobMatcher],
    /// The globs of `[uplink] exclude`.
    pub(crate) exclude: &'a [GlobMatcher],
    /// The address families in which the relay can be reached.
    pub(crate) families: Families,
    /// The uplink in use, which wins a tie in the ranking.
    pub(crate) current: Option<&'a str>,
    /// The uplinks that failed a moment ago, which rank last.
    pub(crate) failing: &'a BTreeSet<String>,
}

/// A set of address families, such as those in which the relay has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Families {
    /// Whether IPv4 is in the set.
    pub(crate) ipv4: bool,
    /// Whether IPv6 is in the set.
    pub(crate) ipv6: bool,
}

/// The ranking of the usable uplinks, and the reasons why the others are unusable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The names of the usable uplinks, the best first.
    pub(crate) usable: Vec<String>,
    /// One verdict for each known link, in the order of the links.
    pub(crate) verdicts: Vec<UplinkVerdict>,
}

/// Whether one uplink can carry the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UplinkVerdict {
    /// The name of the interface.
    pub(crate) name: String,
    /// The reason why the uplink cannot carry the tunnel; `None` if it can.
    pub(crate) obstacle: Option<Obstacle>,
}

/// The reason why an uplink cannot carry the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The uplink matches `[uplink] exclude`.
    Excluded,
    /// The link is a tunnel that does not match `[uplink] prefer`.
    Tunnel,
    /// Packets sent into the link would come back through the host virtual device, because a mobile
    /// process reads them.
    Loop,
    /// The link is administratively down.
    Down,
    /// The link has no carrier: no cable or no association.
    NoCarrier,
    /// The link has no address in a family of the relay.
    NoAddress,
    /// The link has an address but no route to the relay in a family of the relay.
    NoRoute,
}

impl Obstacle {
    /// Returns the obstacle in words, for `mobile uplinks`.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Excluded => "excluded by [uplink] exclude",
            Self::Tunnel => "a tunnel (a VPN): its packets leave by another link",
            Self::Loop => "its packets come back through the tunnel: a mobile process reads them",
            Self::Down => "link is down",
            Self::NoCarrier => "no carrier",
            Self::NoAddress => "no address in the relay's address family",
            Self::NoRoute => "no default route, nor one to the relay, in the relay's address family",
        }
    }

    /// Returns what a person can do to have the uplink used; `None` where that is obvious.
    pub(crate) fn next_step(self) -> Option<&'static str> {
        match self {
            Self::Tunnel => Some("name it in [uplink] prefer if the tunnel to the relay is to go through it"),
            Self::Loop => Some("`mobile detach` the VPN's client, or remove the link from [uplink] prefer"),
            _ => None,
        }
    }
}

/// Ranks the usable uplinks.
///
/// The criteria, in order of precedence: no failure a moment ago, the uplink that `mobile use`
/// names, the order of `[uplink] prefer`, the metric of the route, the uplink in use, the name.
pub(crate) fn decide(uplinks: &[Uplink], preferences: &UplinkPreferences<'_>) -> Decision {
    let verdicts: Vec<UplinkVerdict> = uplinks
        .iter()
        .map(|uplink| UplinkVerdict { name: uplink.name.clone(), obstacle: obstacle(uplink, preferences) })
        .collect();
    let mut usable: Vec<&Uplink> = uplinks
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| verdict.obstacle.is_none())
        .map(|(uplink, _)| uplink)
        .collect();
    usable.sort_by_cached_key(|uplink| rank(uplink, preferences));
    Decision { usable: usable.into_iter().map(|uplink| uplink.name.clone()).collect(), verdicts }
}

/// Returns the families in which the relay can be reached over this uplink.
pub(crate) fn reachable_families(uplink: &Uplink, families: Families) -> Families {
    Families {
        ipv4: families.ipv4 && uplink.ipv4_route.is_some() && uplink.addresses.iter().any(IpAddr::is_ipv4),
        ipv6: families.ipv6 && uplink.ipv6_route.is_some() && uplink.addresses.iter().any(IpAddr::is_ipv6),
    }
}

fn obstacle(uplink: &Uplink, preferences: &UplinkPreferences<'_>) -> Option<Obstacle> {
    let Families { ipv4, ipv6 } = preferences.families;
    if is_named(uplink, preferences.exclude) {
        Some(Obstacle::Excluded)
    } else if uplink.tunnel && !is_named(uplink, preferences.prefer) {
        Some(Obstacle::Tunnel)
    } else if uplink.mobile_reader.is_some() {
        Some(Obstacle::Loop)
    } else if !uplink.up {
        Some(Obstacle::Down)
    } else if !uplink.carrier {
        Some(Obstacle::NoCarrier)
    } else if !uplink.addresses.iter().any(|address| if address.is_ipv4() { ipv4 } else { ipv6 }) {
        Some(Obstacle::NoAddress)
    } else {
        let serves = reachable_families(uplink, preferences.families);
        (!serves.ipv4 && !serves.ipv6).then_some(Obstacle::NoRoute)
    }
}

/// Returns whether one of the globs matches the uplink's name.
pub(crate) fn is_named(uplink: &Uplink, globs: &[GlobMatcher]) -> bool {
    globs.iter().any(|glob| glob.is_match(&uplink.name))
}

/// Returns the sort key of an uplink by the criteria of [`decide`]; smaller is better.
fn rank(uplink: &Uplink, preferences: &UplinkPreferences<'_>) -> (bool, bool, usize, u32, bool, String) {
    let preference = preferences
        .prefer
        .iter()
        .position(|glob| glob.is_match(&uplink.name))
        .unwrap_or(preferences.prefer.len());
    let serves = reachable_families(uplink, preferences.families);
    let metric = [(serves.ipv4, uplink.ipv4_route), (serves.ipv6, uplink.ipv6_route)]
        .into_iter()
        .filter_map(|(serves, metric)| metric.filter(|_| serves))
        .min()
        .unwrap_or(u32::MAX);
    (
        preferences.failing.contains(&uplink.name),
        preferences.forced != Some(uplink.name.as_str()),
        preference,
        metric,
        preferences.current != Some(uplink.name.as_str()),
        uplink.name.clone(),
    )
}

#[cfg(test)]
mod tests;
