//! The state of a relay, as `home-relay status` shows it.
//!
//! [`RelayStatus`] comes from the running relay, or in part from its files while it does not run: a
//! field is `None` where the value does not exist or is not known.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use mobile_transport::keys::PublicKey;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::pool::Pools;
use crate::store::{Store, StoreError};

/// The state of a relay.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RelayStatus {
    #[serde(flatten)]
    pub(crate) process: Process,
    #[serde(flatten)]
    pub(crate) setup: Setup,
    #[serde(flatten)]
    pub(crate) activity: Activity,
}

/// The process of a running relay.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) version: Option<String>,
    pub(crate) pid: Option<u32>,
    /// The time at which the relay started, in seconds since 1970.
    pub(crate) started: Option<u64>,
    /// The time of the last successful reload, in seconds since 1970.
    pub(crate) reloaded: Option<u64>,
}

/// The relay's settings, and the number of rows in its store.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) listen: Option<SocketAddr>,
    /// The `host:port` that invitations name.
    pub(crate) endpoint: Option<String>,
    pub(crate) public_key: Option<PublicKey>,
    pub(crate) device: Option<String>,
    /// The addresses of the device.
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) pools: Vec<PoolUsage>,
    pub(crate) clients: Option<usize>,
    /// The number of redeemable invitations.
    pub(crate) invitations: Option<usize>,
    pub(crate) forwards: Option<usize>,
}

/// The addresses of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolUsage {
    pub(crate) network: IpNet,
    /// The number of addresses that clients hold or that are set aside for invitations; `None` if
    /// the store cannot be read.
    pub(crate) used: Option<u64>,
    /// The number of further clients that fit; at most 2^64 - 1.
    pub(crate) free: Option<u64>,
}

/// What a running relay does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Activity {
    pub(crate) sessions: Option<usize>,
    /// The number of sessions with a path.
    pub(crate) connected: Option<usize>,
    pub(crate) traffic: Option<Traffic>,
    /// The dropped packets by reason.
    pub(crate) drops: Option<BTreeMap<String, u64>>,
}

/// The forwarded packets since the relay started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    pub(crate) from_clients_packets: u64,
    pub(crate) from_clients_bytes: u64,
    pub(crate) to_clients_packets: u64,
    pub(crate) to_clients_bytes: u64,
}

impl Traffic {
    /// Creates the counts from the packets and bytes of each direction.
    pub(crate) fn of(from_clients: (u64, u64), to_clients: (u64, u64)) -> Self {
        Self {
            from_clients_packets: from_clients.0,
            from_clients_bytes: from_clients.1,
            to_clients_packets: to_clients.0,
            to_clients_bytes: to_clients.1,
        }
    }
}

impl Setup {
    /// Returns the settings of `config`, without the store.
    pub(crate) fn of(config: &Config, public_key: Option<PublicKey>) -> Self {
        let pools = config.pools().ok();
        let usage = |network| PoolUsage { network, used: None, free: None };
        Self {
            listen: Some(config.listen.address),
            endpoint: config.listen.endpoint(),
            public_key,
            device: Some(config.tunnel.device.clone()),
            addresses: pools.iter().flat_map(Pools::own_addresses).collect(),
            pools: pools.iter().flat_map(Pools::networks).map(usage).collect(),
            ..Self::default()
        }
    }

    /// Adds the numbers of rows in the store, and of used and free addresses.
    pub(crate) fn add_store(&mut self, store: &Store, now: u64) -> Result<(), StoreError> {
        let entries = store.entries(now)?;
        let clients = entries.iter().filter(|entry| entry.public_key.is_some()).count();
        self.clients = Some(clients);
        self.invitations = Some(entries.len() - clients);
        self.forwards = Some(store.forwards()?.len());
        for pool in &mut self.pools {
            let held = entries.iter().flat_map(|entry| entry.lease.addresses());
            let used = held.filter(|address| pool.network.contains(address)).count() as u64;
            pool.used = Some(used);
            let free = Pools::capacity(pool.network).saturating_sub(used.into());
            pool.free = Some(u64::try_from(free).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Adds what an empty store has.
    pub(crate) fn add_empty_store(&mut self) {
        (self.clients, self.invitations, self.forwards) = (Some(0), Some(0), Some(0));
        for pool in &mut self.pools {
            pool.used = Some(0);
            pool.free = Some(u64::try_from(Pools::capacity(pool.network)).unwrap_or(u64::MAX));
        }
    }
}
