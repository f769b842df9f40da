//! Judges the facts about this host's network.

use ipnet::IpNet;
use mobile_host::check::Finding;

use crate::check::facts::{HostFacts, InterfaceState, LocalNetwork};
use crate::reach::Reach;

/// Returns the findings about this host's network; `running` tells whether the relay runs.
pub(in crate::check) fn judge(host: &HostFacts, running: bool) -> Vec<Finding> {
    let forwarding = host.forwarding.iter().map(|(family, on)| forwarding(family, *on, running));
    let mut findings: Vec<Finding> = forwarding.collect();
    findings.extend(host.servable.as_ref().err().map(|error| {
        Finding::fail("pool", error.to_string(), "add a pool of the other family, or enable this one")
    }));
    findings.extend(device(host));
    findings.extend(host.interface.as_ref().map(|(name, state)| interface(name, *state)));
    findings.extend(overlaps(host));
    findings.push(reach(host.reach.as_ref()));
    findings.extend(host.dropping.iter().map(|chain| dropping(&host.device, chain)));
    findings
}

fn forwarding(family: &str, on: Option<bool>, running: bool) -> Finding {
    match on {
        None => Finding::ok(
            "forwarding",
            format!("{family} is disabled on this host: clients get no {family} addresses"),
        ),
        Some(true) => Finding::ok("forwarding", format!("{family} packets are forwarded")),
        Some(false) if running => Finding::fail(
            "forwarding",
            format!("{family} forwarding is off, although the relay turned it on"),
            "find the program that turns it off (a firewall, sysctl.d), and restart the relay",
        ),
        Some(false) => {
            Finding::ok("forwarding", format!("{family} forwarding is off; `home-relay serve` turns it on"))
        }
    }
}

/// Reports a device of another program that has the name of the relay's.
fn device(host: &HostFacts) -> Option<Finding> {
    let (kind, device) = (host.other_kind.as_ref()?, &host.device);
    Some(Finding::fail(
        "device",
        format!("this host has a device {device} of another kind ({kind})"),
        "choose another [tunnel] device",
    ))
}

fn interface(name: &str, state: InterfaceState) -> Finding {
    let next_step = "set [nat] interface to the interface that leads to the Internet, or remove the line";
    match state {
        InterfaceState::Up => Finding::ok("nat", format!("clients are masqueraded on {name}")),
        InterfaceState::Down => Finding::warn(
            "nat",
            format!(
                "[nat] interface {name} is down: clients' packets that leave by another are not masqueraded"
            ),
            next_step,
        ),
        InterfaceState::Missing => Finding::fail(
            "nat",
            format!("[nat] interface {name} does not exist: clients' packets leave with their own addresses"),
            next_step,
        ),
    }
}

fn overlaps(host: &HostFacts) -> Vec<Finding> {
    let local = match &host.local {
        Ok(local) => local,
        Err(error) => {
            return vec![Finding::fail("pool", error.to_string(), "run `home-relay check` as root")];
        }
    };
    // A pool may be a part of a network that another router has a route to, but not the reverse.
    let overlap = |pool: &IpNet, LocalNetwork { net, is_route, .. }: &LocalNetwork| {
        pool.contains(net) || !is_route && net.contains(pool)
    };
    let pool = |pool: &IpNet| match local.iter().find(|network| overlap(pool, network)) {
        Some(LocalNetwork { device, net, is_route }) => {
            let what = if *is_route { "the route to " } else { "" };
            let seen = format!(
                "{pool} overlaps with {what}{net} on {device}: one of them cannot be reached from this host"
            );
            Finding::fail("pool", seen, "choose another [pool]; clients then get new addresses")
        }
        None => Finding::ok("pool", format!("{pool} does not overlap with a network of this host")),
    };
    host.pools.iter().map(pool).collect()
}

/// Reports the destinations of clients without a reach of their own; warns if `[clients] reach`,
/// which sets them, is absent.
fn reach(reach: Option<&Reach>) -> Finding {
    let Some(reach) = reach else {
        let text = "[clients] reach is not set: clients reach everything that this host reaches, including \
                    private networks and cloud metadata services";
        let next_step = "set [clients] reach to \"internet\" or a list of networks, or to \"all\" if \
                         this is intended";
        return Finding::warn("reach", text, next_step);
    };
    let networks: Vec<String> = reach.networks().map(|network| network.to_string()).collect();
    let networks = networks.join(", ");
    let text = match (reach, reach.has_internet(), networks.is_empty()) {
        (Reach::All, ..) => {
            "clients reach everything that this host reaches, private networks included".to_owned()
        }
        (_, true, true) => {
            "clients reach public addresses only; private networks and this host are refused".to_owned()
        }
        (_, true, false) => format!(
            "clients reach public addresses and {networks}; other private networks and this host's other addresses \
             are refused"
        ),
        (_, false, true) => "clients reach no destination".to_owned(),
        (_, false, false) => format!("clients reach {networks} only"),
    };
    Finding::ok("reach", format!("{text} (see [clients] reach)"))
}

/// Judges a chain of another firewall that drops forwarded packets by default. Whether the chain's
/// own rules accept the relay's packets is not checked.
fn dropping(device: &str, chain: &str) -> Finding {
    Finding::warn(
        "firewall",
        format!(
            "the chain `{chain}` of another firewall drops forwarded packets unless one of its rules accepts them"
        ),
        format!(
            "unless its rules already accept {device}, run `nft insert rule {chain} iifname {device} accept` and \
             `nft insert rule {chain} oifname {device} accept`, or the equivalent of that firewall's own tool"
        ),
    )
}

#[cfg(test)]
mod tests {
    use mobile_host::check::Level;

    use super::*;

    #[test]
    fn the_reach_is_described_by_what_clients_reach() {
        for (setting, part) in [
            ("internet", "public addresses only; private networks and this host are refused"),
            ("internet,192.168.1.0/24", "public addresses and 192.168.1.0/24; other private networks"),
            ("10.0.0.0/8,192.168.1.0/24", "clients reach 10.0.0.0/8, 192.168.1.0/24 only"),
            ("none", "no destination"),
            ("all", "everything that this host reaches"),
        ] {
            let Finding { level, seen, .. } = reach(Some(&setting.parse().unwrap()));
            assert!(level == Level::Ok && seen.contains(part), "{setting}: {seen}");
        }
    }
}
