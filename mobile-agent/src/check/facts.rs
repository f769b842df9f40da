//! The facts that `mobile check` judges, read from the kernel, files and the network.
//!
//! A fact that only root may see is `None` for other users.

mod network;
mod platform;
mod start;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mobile_transport::keys::PublicKey;

use self::network::Assigned;
pub(super) use self::network::Links;
pub(super) use self::platform::{Bpffs, Platform};
pub(super) use self::start::{Occupied, StartFacts};
use super::fact_error::FactError;
use super::reach::{self, Outcome};
use crate::config::{Config, DEFAULT_PATH, RelayIdentity, Routing, load_key};
use crate::footprint;
use crate::routing::networks;
use crate::selection::deadline;
use crate::status::Status;
use crate::tunnel::known_relay::KnownRelay;
use crate::uplinks::links::RouteTargets;
use crate::uplinks::policy::{Families, Uplink};

/// The status of the running agent, or the reason why the agent did not report it; `None` if no
/// agent runs.
pub(crate) type AgentStatus = Result<Option<Box<Status>>, FactError>;

/// The facts about this host that `mobile check` judges.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whether root runs the check.
    pub(super) root: bool,
    /// The kernel, and the kernel objects that the agent needs.
    pub(super) platform: Platform,
    /// The configuration file.
    pub(super) config: ConfigFile,
    /// The section `[routing]`, or its defaults if the configuration is invalid.
    pub(super) routing: Routing,
    /// The relay's endpoint and key, or the reason why they are unknown.
    pub(super) relay: Result<RelayIdentity, FactError>,
    /// The public key of this host, or the reason why it cannot be read; `None` if the key file
    /// exists and this user may not read it.
    pub(super) key: Result<Option<PublicKey>, FactError>,
    /// The status of the running agent, or the reason why the agent did not report it; `None` if no
    /// agent runs.
    pub(super) agent: AgentStatus,
    /// The addresses that the relay's name resolves to, or the error; `None` if the relay is
    /// unknown.
    pub(super) resolved: Option<Result<Vec<SocketAddr>, FactError>>,
    /// The network devices and routing rules of this host, or the error of netlink.
    pub(super) links: Result<Links, FactError>,
    /// The name of each usable uplink, with the result of an attempt to reach the relay over it;
    /// `None` if no attempt was possible.
    pub(super) reached: Option<Vec<(String, Outcome)>>,
    /// Whether new connections of mobile processes use the ordinary route because there is no
    /// session; `None` without loaded eBPF programs, or if this user may not see them.
    pub(super) open: Option<bool>,
    /// The resolvers that `/etc/resolv.conf` names.
    pub(super) resolvers: Vec<IpAddr>,
}

/// The state of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ConfigFile {
    /// The file at this path was read.
    Read(PathBuf),
    /// The default file does not exist, and no environment variable names a relay.
    NotEnrolled,
    /// The file at this path exists, but the user of the check may not read it.
    NotAllowed(PathBuf),
    /// The file cannot be used; the text is the error.
    Invalid(String),
}

/// Gathers the facts about this host; `path` is the configuration file, or the default one if
/// `None`. `ask_agent` returns the status of the agent with a configuration.
pub(super) async fn gather(path: Option<&Path>, ask_agent: impl FnOnce(&Config) -> AgentStatus) -> Facts {
    let root = nix::unistd::geteuid().is_root();
    let (mut config, mut relay, config_file) = load_config(path);
    let mut platform = Platform::gather(&config, path, root);
    // The status of another configuration's agent would say nothing about this one.
    let agent = if platform.shares_socket() { Ok(None) } else { ask_agent(&config) };
    if let (ConfigFile::NotAllowed(_), Ok(Some(status))) = (&config_file, &agent) {
        config.routing.on_failure = status.on_failure;
        relay = relay_of(status);
    }
    let known = relay.as_mut().ok().map(|relay| {
        let known = KnownRelay::load(&config.state.dir, relay);
        // The endpoint that the agent tries first is the one to check.
        relay.endpoint = known.endpoints().next().unwrap_or_default().to_owned();
        known
    });
    let resolved = match &relay {
        Ok(relay) => Some(reach::resolve(&relay.endpoint).await.map_err(|error| FactError::of(&error))),
        Err(_) => None,
    };
    let families = families(resolved.as_ref());
    let assigned = match (&agent, &relay) {
        (Ok(Some(status)), _) => {
            Assigned { persistent: status.addresses.clone(), refused: status.refused.clone() }
        }
        // An ordinary user may not read the cached assignment.
        (_, Ok(relay)) if root => network::cached_assignment(&config, relay, resolved.as_ref()).await,
        _ => Assigned::default(),
    };
    let relay_addresses = match &resolved {
        Some(Ok(addresses)) => RouteTargets::new(addresses),
        _ => RouteTargets::new(&[]),
    };
    let links = network::links(&config, families, assigned, &relay_addresses).await;
    let key = key(&config.identity.private_key_file, root);
    let reached = match (&links, &known, load_key(&config.identity.private_key_file)) {
        (Ok(links), Some(relay), Ok(key)) if matches!(resolved, Some(Ok(_))) => {
            let usable: Vec<&Uplink> = links.usable().collect();
            Some(reach::over_each(&usable, families, relay, &key).await)
        }
        _ => None,
    };
    // An ordinary user may not bind the sockets that root may bind, and a running agent has them.
    if root && matches!(agent, Ok(None)) {
        platform.control = start::control(&config);
        platform.metrics = start::metrics(&config);
    }
    Facts {
        root,
        platform,
        config: config_file,
        routing: config.routing.clone(),
        relay,
        key,
        agent,
        resolved,
        links,
        reached,
        open: deadline::has_passed(&config.bpf.pin_dir),
        resolvers: networks::resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
    }
}

/// Loads the configuration, or the defaults in its place. Returns the configuration with the
/// identity of the relay and the state of the file.
fn load_config(path: Option<&Path>) -> (Config, Result<RelayIdentity, FactError>, ConfigFile) {
    let loaded = Config::load(path);
    let file = path.unwrap_or(Path::new(DEFAULT_PATH)).to_owned();
    let opened = std::fs::File::open(&file).map_err(|error| error.kind());
    let (config, relay) = match &loaded {
        Ok(config) => (config.clone(), config.relay_identity().map_err(|error| FactError::of(&error))),
        Err(_) => {
            let client = footprint::for_client(path);
            let config = client.unwrap_or_else(|_| Config::without_file(&file));
            (config, Err("the configuration cannot be read".into()))
        }
    };
    let config_file = match (loaded, opened) {
        (Ok(_), Err(ErrorKind::NotFound)) if relay.is_err() => ConfigFile::NotEnrolled,
        (Ok(_), _) => ConfigFile::Read(file),
        (Err(_), Err(ErrorKind::PermissionDenied)) => ConfigFile::NotAllowed(file),
        (Err(error), _) => ConfigFile::Invalid(mobile_host::error_chain(&error)),
    };
    (config, relay, config_file)
}

/// Returns the identity of the relay as the running agent reports it.
fn relay_of(status: &Status) -> Result<RelayIdentity, FactError> {
    let public_key = status.relay.public_key.parse().map_err(|error| FactError::of(&error))?;
    Ok(RelayIdentity { endpoint: status.relay.endpoint.clone(), public_key })
}

fn families(resolved: Option<&Result<Vec<SocketAddr>, FactError>>) -> Families {
    match resolved {
        Some(Ok(addresses)) => Families {
            ipv4: addresses.iter().any(SocketAddr::is_ipv4),
            ipv6: addresses.iter().any(SocketAddr::is_ipv6),
        },
        // The relay's addresses are not known: accept both families.
        _ => Families { ipv4: true, ipv6: true },
    }
}

fn key(path: &Path, root: bool) -> Result<Option<PublicKey>, FactError> {
    match load_key(path) {
        Ok(key) => Ok(Some(key.public())),
        // Check the permissions only: other users must not be able to read the file.
        Err(_) if !root => match std::fs::metadata(path) {
            Ok(file) if file.permissions().mode() & 0o077 == 0 => Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
            _ => Err(key_error(load_key(path).err())),
        },
        Err(error) => Err(key_error(Some(error))),
    }
}

fn key_error(error: Option<mobile_transport::keys::KeyError>) -> FactError {
    let error = error.map(|error| mobile_host::error_chain(&error.into())).unwrap_or_default();
    format!("[identity] private_key_file: {error}").into()
}

#[cfg(test)]
mod tests {
    use mobile_transport::keys::PrivateKey;

    use super::*;

    #[test]
    fn a_key_that_other_users_can_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(key(&path, true).unwrap_err().as_str().contains("mobile keygen"));
        PrivateKey::generate().unwrap().save_new(&path).unwrap();
        assert!(key(&path, true).unwrap().is_some());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        for root in [true, false] {
            assert!(key(&path, root).unwrap_err().as_str().contains("chmod 600"));
        }
    }
}
