//! Gathers the facts that the `check` command judges, from files and the kernel. Facts that only
//! root may read are `None` for other users.

use std::fmt::Display;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use mobile_host::control::{Client as ControlClient, ControlError, Listener};
use mobile_transport::keys::{KeyError, PublicKey};
use mobile_transport::tun;
use thiserror::Error;

pub(super) use self::host::{HostFacts, InterfaceState, LocalNetwork, dropping_chains};
use crate::admin::{self, AdminReply, ConnectError, Request};
use crate::config::{Config, Identity};
use crate::network::nft;
use crate::network::ruleset::Ruleset;
use crate::store::Store;

mod host;

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
    /// The setting `[metrics] listen`, and whether its port is free; `None` if it is not set.
    pub(super) metrics: Option<(SocketAddr, PortState)>,
    /// Whether a relay with this configuration is running, or why this cannot be determined.
    pub(super) running: Result<bool, Failure>,
    /// Why the admin socket or the client store cannot be opened, each after its topic; empty if a
    /// relay is running, which has opened them, or if this user may not try.
    pub(super) files: Vec<(&'static str, Failure)>,
    /// The parts of the kernel's network state that the running relay has just restored, by name,
    /// or why it could not restore them; `None` if no relay is running.
    pub(super) network: Option<Result<Vec<String>, Failure>>,
    /// Whether the kernel accepts the relay's nftables rules, or the error; `None` if the
    /// configuration needs no rules or this user may not try.
    pub(super) nft: Option<Result<(), Failure>>,
    /// The facts about this host's network.
    pub(super) host: HostFacts,
}

/// The reason why a fact is unknown, or why something that the relay needs does not work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Failure {
    /// The running relay does not understand the request.
    #[error("the running relay is another version: restart it after an upgrade")]
    OtherVersion,
    /// The check lacks a permission that it, or the relay, needs; the text names the permission.
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
    let root = is_privileged();
    let (config, configured) = match Config::load(path) {
        Ok(config) => (Ok(path.to_owned()), Some(gather_configured(&config, root).await)),
        Err(error) => (Err(Failure::Other(format!("{error:#}"))), None),
    };
    Facts { root, config, configured, tun: root.then(|| tun::try_open().map_err(Failure::of)) }
}

async fn gather_configured(config: &Config, root: bool) -> ConfiguredFacts {
    // Reconcile first, so that the other facts describe the restored state.
    let (running, network) = match admin::connect(&config.admin.socket, &config.file) {
        Ok(Some(relay)) => (Ok(true), Some(reconcile(relay))),
        Ok(None) => (Ok(false), None),
        Err(error @ ConnectError::Control(ControlError::NotAllowed { .. })) => {
            (Err(Failure::NotAllowed(error.to_string())), None)
        }
        Err(error) => (Err(Failure::of(error)), None),
    };
    let files = if root && running == Ok(false) { files(config) } else { Vec::new() };
    let ruleset = config.pools().map(|pools| Ruleset::of(config, &pools, Vec::new(), Vec::new()));
    let nft = ruleset.ok().filter(|ruleset| root && ruleset.is_required()).map(|ruleset| {
        // The words with which `serve` refuses.
        let checked = ruleset.check_rules().context(nft::HINT);
        checked.map_err(|error| Failure::of_nftables(&error))
    });
    ConfiguredFacts { files, network, nft, ..gather_for_start(config, root, running).await }
}

/// Gathers the facts that decide whether a relay can start, except for those that the start itself
/// finds out without a trace: the client store, the TUN device and nftables.
pub(super) async fn gather_for_start(
    config: &Config,
    root: bool,
    running: Result<bool, Failure>,
) -> ConfiguredFacts {
    let dropping = if root { dropping_chains() } else { Vec::new() };
    ConfiguredFacts {
        key: key(&config.identity, root),
        listen: config.listen.address,
        port: port(config.listen.address),
        metrics: config.metrics.listen.map(|address| (address, port(address))),
        running,
        files: Vec::new(),
        network: None,
        nft: None,
        host: HostFacts::gather(config, &config.tunnel.device, dropping).await,
    }
}

/// Returns whether this process may change the network, as root may.
pub(super) fn is_privileged() -> bool {
    /// The number of the capability (capabilities(7)).
    const CAP_NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    is_root() || effective.is_some_and(|set| set >> CAP_NET_ADMIN & 1 == 1)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0)
}

/// Returns why the admin socket or the client store cannot be opened, each after its topic.
fn files(config: &Config) -> Vec<(&'static str, Failure)> {
    let socket = Listener::check(&config.admin.socket, config.admin.group.as_deref()).map_err(Failure::of);
    let store = Store::check(&config.state.dir).map_err(Failure::of);
    let failed = |topic, checked: Result<(), Failure>| Some((topic, checked.err()?));
    failed("socket", socket).into_iter().chain(failed("store", store)).collect()
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
        Err(error) => {
            let error = anyhow::Error::new(error).context("[identity] private_key_file");
            Err(Failure::Other(format!("{error:#}")))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
