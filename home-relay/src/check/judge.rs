//! Judges the facts: turns each into a finding with its next step. Pure.

use ipnet::IpNet;
use mobile_io::check::Finding;

use super::facts::{Facts, Port, Rest};

/// Returns all findings about the host.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !facts.root {
        let seen = "the TUN device and nftables were not checked: this takes root";
        findings.push(Finding::warn("rights", seen, "run `home-relay check` as root"));
    }
    findings.push(match &facts.config {
        Ok(path) => Finding::ok("config", path.display().to_string()),
        Err(error) => Finding::fail("config", error, "correct the file, or write one with `home-relay init`"),
    });
    findings.extend(facts.tun.as_ref().map(|tried| match tried {
        Ok(()) => Finding::ok("TUN", "a TUN device with segmentation offload (IFF_VNET_HDR) can be opened"),
        Err(error) => Finding::fail("TUN", error, "run `modprobe tun`; give a container access to /dev/net/tun"),
    }));
    if let Some(rest) = &facts.rest {
        findings.push(match &rest.key {
            Ok(Some(public)) => Finding::ok("key", format!("{public}, readable by its owner only")),
            Ok(None) => Finding::ok("key", "not checked: this user may not read it"),
            Err(error) => Finding::fail("key", error, "restore the key, or write a new one with `home-relay init`: the relay does not start without it"),
        });
        findings.push(port(rest));
        findings.extend(rest.network.as_ref().map(network));
        findings.extend(rest.forwarding.iter().map(|(family, on)| forwarding(rest, family, *on)));
        findings.extend(masquerading(rest));
        findings.extend(overlaps(rest));
        findings.push(if rest.has_reach {
            Finding::ok("reach", "[clients] reach is set")
        } else {
            let seen =
                "[clients] reach is not set: clients reach everything that this host reaches, including private networks and cloud metadata services";
            let next = "set [clients] reach to \"internet\" or a list of networks, or to \"all\" if this is intended";
            Finding::warn("reach", seen, next)
        });
        findings.extend(rest.dropping.iter().map(|chain| dropping(rest, chain)));
    }
    findings
}

fn port(rest: &Rest) -> Finding {
    let listen = rest.listen;
    match (&rest.running, &rest.port) {
        (Err(error), _) => Finding::warn("port", error, "run `home-relay check` as root"),
        (Ok(true), Port::InUse | Port::Unknown) => {
            Finding::ok("port", format!("{listen} is served by the running relay"))
        }
        (Ok(true), _) => Finding::fail(
            "port",
            format!("a relay is running, but no program listens on {listen}"),
            "restart the relay to apply its changed configuration",
        ),
        (Ok(false), Port::Free) => {
            Finding::ok("port", format!("{listen} is free; `home-relay serve` listens there"))
        }
        (Ok(false), Port::InUse) => Finding::fail(
            "port",
            format!("another program listens on {listen}"),
            "stop that program, or choose another port in [listen] address and in [relay] endpoint of every client",
        ),
        (Ok(false), Port::Unknown) => {
            Finding::ok("port", format!("{listen} was not checked: only root may listen there"))
        }
        (Ok(false), Port::Bad(error)) => Finding::fail(
            "port",
            format!("cannot listen on {listen}: {error}"),
            "set [listen] address to an address of this host, or to [::] for all",
        ),
    }
}

/// Judges what the running relay says about its device, addresses, forwarding and rules.
fn network(looked: &Result<Vec<String>, String>) -> Finding {
    match looked {
        Ok(restored) if restored.is_empty() => Finding::ok(
            "network",
            "device, addresses, forwarding and rules are as configured",
        ),
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

fn forwarding(rest: &Rest, family: &str, on: Option<bool>) -> Finding {
    match on {
        None => Finding::ok("forwarding", format!("{family} is disabled on this host: clients get no {family} addresses")),
        Some(true) => Finding::ok("forwarding", format!("{family} packets are forwarded")),
        Some(false) if rest.running == Ok(true) => Finding::fail(
            "forwarding",
            format!("{family} forwarding is off, although the relay turned it on"),
            "find the program that turns it off (a firewall, sysctl.d), and restart the relay",
        ),
        Some(false) => {
            Finding::ok("forwarding", format!("{family} forwarding is off; `home-relay serve` turns it on"))
        }
    }
}

fn masquerading(rest: &Rest) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((name, false)) = &rest.interface {
        findings.push(Finding::warn(
            "nat",
            format!("[nat] interface {name} does not exist: clients' packets leave with their own addresses"),
            "set [nat] interface to the interface that leads to the Internet, or remove the line",
        ));
    }
    findings.extend(rest.nft.as_ref().map(|tried| match tried {
        Ok(()) => Finding::ok("nftables", "the kernel accepts the relay's rules"),
        Err(error) => Finding::fail(
            "nftables",
            error,
            "install nftables and a kernel with NAT; if the pools are routed to this host, set [nat] masquerade = false instead",
        ),
    }));
    findings
}

fn overlaps(rest: &Rest) -> Vec<Finding> {
    let local = match &rest.local {
        Ok(local) => local,
        Err(error) => return vec![Finding::fail("pool", error, "run `home-relay check` as root")],
    };
    let meets = |pool: &IpNet, net: &IpNet| pool.contains(net) || net.contains(pool);
    let pool = |pool: &IpNet| match local.iter().find(|(_, net)| meets(pool, net)) {
        Some((device, net)) => Finding::fail(
            "pool",
            format!("{pool} overlaps with {net} on {device}: one of them cannot be reached from this host"),
            "choose another [pool]; clients then get new addresses",
        ),
        None => Finding::ok("pool", format!("{pool} does not overlap with a network of this host")),
    };
    rest.pools.iter().map(pool).collect()
}

/// Judges a chain that drops by default. Whether its rules let the relay's packets pass is not
/// checked.
fn dropping(rest: &Rest, chain: &str) -> Finding {
    let device = &rest.device;
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

    use mobile_io::check::Level;
    use mobile_io::keys::PublicKey;

    use super::*;

    fn well() -> Rest {
        Rest {
            key: Ok(Some(PublicKey::from_bytes([7; 32]))),
            listen: "[::]:443".parse().unwrap(),
            port: Port::Free,
            running: Ok(false),
            network: None,
            forwarding: vec![("IPv4", Some(false)), ("IPv6", None)],
            nft: Some(Ok(())),
            dropping: Vec::new(),
            has_reach: true,
            device: "home0".into(),
            interface: None,
            pools: vec!["100.64.16.0/20".parse().unwrap()],
            local: Ok(vec![("eth0".into(), "192.168.1.0/24".parse().unwrap())]),
        }
    }

    fn facts(rest: Rest) -> Facts {
        Facts { root: true, config: Ok(PathBuf::from("relay.toml")), rest: Some(rest), tun: Some(Ok(())) }
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
    fn a_machine_that_is_well_has_no_fault() {
        assert_eq!(faults(&facts(well())), []);
        let running = Rest {
            running: Ok(true),
            port: Port::InUse,
            network: Some(Ok(Vec::new())),
            forwarding: vec![("IPv4", Some(true))],
            ..well()
        };
        assert_eq!(faults(&facts(running)), []);
    }

    #[test]
    fn every_fault_has_its_line_and_its_cure() {
        fn error<T>() -> Result<T, String> {
            Err("no such thing".into())
        }
        let (fail, warn) = (Level::Fail, Level::Warn);
        let overlapping =
            |net: &str| Rest { local: Ok(vec![("lan0".into(), net.parse().unwrap())]), ..well() };
        for (rest, level, topic) in [
            (Rest { key: error(), ..well() }, fail, "key"),
            (Rest { port: Port::InUse, ..well() }, fail, "port"),
            (Rest { port: Port::Bad("no such address".into()), ..well() }, fail, "port"),
            (Rest { running: Ok(true), forwarding: Vec::new(), ..well() }, fail, "port"),
            (Rest { running: error(), forwarding: Vec::new(), ..well() }, warn, "port"),
            (Rest { running: Ok(true), port: Port::InUse, ..well() }, fail, "forwarding"),
            (Rest { nft: Some(error()), ..well() }, fail, "nftables"),
            (Rest { network: Some(error()), ..well() }, fail, "network"),
            (Rest { network: Some(Ok(vec!["nftables table".into()])), ..well() }, warn, "network"),
            (Rest { interface: Some(("eth9".into(), false)), ..well() }, warn, "nat"),
            (Rest { dropping: vec!["ip filter FORWARD".into()], ..well() }, warn, "firewall"),
            (Rest { has_reach: false, ..well() }, warn, "reach"),
            (overlapping("100.64.0.0/10"), fail, "pool"),
            (overlapping("100.64.17.0/24"), fail, "pool"),
            (Rest { local: error(), ..well() }, fail, "pool"),
        ] {
            let text = format!("{rest:?}");
            assert_eq!(faults(&facts(rest)), [(level, topic.to_owned())], "{text}");
        }
        let broken = Facts { config: error(), rest: None, ..facts(well()) };
        assert_eq!(faults(&broken), [(fail, "config".to_owned())]);
        let user = Facts { root: false, tun: None, ..facts(Rest { nft: None, ..well() }) };
        assert_eq!(faults(&user), [(warn, "rights".to_owned())]);
    }
}
