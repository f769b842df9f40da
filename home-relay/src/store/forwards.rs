//! Port forwards, stored with the client's name instead of its addresses, so that they follow
//! changes of the addresses and are removed with the client.

use std::fmt;

use redb::{ReadableDatabase as _, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::address_tables::AddressTables;
use super::schema::{FORWARDS, read_all, write};
use super::{Store, StoreError, database};

/// A port of the relay's host that is forwarded to a client, as `forward list --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forward {
    /// The protocol of the port.
    pub(crate) protocol: Protocol,
    /// The port of the relay's host.
    pub(crate) port: u16,
    /// The client's name.
    pub(crate) client: String,
    /// The client's port.
    pub(crate) to: u16,
}

/// The protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Returns the protocol's name, "tcp" or "udp", as users and nftables write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, port, client, to } = self;
        write!(f, "{protocol} port {port} leads to {client}:{to}")
    }
}

pub(super) fn key(protocol: Protocol, port: u16) -> String {
    format!("{protocol}/{port}")
}

impl Store {
    /// Returns all port forwards, sorted by protocol and port.
    pub(crate) fn forwards(&self) -> Result<Vec<Forward>, StoreError> {
        let transaction = self.database.begin_read().map_err(database)?;
        let mut all: Vec<Forward> = read_all(&transaction.open_table(FORWARDS).map_err(database)?)?;
        all.sort_by_key(|forward| (forward.protocol.name(), forward.port));
        Ok(all)
    }

    /// Adds a port forward to an existing client; adding the same one again changes nothing.
    pub(crate) fn forward(&self, forward: &Forward) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        {
            if AddressTables::open(&transaction)?.client(&forward.client).is_none() {
                return Err(StoreError::Unknown(forward.client.clone()));
            }
            let mut table = transaction.open_table(FORWARDS).map_err(database)?;
            let all: Vec<Forward> = read_all(&table)?;
            let same_port =
                |other: &&Forward| (other.protocol, other.port) == (forward.protocol, forward.port);
            match all.iter().find(same_port) {
                Some(same) if same == forward => return Ok(()),
                Some(other) => return Err(StoreError::PortTaken(other.clone())),
                None => write(&mut table, &key(forward.protocol, forward.port), forward)?,
            }
        }
        transaction.commit().map_err(database)
    }

    /// Removes a port forward and returns it.
    pub(crate) fn unforward(&self, protocol: Protocol, port: u16) -> Result<Forward, StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        let removed = {
            let mut table = transaction.open_table(FORWARDS).map_err(database)?;
            let all: Vec<Forward> = read_all(&table)?;
            table.remove(key(protocol, port).as_str()).map_err(database)?;
            all.into_iter().find(|forward| (forward.protocol, forward.port) == (protocol, port))
        };
        let removed = removed.ok_or(StoreError::NotForwarded { protocol, port })?;
        transaction.commit().map_err(database)?;
        Ok(removed)
    }
}

/// Removes all port forwards of a client.
pub(super) fn remove_for_client(transaction: &WriteTransaction, client: &str) -> Result<(), StoreError> {
    let mut table = transaction.open_table(FORWARDS).map_err(database)?;
    for forward in read_all::<Forward>(&table)?.iter().filter(|forward| forward.client == client) {
        table.remove(key(forward.protocol, forward.port).as_str()).map_err(database)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mobile_transport::keys::PublicKey;

    use super::*;
    use crate::pool::{Lease, Pools};

    #[test]
    fn a_forward_lasts_until_it_is_deleted_or_its_client_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let pools = Pools::new(Some("10.9.8.0/24".parse().unwrap()), None).unwrap();
        for (number, name) in [(1, "laptop"), (2, "desktop")] {
            store.authorize(name, &PublicKey::from_bytes([number; 32]), Lease::default(), &pools, 0).unwrap();
        }
        let forward =
            |protocol, port, client: &str| Forward { protocol, port, client: client.into(), to: 22 };
        let (ssh, dns) = (forward(Protocol::Tcp, 2222, "laptop"), forward(Protocol::Udp, 2222, "desktop"));
        store.forward(&ssh).unwrap();
        store.forward(&ssh).unwrap();
        store.forward(&dns).unwrap();
        let taken = store.forward(&forward(Protocol::Tcp, 2222, "desktop")).unwrap_err().to_string();
        assert!(taken.starts_with("tcp port 2222 leads to laptop:22: "), "{taken}");
        let unknown = store.forward(&forward(Protocol::Tcp, 2223, "phone"));
        assert!(matches!(unknown, Err(StoreError::Unknown(_))), "{unknown:?}");
        drop(store);

        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.forwards().unwrap(), [ssh, dns.clone()]);
        store.revoke("laptop", 0).unwrap();
        assert_eq!(store.forwards().unwrap(), std::slice::from_ref(&dns));
        assert_eq!(store.unforward(Protocol::Udp, 2222).unwrap(), dns);
        assert!(matches!(store.unforward(Protocol::Udp, 2222), Err(StoreError::NotForwarded { .. })));
        assert_eq!(store.forwards().unwrap(), []);
    }
}
