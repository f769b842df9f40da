//! Gathers the facts that the `check` command judges, from files and the kernel. Facts that only
//! root may read are `None` for other users.

use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use mobile_host::control::{Client as ControlClient, ControlError};
use mobile_host::sysctl;
use mobile_netlink::{Netlink, NetlinkError};
use mobile_transport::keys::{KeyError, PublicKey};
use mobile_transport::tun;
use thiserror::Error;

use crate::admin::{AdminReply, Request};
use crate::config::{Config, Identity};
use crate::network::nft;
use crate::network::ruleset::Ruleset;
use crate::reach::Reach;

/// All facts that `check` judges, about this host and the configuration.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whether `check` runs as root.
    pub(super) root: bool,
    /// The path of the configuration file, or the reason why the file is invalid or cannot be read.
    pub(super) config: Result<PathBuf, Failure>,
    /// The facts that depend on a valid configuration; `None` if it is invalid.
    pub(super) configured: Option<ConfiguredFacts>,
    /// Whether a TUN device can be opened, or the error; `None` if `check` does not run as root.
    pub(super) tun: Option<Result<(), Failure>>,
}

/// The facts about this host that depend on a valid configuration.
#[derive(Debug)]
pub(super) struct ConfiguredFacts {
    /// The relay's public key; `None` if this user, rightly, may not read the private key.
    pub(super) key: Result<Option<PublicKey>, Failure>,
    /// The setting `[listen] address`.
    pub(super) listen: SocketAddr,
    /// Whether the port of `[listen] address` is free.
    pub(super) port: PortState,
    /// Whether a relay with this configuration is running, or why this cannot be determined.
    pub(super) running: Result<bool, Failure>,
    /// The parts of the kernel's network state that the running relay has just restored, by name,
    /// or why it could not restore them; `None` if no relay is running.
    pub(super) network: Option<Result<Vec<String>, Failure>>,
    /// The address families with a pool, each with whether this host forwards its packets, or
    /// `None` if the host does not have the family.
    pub(super) forwarding: Vec<(&'static str, Option<bool>)>,
    /// Whether the kernel accepts the relay's nftables rules, or the error; `None` if the
    /// configuration needs no rules or this user may not try.
    pub(super) nft: Option<Result<(), Failure>>,
    /// The nftables chains of other programs that drop forwarded packets by default.
    pub(super) dropping: Vec<String>,
    /// The setting `[clients] reach`; `None` if it is not set.
    pub(super) reach: Option<Reach>,
    /// The setting `[tunnel] device`.
    pub(super) device: String,
    /// The setting `[nat] interface`, and whether the interface exists; `None` if it is not set.
    pub(super) interface: Option<(String, bool)>,
    /// The pools, and the networks that they must not overlap with.
    pub(super) pools: PoolFacts,
}

/// The facts about the address pools.
#[derive(Debug)]
pub(super) struct PoolFacts {
    /// The configured address pools.
    pub(super) pools: Vec<IpNet>,
    /// The networks of this host's devices other than the relay's, each with the device's name.
    pub(super) local: Result<Vec<(String, IpNet)>, Failure>,
}

/// The reason why a fact is unknown, or why something that the relay needs does not work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Failure {
    /// The running relay does not understand the request.
    #[error("the running relay is another version: restart it after an upgrade")]
    OtherVersion,
    /// The kernel does not let this process change nftables; the text says why.
    #[error("{0}")]
    NotAllowed(String),
    /// Another failure, with the text of its error.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn of(error: impl Display) -> Self {
        Self::Other(error.to_string())
    }

    fn of_nftables(error: &anyhow::Error) -> Self {
        let text = format!("{error:#}");
        if nft::is_forbidden(error) { Self::NotAllowed(text) } else { Self::Other(text) }
    }
}

/// Whether the port of `[listen] address` is free for the relay.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PortState {
    /// No program listens on the port.
    Free,
    /// A program listens on the port.
    InUse,
    /// Unknown, because this user has no permission to bind the port.
    Unknown,
    /// The address cannot be listened on; holds the error.
    Bad(String),
}

/// Gathers all facts for the configuration at `path`.
pub(super) async fn gather(path: &Path) -> Facts {
    // Creating devices takes root, as for the relay.
    let root = std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    let (config, configured) = match Config::load(path) {
        Ok(config) => (Ok(path.to_owned()), Some(gather_configured(&config, root).await)),
        Err(error) => (Err(Failure::Other(format!("{error:#}"))), None),
    };
    Facts { root, config, configured, tun: root.then(|| tun::try_open().map_err(Failure::of)) }
}

async fn gather_configured(config: &Config, root: bool) -> ConfiguredFacts {
    // Reconcile first, so that the other facts describe the restored state.
    let (running, network) = match ControlClient::connect(&config.admin.socket) {
        Ok(relay) => (Ok(true), Some(reconcile(relay))),
        Err(ControlError::NotRunning { .. }) => (Ok(false), None),
        Err(error) => (Err(Failure::of(error)), None),
    };
    let pools: Vec<IpNet> = config.pools().map(|pools| pools.networks().collect()).unwrap_or_default();
    let (links, local) = match links(&config.tunnel.device).await {
        Ok((links, local)) => (links, Ok(local)),
        Err(error) => (Vec::new(), Err(Failure::of(error))),
    };
    let ruleset = config.pools().map(|pools| Ruleset::of(config, &pools, Vec::new(), Vec::new()));
    let forwarding = pools.iter().map(|pool| match pool {
        IpNet::V4(_) => ("IPv4", setting("net/ipv4/ip_forward")),
        IpNet::V6(_) => {
            ("IPv6", if crate::network::has_ipv6() { setting("net/ipv6/conf/all/forwarding") } else { None })
        }
    });
    ConfiguredFacts {
        key: key(&config.identity, root),
        listen: config.listen.address,
        port: port(config.listen.address),
        running,
        network,
        forwarding: forwarding.collect(),
        nft: ruleset
            .ok()
            .filter(|ruleset| root && ruleset.is_required())
            .map(|ruleset| ruleset.check_rules().map_err(|error| Failure::of_nftables(&error))),
        dropping: if root {
            nft::list_chains().map(|json| dropping(&json)).unwrap_or_default()
        } else {
            Vec::new()
        },
        reach: config.clients.reach.clone(),
        device: config.tunnel.device.clone(),
        interface: config.nat.interface.clone().map(|name| {
            let exists = links.contains(&name);
            (name, exists)
        }),
        pools: PoolFacts { pools, local },
    }
}

/// Asks the running relay to check and restore its kernel state, and returns the names of what it
/// restored. Only the relay knows what it set up, and from which configuration.
fn reconcile(mut relay: ControlClient) -> Result<Vec<String>, Failure> {
    match relay.call(&Request::Reconcile) {
        Ok(AdminReply::Reconciled(restored)) => Ok(restored),
        Ok(AdminReply::Error(error)) => Err(Failure::Other(error)),
        Ok(_) => Err(Failure::OtherVersion),
        Err(error) => Err(Failure::of(error)),
    }
}

fn key(identity: &Identity, root: bool) -> Result<Option<PublicKey>, Failure> {
    match identity.load_key() {
        Ok(key) => Ok(Some(key.public())),
        Err(KeyError::Io { source, .. }) if !root && source.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(Failure::Other(format!("{:#}", anyhow::Error::new(error)))),
    }
}

fn port(address: SocketAddr) -> PortState {
    match TcpListener::bind(address) {
        Ok(_) => PortState::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => PortState::InUse,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => PortState::Unknown,
        Err(error) => PortState::Bad(error.to_string()),
    }
}

fn setting(name: &str) -> Option<bool> {
    Some(sysctl::read(name).ok()? == "1")
}

/// Returns the names of all network devices, and the networks of all devices but `own` (the
/// relay's), each with its device's name.
async fn links(own: &str) -> Result<(Vec<String>, Vec<(String, IpNet)>), NetlinkError> {
    let netlink = Netlink::new()?;
    let snapshot = netlink.snapshot().await?;
    let name = |index| snapshot.links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let networks = snapshot.addresses.iter().filter(|address| address.global);
    let networks = networks.filter_map(|address| Some((name(address.index)?, address.net.trunc())));
    let networks = networks.filter(|(device, _)| device != own).collect();
    Ok((snapshot.links.iter().map(|link| link.name.clone()).collect(), networks))
}

/// Returns the nftables chains of other programs at the forward hook that drop by default, each as
/// its family, table and name.
fn dropping(json: &serde_json::Value) -> Vec<String> {
    let chains = json["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("chain"));
    chains
        .filter(|chain| {
            let ours = chain["table"].as_str().is_some_and(|table| table.starts_with(nft::TABLE));
            chain["hook"] == "forward" && chain["policy"] == "drop" && !ours
        })
        .map(|chain| {
            let word = |key: &str| chain[key].as_str().unwrap_or("?");
            format!("{} {} {}", word("family"), word("table"), word("name"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_chains_that_drop_by_default_are_found() {
        let chain = |table: &str, name: &str, hook: &str, policy: &str| {
            serde_json::json!({"chain": {"family": "ip", "table": table, "name": name, "handle": 1, "type": "filter",
                "hook": hook, "prio": 0, "policy": policy}})
        };
        let json = serde_json::json!({"nftables": [
            {"metainfo": {"json_schema_version": 1}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 2}},
            chain("filter", "INPUT", "input", "drop"),
            chain("filter", "FORWARD", "forward", "drop"),
            chain("other", "FORWARD", "forward", "accept"),
            chain("home_relay", "forward", "forward", "drop"),
        ]});
        assert_eq!(dropping(&json), ["ip filter FORWARD"]);
        assert!(dropping(&serde_json::json!({})).is_empty());
    }

    #[test]
    fn a_port_in_use_is_distinguished_from_a_free_one() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        assert_eq!(port(address), PortState::InUse);
        drop(holder);
        assert_eq!(port(address), PortState::Free);
        // An address (TEST-NET-1) that this host does not have.
        assert!(matches!(port("192.0.2.77:4433".parse().unwrap()), PortState::Bad(_)));
    }
}
