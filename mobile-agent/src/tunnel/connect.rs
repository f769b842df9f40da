//! One attempt: resolve the relay's name, connect over one uplink, prove both keys.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use mobile_io::keys::{PrivateKey, PublicKey};
use mobile_io::tls::{self, TlsStream};
use mobile_io::transport::{self, TransportError};

use super::cause::Failure;
use crate::config::RelayIdentity;
use crate::uplinks::policy::Families;

/// The head start of each address of the relay before the next (RFC 8305 recommends 250 ms; here somebody waits).
const ADDRESS_STAGGER: Duration = Duration::from_millis(150);

/// More addresses than this are not tried: a name may have any number.
const MAX_ADDRESSES: usize = 6;

/// Knows how to reach the relay.
pub(crate) struct Dialer {
    endpoint: String,
    /// The addresses last found; a name is looked up again beside every attempt, but an attempt does not wait for it.
    known: Mutex<Vec<SocketAddr>>,
    literal: bool,
    tls: Arc<rustls::ClientConfig>,
    own_key: PublicKey,
}

/// TCP and TLS are up.
pub(crate) struct Connected {
    /// The transport.
    pub(crate) stream: TlsStream,
    /// Our end.
    pub(crate) local: SocketAddr,
    /// The relay's.
    pub(crate) remote: SocketAddr,
}

impl Dialer {
    /// Does not look the name up yet.
    pub(crate) fn new(relay: &RelayIdentity, key: &PrivateKey) -> Self {
        let literal = relay.endpoint.parse::<SocketAddr>().ok();
        Self {
            endpoint: relay.endpoint.clone(),
            known: Mutex::new(literal.into_iter().collect()),
            literal: literal.is_some(),
            tls: tls::client_config(key, relay.public_key),
            own_key: key.public(),
        }
    }

    /// This host's key.
    pub(crate) fn own_key(&self) -> &PublicKey {
        &self.own_key
    }

    /// The families in which the relay has an address; both while that is not known.
    pub(crate) fn families(&self) -> Families {
        let known = self.known();
        let any = known.is_empty();
        Families {
            ipv4: any || known.iter().any(SocketAddr::is_ipv4),
            ipv6: any || known.iter().any(SocketAddr::is_ipv6),
        }
    }

    /// Connects over `uplink` in the families it serves.
    pub(crate) async fn connect(
        self: Arc<Self>,
        uplink: String,
        serves: Families,
        patience: Duration,
    ) -> Result<Connected, Failure> {
        let addresses: Vec<SocketAddr> = self
            .addresses(patience)
            .await?
            .into_iter()
            .filter(|address| if address.is_ipv4() { serves.ipv4 } else { serves.ipv6 })
            .take(MAX_ADDRESSES)
            .collect();
        let mut races: FuturesUnordered<_> = addresses
            .iter()
            .zip(0u32..)
            .map(|(&address, turn)| {
                let uplink = uplink.as_str();
                async move {
                    tokio::time::sleep(ADDRESS_STAGGER * turn).await;
                    transport::connect(address, Some(uplink), patience).await.map(|tcp| (tcp, address))
                }
            })
            .collect();
        let mut failure =
            Failure::resolve(&self.endpoint, &format!("it has no address in a family that {uplink} serves"));
        while let Some(race) = races.next().await {
            match race {
                Ok((tcp, remote)) => {
                    // Known from the connected socket: the family and address the uplink gave it.
                    let local =
                        tcp.local_addr().map_err(|error| Failure::unreachable(&error.to_string(), false))?;
                    drop(races);
                    let stream = tls::connect(&self.tls, tcp, patience)
                        .await
                        .map_err(|cause| Failure::tls(&cause, &self.own_key))?;
                    return Ok(Connected { stream, local, remote });
                }
                Err(error) => {
                    let refused = matches!(&error, TransportError::Connect { source, .. }
                        if source.kind() == ErrorKind::ConnectionRefused);
                    failure = Failure::unreachable(&error.to_string(), refused);
                }
            }
        }
        Err(failure)
    }

    async fn addresses(self: &Arc<Self>, patience: Duration) -> Result<Vec<SocketAddr>, Failure> {
        let known = self.known();
        if self.literal {
            return Ok(known);
        }
        let lookup = tokio::spawn(Arc::clone(self).look_up(patience));
        if !known.is_empty() {
            return Ok(known);
        }
        lookup
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|error| Failure::resolve(&self.endpoint, &error))
    }

    async fn look_up(self: Arc<Self>, patience: Duration) -> Result<Vec<SocketAddr>, String> {
        let found: Vec<SocketAddr> = tokio::time::timeout(patience, tokio::net::lookup_host(&self.endpoint))
            .await
            .map_err(|_| "the resolver does not answer".to_owned())?
            .map_err(|error| error.to_string())?
            .collect();
        if found.is_empty() {
            return Err("it has no address".to_owned());
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&found);
        Ok(found)
    }

    fn known(&self) -> Vec<SocketAddr> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where a connection's local address matters, IPv4-mapped ones are IPv4.
pub(crate) fn local_ip(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}
