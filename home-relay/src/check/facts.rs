//! What is: read from files and the kernel. What only root may see is `None` for others.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use mobile_io::control::{Client as ControlClient, ControlError};
use mobile_io::keys::{KeyError, PrivateKey, PublicKey};
use mobile_io::netlink::Netlink;
use mobile_io::{isolation, sysctl};

use crate::admin::{Answer, Request};
use crate::config::Config;
use crate::network::nft;

/// Everything that is looked at.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whether root looks.
    pub(super) root: bool,
    /// The configuration's file, or what is wrong with it.
    pub(super) config: Result<PathBuf, String>,
    /// What was looked at in the light of it.
    pub(super) rest: Option<Rest>,
    /// Whether a TUN can be opened.
    pub(super) tun: Option<Result<(), String>>,
}

/// What depends on the configuration.
#[derive(Debug)]
pub(super) struct Rest {
    /// This relay's public key; `None`: a key that this user may not read, as it should be.
    pub(super) key: Result<Option<PublicKey>, String>,
    /// `[listen] address`.
    pub(super) listen: SocketAddr,
    /// Who has it.
    pub(super) port: Port,
    /// Whether a relay of this configuration is running.
    pub(super) running: Result<bool, String>,
    /// What the running relay found changed by others, and has put back, or could not; `None`: none is running.
    pub(super) network: Option<Result<Vec<String>, String>>,
    /// For each family with a pool: whether this host forwards; `None`: it does not have the family.
    pub(super) forwarding: Vec<(&'static str, Option<bool>)>,
    /// Whether our rules could be put into the kernel; `None`: not wanted, or not looked at.
    pub(super) nft: Option<Result<(), String>>,
    /// Chains of others that forward nothing unless a rule of theirs allows it.
    pub(super) dropping: Vec<String>,
    /// Whether `[clients] reach` is set.
    pub(super) has_reach: bool,
    /// `[tunnel] device`.
    pub(super) device: String,
    /// `[nat] interface`, and whether there is one.
    pub(super) interface: Option<(String, bool)>,
    /// The pools.
    pub(super) pools: Vec<IpNet>,
    /// The networks of other devices.
    pub(super) local: Result<Vec<(String, IpNet)>, String>,
}

/// Who has the port.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// Nobody.
    Free,
    /// Somebody.
    InUse,
    /// This user may not know.
    Unknown,
    /// It cannot be listened on.
    Bad(String),
}

/// Looks.
pub(super) async fn gather(path: &Path) -> Facts {
    // Who may make devices is root; the relay asks for no less.
    let root = std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
    let (config, rest) = match Config::load(path) {
        Ok(config) => (Ok(path.to_owned()), Some(rest(&config, root).await)),
        Err(error) => (Err(format!("{error:#}")), None),
    };
    Facts { root, config, rest, tun: root.then(isolation::try_tun) }
}

async fn rest(config: &Config, root: bool) -> Rest {
    // Before anything else: what it puts back is seen as it is then.
    let (running, network) = match ControlClient::connect(&config.admin.socket) {
        Ok(relay) => (Ok(true), Some(look(relay))),
        Err(ControlError::NotRunning { .. }) => (Ok(false), None),
        Err(error) => (Err(error.to_string()), None),
    };
    let pools: Vec<IpNet> = config.pools().map(|pools| pools.networks().collect()).unwrap_or_default();
    let (links, local) = match links(&config.tunnel.device).await {
        Ok((links, local)) => (links, Ok(local)),
        Err(error) => (Vec::new(), Err(error)),
    };
    let ruleset = config.pools().map(|pools| nft::Ruleset::of(config, &pools, Vec::new(), Vec::new()));
    let forwarding = pools.iter().map(|pool| match pool {
        IpNet::V4(_) => ("IPv4", setting("net/ipv4/ip_forward")),
        IpNet::V6(_) => {
            ("IPv6", if crate::network::has_ipv6() { setting("net/ipv6/conf/all/forwarding") } else { None })
        }
    });
    Rest {
        key: key(&config.identity.private_key_file, root),
        listen: config.listen.address,
        port: port(config.listen.address),
        running,
        network,
        forwarding: forwarding.collect(),
        nft: ruleset
            .ok()
            .filter(|ruleset| root && ruleset.is_needed())
            .map(|ruleset| ruleset.try_out().map_err(|error| format!("{error:#}"))),
        dropping: if root {
            nft::list_chains().map(|json| dropping(&json)).unwrap_or_default()
        } else {
            Vec::new()
        },
        has_reach: config.clients.reach.is_some(),
        device: config.tunnel.device.clone(),
        interface: config.nat.interface.clone().map(|name| {
            let there = links.contains(&name);
            (name, there)
        }),
        pools,
        local,
    }
}

/// Only the relay knows what it made, and of which configuration.
fn look(mut relay: ControlClient) -> Result<Vec<String>, String> {
    match relay.call(&Request::Look) {
        Ok(Answer::Looked(restored)) => Ok(restored),
        Ok(Answer::Error(error)) => Err(error),
        Ok(_) => Err("the running relay is of another version: restart it after an upgrade".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn key(path: &Path, root: bool) -> Result<Option<PublicKey>, String> {
    match PrivateKey::load(path) {
        Ok(key) => Ok(Some(key.public())),
        Err(KeyError::Io { source, .. }) if !root && source.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(format!("{:#}", anyhow::Error::new(error))),
    }
}

fn port(address: SocketAddr) -> Port {
    match TcpListener::bind(address) {
        Ok(_) => Port::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => Port::InUse,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Port::Unknown,
        Err(error) => Port::Bad(error.to_string()),
    }
}

fn setting(name: &str) -> Option<bool> {
    Some(sysctl::read(name).ok()? == "1")
}

/// The names of all devices, and the networks of those that are not ours.
async fn links(own: &str) -> Result<(Vec<String>, Vec<(String, IpNet)>), String> {
    let netlink = Netlink::new().map_err(|error| error.to_string())?;
    let snapshot = netlink.snapshot().await.map_err(|error| error.to_string())?;
    let name = |index| snapshot.links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let networks = snapshot.addresses.iter().filter(|address| address.global);
    let networks = networks.filter_map(|address| Some((name(address.index)?, address.net.trunc())));
    let networks = networks.filter(|(device, _)| device != own).collect();
    Ok((snapshot.links.iter().map(|link| link.name.clone()).collect(), networks))
}

/// The chains, of all tables but ours, that drop what they forward unless a rule says otherwise.
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
    fn forward_chains_that_drop_are_found_among_all() {
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
    fn a_port_that_somebody_has_is_told_from_a_free_one() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        assert_eq!(port(address), Port::InUse);
        drop(holder);
        assert_eq!(port(address), Port::Free);
        // An address of nobody here.
        assert!(matches!(port("192.0.2.77:4433".parse().unwrap()), Port::Bad(_)));
    }
}
