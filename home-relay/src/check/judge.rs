//! Turns the facts that `check` gathered into findings, each with its next step. Pure.

use ipnet::IpNet;
use mobile_host::check::Finding;

use super::facts::{ConfiguredFacts, Facts, Failure, PoolFacts, PortState};
use crate::reach::Reach;

/// Returns all findings that follow from the facts.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !facts.root {
        let text = "the TUN device and nftables were not checked: this takes root";
        findings.push(Finding::warn("rights", text, "run `home-relay check` as root"));
    }
    findings.push(match &facts.config {
        Ok(path) => Finding::ok("config", path.display().to_string()),
        Err(error) => Finding::fail(
            "config",
            error.to_string(),
            "correct the file, or write one with `home-relay init`",
        ),
    });
    findings.extend(facts.tun.as_ref().map(|attempt| match attempt {
        Ok(()) => Finding::ok("TUN", "a TUN device with segmentation offload (IFF_VNET_HDR) can be opened"),
        Err(error) => Finding::fail(
            "TUN",
            error.to_string(),
            "correct this as the message says: the relay does not start without a TUN device",
        ),
    }));
    if let Some(configured) = &facts.configured {
        findings.push(match &configured.key {
            Ok(Some(public)) => Finding::ok("key", format!("{public}, readable by its owner only")),
            Ok(None) => Finding::ok("key", "not checked: this user may not read it"),
            Err(error) => {
                let next_step = "restore the key or its permissions: the relay does not start without it";
                Finding::fail("key", error.to_string(), next_step)
            }
        });
        findings.push(port(configured));
        findings.extend(configured.network.as_ref().map(network));
        findings.extend(configured.forwarding.iter().map(|(family, on)| forwarding(configured, family, *on)));
        findings.extend(masquerading(configured));
        findings.extend(overlaps(&configured.pools));
        findings.push(reach(configured.reach.as_ref()));
        findings.extend(configured.dropping.iter().map(|chain| dropping(configured, chain)));
    }
    findings
}

fn port(configured: &ConfiguredFacts) -> Finding {
    let listen = configured.listen;
    match (&configured.running, &configured.port) {
        (Err(error), _) => Finding::warn("port", error.to_string(), "run `home-relay check` as root"),
        (Ok(true), PortState::InUse | PortState::Unknown) => {
            Finding::ok("port", format!("{listen} is served by the running relay"))
        }
        (Ok(true), _) => Finding::fail(
            "port",
            format!("a relay is running, but no program listens on {listen}"),
            "restart the relay to apply its changed configuration",
        ),
        (Ok(false), PortState::Free) => {
            Finding::ok("port", format!("{listen} is free; `home-relay serve` listens there"))
        }
        (Ok(false), PortState::InUse) => Finding::fail(
            "port",
            format!("another program listens on {listen}"),
            "stop that program, or choose another port in [listen] address and in [relay] endpoint of every client",
        ),
        (Ok(false), PortState::Unknown) => {
            Finding::ok("port", format!("{listen} was not checked: only root may listen there"))
        }
        (Ok(false), PortState::Bad(error)) => Finding::fail(
            "port",
            format!("cannot listen on {listen}: {error}"),
            "set [listen] address to an address of this host, or to [::] for all",
        ),
    }
}

/// Judges the parts of the kernel's network state that the running relay has just restored, or its
/// error.
fn network(reconciled: &Result<Vec<String>, Failure>) -> Finding {
    match reconciled {
        Ok(restored) if restored.is_empty() => {
            Finding::ok("network", "device, addresses, forwarding and rules are as configured")
        }
        Ok(restored) => Finding::warn(
            "network",
            format!(
                "another program changed kernel state, which the relay has just restored: {}",
                restored.join(", ")
            ),
            "find the program: a firewall whose script runs `flush ruleset`, a network manager, sysctl.d",
        ),
        Err(error) => Finding::fail(
            "network",
            format!("the running relay cannot restore kernel state that another program changed: {error}"),
            "correct the cause, then run `home-relay reload`, or restart the relay",
        ),
    }
}

fn forwarding(configured: &ConfiguredFacts, family: &str, on: Option<bool>) -> Finding {
    match on {
        None => Finding::ok(
            "forwarding",
            format!("{family} is disabled on this host: clients get no {family} addresses"),
        ),
        Some(true) => Finding::ok("forwarding", format!("{family} packets are forwarded")),
        Some(false) if configured.running == Ok(true) => Finding::fail(
            "forwarding",
            format!("{family} forwarding is off, although the relay turned it on"),
            "find the program that turns it off (a firewall, sysctl.d), and restart the relay",
        ),
        Some(false) => {
            Finding::ok("forwarding", format!("{family} forwarding is off; `home-relay serve` turns it on"))
        }
    }
}

fn masquerading(configured: &ConfiguredFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((name, false)) = &configured.interface {
        findings.push(Finding::warn(
            "nat",
            format!("[nat] interface {name} does not exist: clients' packets leave with their own addresses"),
            "set [nat] interface to the interface that leads to the Internet, or remove the line",
        ));
    }
    findings.extend(configured.nft.as_ref().map(|attempt| match attempt {
        Ok(()) => Finding::ok("nftables", "the kernel accepts the relay's rules"),
        Err(Failure::NotAllowed(error)) => Finding::fail(
            "nftables",
            error,
            "correct this as the message says: the relay cannot change the network without the right",
        ),
        Err(error) => Finding::fail(
            "nftables",
            error.to_string(),
            "install nftables and a kernel with NAT; if the pools are routed to this host, set [nat] masquerade = \
             false instead",
        ),
    }));
    findings
}

fn overlaps(facts: &PoolFacts) -> Vec<Finding> {
    let local = match &facts.local {
        Ok(local) => local,
        Err(error) => {
            return vec![Finding::fail("pool", error.to_string(), "run `home-relay check` as root")];
        }
    };
    let overlap = |pool: &IpNet, net: &IpNet| pool.contains(net) || net.contains(pool);
    let pool = |pool: &IpNet| match local.iter().find(|(_, net)| overlap(pool, net)) {
        Some((device, net)) => Finding::fail(
            "pool",
            format!("{pool} overlaps with {net} on {device}: one of them cannot be reached from this host"),
            "choose another [pool]; clients then get new addresses",
        ),
        None => Finding::ok("pool", format!("{pool} does not overlap with a network of this host")),
    };
    facts.pools.iter().map(pool).collect()
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
fn dropping(configured: &ConfiguredFacts, chain: &str) -> Finding {
    let device = &configured.device;
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
    use std::path::PathBuf;

    use mobile_host::check::Level;
    use mobile_transport::keys::PublicKey;

    use super::*;

    fn healthy_host() -> ConfiguredFacts {
        ConfiguredFacts {
            key: Ok(Some(PublicKey::from_bytes([7; 32]))),
            listen: "[::]:443".parse().unwrap(),
            port: PortState::Free,
            running: Ok(false),
            network: None,
            forwarding: vec![("IPv4", Some(false)), ("IPv6", None)],
            nft: Some(Ok(())),
            dropping: Vec::new(),
            reach: Some("internet".parse().unwrap()),
            device: "home0".into(),
            interface: None,
            pools: beside(Ok(vec![("eth0".into(), "192.168.1.0/24".parse().unwrap())])),
        }
    }

    fn beside(local: Result<Vec<(String, IpNet)>, Failure>) -> PoolFacts {
        PoolFacts { pools: vec!["100.64.16.0/20".parse().unwrap()], local }
    }

    fn facts(configured: ConfiguredFacts) -> Facts {
        Facts {
            root: true,
            config: Ok(PathBuf::from("relay.toml")),
            configured: Some(configured),
            tun: Some(Ok(())),
        }
    }

    fn faults(facts: &Facts) -> Vec<(Level, String)> {
        judge(facts)
            .into_iter()
            .filter(|finding| finding.level != Level::Ok)
            .map(|finding| {
                assert!(finding.next_step.is_some(), "{finding:?}");
                (finding.level, finding.topic)
            })
            .collect()
    }

    #[test]
    fn a_healthy_host_has_no_faults() {
        assert_eq!(faults(&facts(healthy_host())), []);
        let running = ConfiguredFacts {
            running: Ok(true),
            port: PortState::InUse,
            network: Some(Ok(Vec::new())),
            forwarding: vec![("IPv4", Some(true))],
            ..healthy_host()
        };
        assert_eq!(faults(&facts(running)), []);
    }

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

    #[test]
    fn every_fault_has_a_finding_with_a_next_step() {
        fn error<T>() -> Result<T, Failure> {
            Err(Failure::Other("no such thing".into()))
        }
        let (fail, warn) = (Level::Fail, Level::Warn);
        let overlapping = |net: &str| ConfiguredFacts {
            pools: beside(Ok(vec![("lan0".into(), net.parse().unwrap())])),
            ..healthy_host()
        };
        for (configured, level, topic) in [
            (ConfiguredFacts { key: error(), ..healthy_host() }, fail, "key"),
            (ConfiguredFacts { port: PortState::InUse, ..healthy_host() }, fail, "port"),
            (
                ConfiguredFacts { port: PortState::Bad("no such address".into()), ..healthy_host() },
                fail,
                "port",
            ),
            (ConfiguredFacts { running: Ok(true), forwarding: Vec::new(), ..healthy_host() }, fail, "port"),
            (ConfiguredFacts { running: error(), forwarding: Vec::new(), ..healthy_host() }, warn, "port"),
            (
                ConfiguredFacts { running: Ok(true), port: PortState::InUse, ..healthy_host() },
                fail,
                "forwarding",
            ),
            (ConfiguredFacts { nft: Some(error()), ..healthy_host() }, fail, "nftables"),
            (ConfiguredFacts { network: Some(error()), ..healthy_host() }, fail, "network"),
            (
                ConfiguredFacts { network: Some(Ok(vec!["nftables table".into()])), ..healthy_host() },
                warn,
                "network",
            ),
            (ConfiguredFacts { interface: Some(("eth9".into(), false)), ..healthy_host() }, warn, "nat"),
            (
                ConfiguredFacts { dropping: vec!["ip filter FORWARD".into()], ..healthy_host() },
                warn,
                "firewall",
            ),
            (ConfiguredFacts { reach: None, ..healthy_host() }, warn, "reach"),
            (overlapping("100.64.0.0/10"), fail, "pool"),
            (overlapping("100.64.17.0/24"), fail, "pool"),
            (ConfiguredFacts { pools: beside(error()), ..healthy_host() }, fail, "pool"),
        ] {
            let text = format!("{configured:?}");
            assert_eq!(faults(&facts(configured)), [(level, topic.to_owned())], "{text}");
        }
        let broken = Facts { config: error(), configured: None, ..facts(healthy_host()) };
        assert_eq!(faults(&broken), [(fail, "config".to_owned())]);
        let user = Facts { root: false, tun: None, ..facts(ConfiguredFacts { nft: None, ..healthy_host() }) };
        assert_eq!(faults(&user), [(warn, "rights".to_owned())]);
    }
}
