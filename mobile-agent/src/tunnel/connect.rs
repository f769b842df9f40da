//! One attempt: resolve the relay's name, connect over one uplink, prove both keys.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FusedFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use mobile_io::keys::{PrivateKey, PublicKey};
use mobile_io::tls::{self, TlsStream};
use mobile_io::transport::{self, TransportError};
use tokio::sync::watch;

use super::cause::{Failure, Fault};
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
    addresses: watch::Sender<Vec<SocketAddr>>,
    literal: bool,
    tls: Arc<rustls::ClientConfig>,
    own_key: PublicKey,
}

/// TCP and TLS are up.
pub(crate) struct RelayConnection {
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
            addresses: watch::Sender::new(literal.into_iter().collect()),
            literal: literal.is_some(),
            tls: tls::client_config(key, relay.public_key),
            own_key: key.public(),
        }
    }

    /// Returns the addresses that the endpoint is known to have, updated as they are resolved.
    pub(crate) fn addresses(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.addresses.subscribe()
    }

    /// This host's key.
    pub(crate) fn own_key(&self) -> &PublicKey {
        &self.own_key
    }

    /// The families in which the relay has an address; both while that is not known.
    pub(crate) fn families(&self) -> Families {
        let known = self.known_addresses();
        let any = known.is_empty();
        Families {
            ipv4: any || known.iter().any(SocketAddr::is_ipv4),
            ipv6: any || known.iter().any(SocketAddr::is_ipv6),
        }
    }

    /// Connects over `uplink` in the families it families: to the addresses last found, and beside them to those that
    /// the name has by now. The first to prove that it is the relay is taken.
    pub(crate) async fn connect(
        self: Arc<Self>,
        uplink: String,
        families: Families,
        timeout: Duration,
    ) -> Result<RelayConnection, Failure> {
        let known = self.known_addresses();
        let lookup = (!self.literal).then(|| tokio::spawn(Arc::clone(&self).look_up(timeout)));
        let mut race = AddressRace { dialer: &self, uplink: &uplink, families, timeout, tried: Vec::new() };
        let mut runners: FuturesUnordered<_> = known.into_iter().filter_map(|it| race.start(it)).collect();
        let mut lookup = pin!(
            async {
                match lookup {
                    Some(lookup) => lookup.await.unwrap_or_else(|error| Err(error.to_string())),
                    None => Ok(Vec::new()),
                }
            }
            .fuse()
        );
        let mut failure =
            Failure::resolve(&self.endpoint, &format!("it has no address in a family that {uplink} serves"));
        loop {
            // A resolver that is slow to answer must not hold up the next attempt, which profits from what it says.
            if runners.is_empty() && !race.tried.is_empty() {
                return Err(failure);
            }
            let finished = tokio::select! {
                found = &mut lookup, if !lookup.is_terminated() => {
                    match found {
                        Ok(found) => runners.extend(found.into_iter().filter_map(|it| race.start(it))),
                        // The addresses known from before may do all the same.
                        Err(error) if race.tried.is_empty() => {
                            return Err(Failure::resolve(&self.endpoint, &error));
                        }
                        Err(error) => tracing::debug!(error, "the relay's name cannot be resolved now"),
                    }
                    continue;
                }
                Some(finished) = runners.next() => finished,
                else => return Err(failure),
            };
            match finished {
                Ok(connected) => return Ok(connected),
                // A key that is not accepted says more than an address that does not answer.
                Err(_) if failure.fault == Fault::Identity => {}
                Err(other) => failure = other,
            }
        }
    }

    /// TCP and TLS with one address.
    async fn connect_to(
        &self,
        address: SocketAddr,
        uplink: &str,
        timeout: Duration,
    ) -> Result<RelayConnection, Failure> {
        let tcp = transport::connect(address, Some(uplink), timeout).await.map_err(|error| {
            let refused = matches!(&error, TransportError::Connect { source, .. }
                if source.kind() == ErrorKind::ConnectionRefused);
            Failure::unreachable(&error.to_string(), refused)
        })?;
        // Known from the connected socket: the family and address the uplink gave it.
        let local = tcp.local_addr().map_err(|error| Failure::unreachable(&error.to_string(), false))?;
        let stream = tls::connect(&self.tls, tcp, timeout)
            .await
            .map_err(|cause| Failure::tls(&cause, &self.own_key))?;
        Ok(RelayConnection { stream, local, remote: address })
    }

    async fn look_up(self: Arc<Self>, timeout: Duration) -> Result<Vec<SocketAddr>, String> {
        let found: Vec<SocketAddr> = tokio::time::timeout(timeout, tokio::net::lookup_host(&self.endpoint))
            .await
            .map_err(|_| "the resolver does not answer".to_owned())?
            .map_err(|error| error.to_string())?
            .collect();
        if found.is_empty() {
            return Err("it has no address".to_owned());
        }
        self.addresses.send_if_modified(|known| {
            let new = *known != found;
            known.clone_from(&found);
            new
        });
        Ok(found)
    }

    fn known_addresses(&self) -> Vec<SocketAddr> {
        self.addresses.borrow().clone()
    }
}

/// The addresses of one attempt, each with a start of its own.
struct AddressRace<'a> {
    dialer: &'a Dialer,
    uplink: &'a str,
    families: Families,
    timeout: Duration,
    tried: Vec<SocketAddr>,
}

impl<'a> AddressRace<'a> {
    /// Starts with another address, after those before it; `None` if it is there already or cannot be reached.
    fn start(
        &mut self,
        address: SocketAddr,
    ) -> Option<impl Future<Output = Result<RelayConnection, Failure>> + use<'a>> {
        let Families { ipv4, ipv6 } = self.families;
        let served = if address.is_ipv4() { ipv4 } else { ipv6 };
        if !served || self.tried.contains(&address) || self.tried.len() == MAX_ADDRESSES {
            return None;
        }
        let turn = u32::try_from(self.tried.len()).unwrap_or(u32::MAX);
        self.tried.push(address);
        let (dialer, uplink, timeout) = (self.dialer, self.uplink, self.timeout);
        Some(async move {
            tokio::time::sleep(ADDRESS_STAGGER.saturating_mul(turn)).await;
            dialer.connect_to(address, uplink, timeout).await
        })
    }
}

/// Where a connection's local address matters, IPv4-mapped ones are IPv4.
pub(crate) fn local_ip(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}
