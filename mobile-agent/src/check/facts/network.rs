//! The facts about the network configuration of this host, and about the relay's assignment.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mobile_host::sysctl;
use mobile_netlink::{Family, InterfaceSnapshot, ListedRule, Netlink, NetlinkError, Route, RouteKind};

use crate::check::fact_error::FactError;
use crate::config::{Config, RelayIdentity, globs};
use crate::routing::assignment::AssignmentCache;
use crate::routing::claim::{self, Refusal};
use crate::routing::networks;
use crate::status;
use crate::uplinks::links::{self as uplink_links, RouteTargets};
use crate::uplinks::policy::{self, Decision, Families, Uplink, UplinkPreferences};

/// The network configuration of this host, read over netlink.
#[derive(Debug, Default)]
pub(in crate::check) struct Links {
    /// Every link except loopback and the host virtual device.
    pub(in crate::check) uplinks: Vec<Uplink>,
    /// The ranking of the links that can carry the tunnel, and the obstacle of each other link.
    pub(in crate::check) decision: Decision,
    /// The name of each usable uplink with an IPv4 route, with the value of `rp_filter` in force on
    /// it (0 is off, 1 strict, 2 loose).
    pub(in crate::check) rp_filter: Vec<(String, u32)>,
    /// The routing rules of all programs.
    pub(in crate::check) rules: Vec<ListedRule>,
    /// The destination and device of routes in the agent's table that another program added.
    pub(in crate::check) foreign_routes: Vec<(IpNet, String)>,
    /// The persistent addresses, from the running agent or the cached assignment; empty if neither
    /// can be read.
    pub(in crate::check) persistent: Vec<IpAddr>,
    /// The parts of the relay's assignment, such as an address or a resolver, that this host
    /// refuses.
    pub(in crate::check) refused: Vec<status::Refusal>,
    /// The addresses of this host with their prefix lengths, each after the name of its device;
    /// without loopback addresses and those of the host virtual device.
    pub(in crate::check) local: Vec<(String, IpNet)>,
}

/// The relay's assignment, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    /// The persistent addresses.
    pub(super) persistent: Vec<IpAddr>,
    /// The parts that this host refuses.
    pub(super) refused: Vec<status::Refusal>,
}

impl Links {
    /// Returns the usable uplinks, the most preferred first.
    pub(in crate::check) fn usable(&self) -> impl Iterator<Item = &Uplink> {
        let named = |name: &String| self.uplinks.iter().find(|uplink| uplink.name == *name);
        self.decision.usable.iter().filter_map(named)
    }
}

/// Returns the persistent addresses of the relay's cached assignment, and the parts of it that an
/// agent would refuse if it started at this moment.
pub(super) async fn cached_assignment(
    config: &Config,
    relay: &RelayIdentity,
    resolved: Option<&Result<Vec<SocketAddr>, FactError>>,
) -> Assigned {
    let Some(pushed) = AssignmentCache::new(&config.state.dir, &relay.public_key).load() else {
        return Assigned::default();
    };
    let addresses = resolved.and_then(|resolved| resolved.as_ref().ok());
    let endpoint = addresses.into_iter().flatten().map(|address| address.ip().to_canonical()).collect();
    // A netlink error has a finding of its own.
    let host = match Netlink::new() {
        Ok(netlink) => networks::read(&netlink, &config.tunnel.device, endpoint).await.unwrap_or_default(),
        Err(_) => claim::HostNetworks::default(),
    };
    let verdict = claim::judge(&pushed, &config.tunnel.addresses, &host);
    Assigned {
        persistent: verdict.in_force.addresses(),
        refused: verdict.refusals.iter().map(Refusal::to_status).collect(),
    }
}

/// Reads the routing rules, and the routes that other programs added to the agent's table. The
/// other facts stay empty.
pub(in crate::check) async fn table(config: &Config) -> Result<Links, NetlinkError> {
    let netlink = Netlink::new()?;
    let (rules, routes) = rules_and_routes(&netlink, config).await?;
    let snapshot = netlink.snapshot().await?;
    Ok(Links { rules, foreign_routes: foreign(&routes, config, &snapshot), ..Links::default() })
}

async fn rules_and_routes(
    netlink: &Netlink,
    config: &Config,
) -> Result<(Vec<ListedRule>, Vec<Route>), NetlinkError> {
    let mut routes = Vec::new();
    for family in Family::ALL {
        routes.extend(netlink.routes(config.routing.table, family).await?);
    }
    Ok((netlink.all_rules().await?, routes))
}

/// Returns the destination and device of those routes that lead through another device than the
/// agent's.
fn foreign(routes: &[Route], config: &Config, snapshot: &InterfaceSnapshot) -> Vec<(IpNet, String)> {
    let unicast = routes.iter().filter_map(|route| match route.kind {
        RouteKind::Unicast { oif, .. } => Some((route.dst, name_of(snapshot, oif))),
        RouteKind::Throw | RouteKind::Unreachable => None,
    });
    unicast.filter(|(_, oif)| *oif != config.tunnel.device).collect()
}

/// Reads the network configuration; `relay` are the relay's addresses, in `families`.
pub(super) async fn links(
    config: &Config,
    families: Families,
    assigned: Assigned,
    relay: &RouteTargets,
) -> Result<Links, FactError> {
    let netlink = Netlink::new().map_err(|error| FactError::of(&error))?;
    let read = async {
        let (observed, snapshot) = uplink_links::read_links(&netlink, &config.tunnel.device, relay).await?;
        let (rules, routes) = rules_and_routes(&netlink, config).await?;
        Ok::<_, NetlinkError>((observed, snapshot, rules, routes))
    };
    let (observed, snapshot, rules, routes) = read.await.map_err(|error| FactError::of(&error))?;
    let device = &config.tunnel.device;
    let uplinks: Vec<Uplink> = observed.into_iter().map(|link| link.uplink).collect();
    let glob = |key: &str, patterns: &[String]| globs(key, patterns).map_err(|error| FactError::of(&error));
    let decision = policy::decide(
        &uplinks,
        &UplinkPreferences {
            forced: None,
            prefer: &glob("[uplink] prefer", &config.uplink.prefer)?,
            exclude: &glob("[uplink] exclude", &config.uplink.exclude)?,
            families,
            current: None,
            failing: &BTreeSet::new(),
        },
    );
    let name = |index| name_of(&snapshot, index);
    let foreign_routes = foreign(&routes, config, &snapshot);
    let local = snapshot
        .addresses
        .iter()
        .map(|address| (name(address.index), address.net))
        .filter(|(link, net)| link != device && !net.addr().is_loopback())
        .collect();
    let Assigned { persistent, refused } = assigned;
    let mut links =
        Links { uplinks, decision, rp_filter: Vec::new(), rules, foreign_routes, persistent, refused, local };
    links.rp_filter = links
        .usable()
        .filter(|uplink| uplink.ipv4_route.is_some())
        .map(|uplink| (uplink.name.clone(), rp_filter(&uplink.name)))
        .collect();
    Ok(links)
}

fn name_of(snapshot: &InterfaceSnapshot, index: u32) -> String {
    let link = snapshot.links.iter().find(|link| link.index == index);
    link.map_or_else(|| format!("device {index}"), |link| link.name.clone())
}

/// Returns the value of `rp_filter` in force on a device (0 is off, 1 strict, 2 loose): the larger
/// one of the device's own setting and that of `all`.
fn rp_filter(device: &str) -> u32 {
    let read = |scope: &str| {
        let value = sysctl::read(&format!("net/ipv4/conf/{scope}/rp_filter")).ok();
        value.and_then(|value| value.parse::<u32>().ok()).unwrap_or(0)
    };
    read("all").max(read(device))
}
