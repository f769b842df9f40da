//! What the facts mean, and what to do: pure.

use ipnet::IpNet;
use mobile_io::check::Finding;

use super::facts::{Facts, Port, Rest};

/// All findings.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !facts.root {
        let seen = "an ordinary user may not look at the TUN device and nftables";
        findings.push(Finding::warn("rights", seen, "run `home-relay check` as root"));
    }
    findings.push(match &facts.config {
        Ok(path) => Finding::ok("config", path.display().to_string()),
        Err(error) => Finding::fail("config", error, "correct the file, or write one with `home-relay init`"),
    });
    findings.extend(facts.tun.as_ref().map(|tried| match tried {
        Ok(()) => Finding::ok("TUN", "a device with whole packets (IFF_VNET_HDR) can be opened"),
        Err(error) => Finding::fail("TUN", error, "`modprobe tun`; in a container, pass it /dev/net/tun"),
    }));
    if let Some(rest) = &facts.rest {
        findings.push(match &rest.key {
            Ok(Some(public)) => Finding::ok("key", format!("{public}, readable by its owner only")),
            Ok(None) => Finding::ok("key", "not readable by this user, and so not read"),
            Err(error) => Finding::fail("key", error, "the relay does not start without its key"),
        });
        findings.push(port(rest));
        findings.extend(rest.network.as_ref().map(network));
        findings.extend(rest.forwarding.iter().map(|(family, on)| forwarding(rest, family, *on)));
        findings.extend(masquerading(rest));
        findings.extend(overlaps(rest));
        findings.push(if rest.has_reach {
            Finding::ok("reach", "[clients] reach says what clients reach")
        } else {
            let seen =
                "clients reach private networks, metadata services and whatever else this host reaches";
            let next = "set [clients] reach = \"internet\", or a list; \"all\" if that is what you mean";
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
            format!("a relay is running, and nobody listens on {listen}"),
            "restart the relay: its configuration was changed",
        ),
        (Ok(false), Port::Free) => {
            Finding::ok("port", format!("{listen} is free; `home-relay serve` listens there"))
        }
        (Ok(false), Port::InUse) => Finding::fail(
            "port",
            format!("another program listens on {listen}"),
            "stop it, or choose another port in [listen] address and in [relay] endpoint of every client",
        ),
        (Ok(false), Port::Unknown) => {
            Finding::ok("port", format!("{listen}: only root may listen there, and so look"))
        }
        (Ok(false), Port::Bad(error)) => Finding::fail(
            "port",
            format!("nobody can listen on {listen} here: {error}"),
            "name an address of this host in [listen] address, or [::] for all",
        ),
    }
}

/// What the running relay says of its device, addresses, forwarding and rules.
fn network(looked: &Result<Vec<String>, String>) -> Finding {
    match looked {
        Ok(restored) if restored.is_empty() => Finding::ok(
            "network",
            "device, addresses, forwarding and rules are as the running relay made them",
        ),
        Ok(restored) => Finding::warn(
            "network",
            format!(
                "somebody removed or changed, and the relay has put back just now: {}",
                restored.join(", ")
            ),
            "see who does it: a firewall that begins with `flush ruleset`, a network manager, sysctl.d",
        ),
        Err(error) => Finding::fail(
            "network",
            format!("the running relay cannot put back what somebody removed or changed: {error}"),
            "mend that, then `home-relay reload`; or restart the relay",
        ),
    }
}

fn forwarding(rest: &Rest, family: &str, on: Option<bool>) -> Finding {
    match on {
        None => Finding::ok("forwarding", format!("{family} is disabled on this host: clients go without")),
        Some(true) => Finding::ok("forwarding", format!("{family} packets are forwarded")),
        Some(false) if rest.running == Ok(true) => Finding::fail(
            "forwarding",
            format!("{family} forwarding is off, though the relay turned it on"),
            "see who turns it off (a firewall, sysctl.d), and restart the relay",
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
            format!("[nat] interface is {name}, and there is none: clients' packets leave with their own addresses"),
            "name the interface that leads to the Internet, or remove the line",
        ));
    }
    findings.extend(rest.nft.as_ref().map(|tried| match tried {
        Ok(()) => Finding::ok("nftables", "the kernel takes our rules"),
        Err(error) => Finding::fail(
            "nftables",
            error,
            "install nftables and a kernel with NAT; or, where the pools are routed here, [nat] masquerade = false",
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
            format!("{pool} overlaps with {net} on {device}: one of them cannot be reached from here"),
            "choose another [pool]; clients get new addresses then",
        ),
        None => Finding::ok("pool", format!("{pool} is no network of this host")),
    };
    rest.pools.iter().map(pool).collect()
}

/// Its rules may let our packets pass all the same: that is not looked at.
fn dropping(rest: &Rest, chain: &str) -> Finding {
    let device = &rest.device;
    Finding::warn(
        "firewall",
        format!(
            "the chain `{chain}` of another firewall drops what it forwards unless a rule of it says otherwise"
        ),
        format!(
            "unless it lets {device} pass: `nft insert rule {chain} iifname {device} accept` and `nft insert rule \
             {chain} oifname {device} accept`, or what that firewall's own tool says for it"
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
