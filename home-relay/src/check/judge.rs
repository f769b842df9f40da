//! Turns the facts that `check` gathered into findings, each with its next step. Pure.

use std::net::SocketAddr;

use mobile_host::check::Finding;

use super::facts::{ConfiguredFacts, Facts, Failure, PortState};

pub(super) mod host;

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
    findings.extend(facts.configured.iter().flat_map(configured));
    findings
}

/// Returns the findings about this host that follow from a valid configuration.
pub(super) fn configured(configured: &ConfiguredFacts) -> Vec<Finding> {
    let mut findings = vec![match &configured.key {
        Ok(Some(public)) => Finding::ok("key", format!("{public}, readable by its owner only")),
        Ok(None) => Finding::skipped("key", "this user may not read it", "run `home-relay check` as root"),
        Err(error) => {
            let next_step = "restore the key or its permissions: the relay does not start without it";
            Finding::fail("key", error.to_string(), next_step)
        }
    }];
    findings.push(listen(configured));
    findings.extend(metrics(configured));
    findings.extend(configured.files.iter().map(|(topic, error)| {
        let next_step = "correct the path or its permissions: the relay does not start without it";
        Finding::fail(*topic, error.to_string(), next_step)
    }));
    findings.extend(configured.network.as_ref().map(network));
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
    findings.extend(host::judge(&configured.host, configured.running == Ok(true)));
    findings
}

fn listen(configured: &ConfiguredFacts) -> Finding {
    let listen = configured.listen;
    match (&configured.running, &configured.port) {
        (Err(error @ Failure::NotAllowed(_)), _) => {
            Finding::warn("port", error.to_string(), "run `home-relay check` as root")
        }
        (Err(error), _) => Finding::fail(
            "port",
            error.to_string(),
            "correct it as the message says: the relay needs its socket",
        ),
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
        (Ok(false), PortState::Unknown) => {
            Finding::ok("port", format!("{listen} was not checked: only root may listen there"))
        }
        (Ok(false), PortState::InUse) => in_use(
            "port",
            listen,
            "stop that program, or choose another port in [listen] address and in [relay] endpoint of every client",
        ),
        (Ok(false), PortState::Bad(error)) => Finding::fail(
            "port",
            format!("cannot listen on {listen}: {error}"),
            "set [listen] address to an address of this host, or to [::] for all",
        ),
    }
}

/// Judges whether the metrics can be served; `None` if they are off or the relay serves them.
fn metrics(configured: &ConfiguredFacts) -> Option<Finding> {
    let (address, port) = configured.metrics.as_ref()?;
    match port {
        PortState::InUse if configured.running == Ok(false) => {
            Some(in_use("metrics", *address, "stop that program, or choose another port in [metrics] listen"))
        }
        PortState::Bad(error) => Some(Finding::fail(
            "metrics",
            format!("cannot listen on {address}: {error}"),
            "set [metrics] listen to an address of this host",
        )),
        _ => None,
    }
}

fn in_use(topic: &str, address: SocketAddr, next_step: &str) -> Finding {
    Finding::fail(topic, format!("{address} is in use by another program"), next_step)
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use mobile_host::check::Level;
    use mobile_transport::keys::PublicKey;

    use super::super::facts::{HostFacts, InterfaceState, LocalNetwork};
    use super::*;

    fn healthy_host() -> ConfiguredFacts {
        ConfiguredFacts {
            key: Ok(Some(PublicKey::from_bytes([7; 32]))),
            listen: "[::]:443".parse().unwrap(),
            port: PortState::Free,
            metrics: Some(("127.0.0.1:9478".parse().unwrap(), PortState::Free)),
            running: Ok(false),
            files: Vec::new(),
            network: None,
            nft: Some(Ok(())),
            host: HostFacts {
                servable: Ok(()),
                forwarding: vec![("IPv4", Some(false)), ("IPv6", None)],
                dropping: Vec::new(),
                reach: Some("internet".parse().unwrap()),
                device: "home0".into(),
                other_kind: None,
                interface: Some(("eth0".into(), InterfaceState::Up)),
                pools: vec!["100.64.16.0/20".parse().unwrap()],
                local: Ok(vec![local("192.168.1.0/24", false), local("100.64.0.0/10", true)]),
            },
        }
    }

    fn local(net: &str, is_route: bool) -> LocalNetwork {
        LocalNetwork { device: "eth0".into(), net: net.parse().unwrap(), is_route }
    }

    fn on(change: impl FnOnce(&mut HostFacts)) -> ConfiguredFacts {
        let mut configured = healthy_host();
        change(&mut configured.host);
        configured
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
            metrics: Some(("127.0.0.1:9478".parse().unwrap(), PortState::InUse)),
            network: Some(Ok(Vec::new())),
            ..on(|host| host.forwarding = vec![("IPv4", Some(true))])
        };
        assert_eq!(faults(&facts(running)), []);
    }

    #[test]
    fn every_fault_has_a_finding_with_a_next_step() {
        fn error<T>() -> Result<T, Failure> {
            Err(Failure::Other("no such thing".into()))
        }
        let (fail, warn) = (Level::Fail, Level::Warn);
        let denied = Err(Failure::NotAllowed("not yours".into()));
        let running = |change: fn(&mut HostFacts)| ConfiguredFacts {
            running: Ok(true),
            port: PortState::InUse,
            ..on(change)
        };
        let metrics = |state| Some(("127.0.0.1:9478".parse().unwrap(), state));
        let bad = || PortState::Bad("no such address".into());
        for (configured, level, topic) in [
            (ConfiguredFacts { key: error(), ..healthy_host() }, fail, "key"),
            (ConfiguredFacts { port: PortState::InUse, ..healthy_host() }, fail, "port"),
            (
                ConfiguredFacts { port: PortState::Bad("no such address".into()), ..healthy_host() },
                fail,
                "port",
            ),
            (ConfiguredFacts { running: Ok(true), ..on(|host| host.forwarding = Vec::new()) }, fail, "port"),
            (ConfiguredFacts { running: error(), ..healthy_host() }, fail, "port"),
            (ConfiguredFacts { running: denied, ..healthy_host() }, warn, "port"),
            (ConfiguredFacts { metrics: metrics(PortState::InUse), ..healthy_host() }, fail, "metrics"),
            (ConfiguredFacts { metrics: metrics(bad()), ..healthy_host() }, fail, "metrics"),
            (
                ConfiguredFacts { files: vec![("store", error::<()>().unwrap_err())], ..healthy_host() },
                fail,
                "store",
            ),
            (running(|_| {}), fail, "forwarding"),
            (ConfiguredFacts { nft: Some(error()), ..healthy_host() }, fail, "nftables"),
            (ConfiguredFacts { network: Some(error()), ..healthy_host() }, fail, "network"),
            (
                ConfiguredFacts { network: Some(Ok(vec!["nftables table".into()])), ..healthy_host() },
                warn,
                "network",
            ),
            (on(|host| host.servable = error()), fail, "pool"),
            (on(|host| host.other_kind = Some("veth".into())), fail, "device"),
            (on(|host| host.interface = Some(("eth9".into(), InterfaceState::Missing))), fail, "nat"),
            (on(|host| host.interface = Some(("eth1".into(), InterfaceState::Down))), warn, "nat"),
            (on(|host| host.dropping = vec!["ip filter FORWARD".into()]), warn, "firewall"),
            (on(|host| host.reach = None), warn, "reach"),
            (on(|host| host.local = Ok(vec![local("100.64.0.0/10", false)])), fail, "pool"),
            (on(|host| host.local = Ok(vec![local("100.64.17.0/24", false)])), fail, "pool"),
            (on(|host| host.local = Ok(vec![local("100.64.17.0/24", true)])), fail, "pool"),
            (on(|host| host.local = error()), fail, "pool"),
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
