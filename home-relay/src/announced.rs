//! The state of a key rotation and of a move: what the relay announces, and which clients know it.

use mobile_transport::keys::{PublicKey, RelayKeys};
use serde::{Deserialize, Serialize};

use crate::store::{Client, Store, StoreError};

/// The relay's identity now and next, as `home-relay key` and `home-relay move` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdentityState {
    /// The public key that the relay proves.
    pub(crate) public_key: PublicKey,
    /// The public key that the relay announces as its next one; `None` without a rotation.
    pub(crate) next_public_key: Option<PublicKey>,
    /// The endpoint that the relay announces; `None` without a move.
    pub(crate) endpoint: Option<String>,
    /// Every client, by name.
    pub(crate) clients: Vec<InformedClient>,
}

/// A client, with the parts of the announcement that the client has confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InformedClient {
    /// The client's name.
    pub(crate) name: String,
    /// Whether the client knows the next key.
    pub(crate) knows_key: bool,
    /// Whether the client knows the announced endpoint.
    pub(crate) knows_endpoint: bool,
}

impl IdentityState {
    /// Reads the state of a relay with these keys from its store.
    pub(crate) fn read(store: &Store, keys: RelayKeys) -> Result<Self, StoreError> {
        let announced = store.announced()?;
        let clients = store.clients()?.into_iter().map(|Client { name, confirmed, .. }| InformedClient {
            name,
            knows_key: keys.next.is_some() && confirmed.key == keys.next,
            knows_endpoint: announced.endpoint().is_some() && confirmed.endpoint == announced.endpoint,
        });
        Ok(Self {
            public_key: keys.current,
            next_public_key: keys.next,
            endpoint: announced.endpoint().map(str::to_owned),
            clients: clients.collect(),
        })
    }
}
