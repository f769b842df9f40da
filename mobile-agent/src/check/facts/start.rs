//! The facts that decide whether an agent can start, as far as they can be found out without
//! creating anything.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use mobile_host::control::Listener;
use mobile_netlink::NetlinkError;
use mobile_transport::keys::PublicKey;

use super::network::{self, Links};
use super::{ConfigFile, FactError, Platform};
use crate::config::{Config, RelayIdentity, Routing};

/// The facts that decide whether an agent can start.
#[derive(Debug)]
pub(in crate::check) struct StartFacts {
    /// The configuration file.
    pub(in crate::check) config: ConfigFile,
    /// The section `[routing]`.
    pub(in crate::check) routing: Routing,
    /// The relay's endpoint and key, or the reason why they are unknown.
    pub(in crate::check) relay: Result<RelayIdentity, FactError>,
    /// The public key of this host, or the reason why it cannot be read.
    pub(in crate::check) key: Result<Option<PublicKey>, FactError>,
    /// The kernel, and the kernel objects that the agent needs.
    pub(in crate::check) platform: Platform,
    /// The routing rules, and the routes of other programs in the agent's table.
    pub(in crate::check) table: Result<Links, FactError>,
}

/// An address that the agent cannot listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::check) struct Occupied {
    /// The address.
    pub(in crate::check) address: SocketAddr,
    /// The error; `None` if another program uses the port.
    pub(in crate::check) error: Option<FactError>,
}

impl StartFacts {
    /// Gathers the facts for an agent that is not running.
    pub(in crate::check) async fn gather(config: &Config) -> Self {
        let relay = config.relay_identity().map_err(|error| FactError::of(&error));
        let file = config.file.clone();
        let table = network::table(config).await.map_err(|error: NetlinkError| FactError::of(&error));
        Self {
            config: match config.file.exists() {
                false if relay.is_err() => ConfigFile::NotEnrolled,
                _ => ConfigFile::Read(file),
            },
            routing: config.routing.clone(),
            relay,
            key: super::key(&config.identity.private_key_file, true),
            platform: Platform { metrics: metrics(config), ..Platform::observe(config) },
            table,
        }
    }
}

/// Returns the metrics address if the agent cannot listen there.
pub(super) fn metrics(config: &Config) -> Option<Occupied> {
    let address = config.metrics.listen?;
    let error = TcpListener::bind(address).err()?;
    let error = (error.kind() != ErrorKind::AddrInUse).then(|| FactError::of(&error));
    Some(Occupied { address, error })
}

/// Returns the reason why the control socket cannot be bound; `None` if it can be.
pub(super) fn control(config: &Config) -> Option<FactError> {
    let checked = Listener::check(&config.control.socket, config.control.group.as_deref());
    checked.err().map(|error| FactError::of(&error))
}
