//! Connects to the relay over one uplink: resolves its name, tries its addresses, and establishes
//! TLS.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::FusedFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use mobile_transport::keys::{PrivateKey, PublicKey};
use mobile_transport::tls::{self, TlsStream};
use mobile_transport::transport::{self, TransportError};
use tokio::sync::watch;

use super::cause::{Failure, Fault};
use crate::config::RelayIdentity;
use crate::uplinks::policy::Families;

/// The delay between the starts of connection attempts to successive addresses of the relay. RFC
/// 8305, section 5, recommends 250 ms; this delay is shorter, because the connections of mobile
/// processes wait meanwhile.
const ADDRESS_STAGGER: Duration = Duration::from_millis(150);

/// The largest number of addresses of the relay to try, because a name may have any number.
const MAX_ADDRESSES: usize = 6;

/// The relay's endpoint and the keys to connect with.
pub(crate) struct Dialer {
    endpoint: String,
    /// The last resolved addresses of the relay. Each connection attempt resolves the name again
    /// but does not wait for the answer.
    addresses: Arc<watch::Sender<Arc<[SocketAddr]>>>,
    literal: bool,
    /// Whether another dialer has replaced this one, whose look-ups then no longer count.
    replaced: AtomicBool,
    tls: Arc<rustls::ClientConfig>,
    own_key: PublicKey,
}

/// A TLS connection on which the relay has authenticated itself.
pub(crate) struct RelayConnection {
    /// The encrypted byte stream.
    pub(crate) stream: TlsStream,
    /// The local address of the connection.
    pub(crate) local: SocketAddr,
    /// The relay's address and port.
    pub(crate) remote: SocketAddr,
}

/// The reason why the relay's name was not resolved.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    /// The resolver did not answer in time.
    #[error("the resolver does not answer in time")]
    Timeout,
    /// The resolver reported an error.
    #[error("{0}")]
    Failed(std::io::Error),
    /// The name exists but has no address.
    #[error("it has no address")]
    NoAddress,
    /// The task of the look-up panicked.
    #[error("{0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Dialer {
    /// Creates a dialer without resolving the relay's name.
    pub(crate) fn new(relay: &RelayIdentity, key: &PrivateKey) -> Self {
        let addresses = Arc::new(watch::Sender::new(literal(relay).into_iter().collect()));
        Self::with_addresses(relay, key, addresses)
    }

    /// Returns the dialer that replaces this one after a change of the relay or of a key. It
    /// publishes the relay's addresses to the same receivers.
    pub(crate) fn replace(&self, relay: &RelayIdentity, key: &PrivateKey) -> Self {
        self.replaced.store(true, Ordering::Relaxed);
        if relay.endpoint != self.endpoint {
            self.addresses.send_replace(literal(relay).into_iter().collect());
        }
        Self::with_addresses(relay, key, Arc::clone(&self.addresses))
    }

    fn with_addresses(
        relay: &RelayIdentity,
        key: &PrivateKey,
        addresses: Arc<watch::Sender<Arc<[SocketAddr]>>>,
    ) -> Self {
        Self {
            endpoint: relay.endpoint.clone(),
            addresses,
            literal: literal(relay).is_some(),
            replaced: AtomicBool::new(false),
            tls: tls::client_config(key, relay.public_key),
            own_key: key.public(),
        }
    }

    /// Returns a receiver of the relay's known addresses, which is updated when the name is
    /// resolved.
    pub(crate) fn addresses(&self) -> watch::Receiver<Arc<[SocketAddr]>> {
        self.addresses.subscribe()
    }

    /// Returns this host's public key.
    pub(crate) fn own_key(&self) -> &PublicKey {
        &self.own_key
    }

    /// Returns the address families in which the relay has an address; both while no address is
    /// known.
    pub(crate) fn families(&self) -> Families {
        let known = self.known_addresses();
        let any = known.is_empty();
        Families {
            ipv4: any || known.iter().any(SocketAddr::is_ipv4),
            ipv6: any || known.iter().any(SocketAddr::is_ipv6),
        }
    }

    /// Connects to the relay over `uplink`, by addresses of the `families` in which the uplink can
    /// reach the relay.
    ///
    /// Tries the last resolved addresses, and those that a new look-up returns meanwhile. Returns
    /// the first connection on which the relay has authenticated itself.
    pub(crate) async fn connect(
        self: Arc<Self>,
        uplink: String,
        families: Families,
        timeout: Duration,
    ) -> Result<RelayConnection, Failure> {
        let known = self.known_addresses();
        let lookup = (!self.literal).then(|| tokio::spawn(Arc::clone(&self).look_up(timeout)));
        let mut race = AddressRace { dialer: &self, uplink: &uplink, families, timeout, tried: Vec::new() };
        let mut runners: FuturesUnordered<_> = known.iter().filter_map(|it| race.start(*it)).collect();
        let mut lookup = pin!(
            async {
                match lookup {
                    Some(lookup) => lookup.await.unwrap_or_else(|error| Err(error.into())),
                    None => Ok(Vec::new()),
                }
            }
            .fuse()
        );
        let mut failure =
            Failure::resolve(&self.endpoint, &format!("it has no address in a family that {uplink} can use"));
        loop {
            // A slow resolver must not delay the next attempt, which uses the answer.
            if runners.is_empty() && !race.tried.is_empty() {
                return Err(failure);
            }
            let finished = tokio::select! {
                found = &mut lookup, if !lookup.is_terminated() => {
                    match found {
                        Ok(found) => runners.extend(found.into_iter().filter_map(|it| race.start(it))),
                        // The addresses resolved earlier may still work.
                        Err(error) if race.tried.is_empty() => {
                            return Err(Failure::resolve(&self.endpoint, &error.to_string()));
                        }
                        Err(error) => tracing::debug!(
                            error = error.to_string(),
                            "cannot resolve the relay's name: using the addresses known so far"
                        ),
                    }
                    continue;
                }
                Some(finished) = runners.next() => finished,
                else => return Err(failure),
            };
            match finished {
                Ok(connected) => return Ok(connected),
                // A refused key is more informative than an address that does not answer.
                Err(_) if failure.fault == Fault::Identity => {}
                Err(other) => failure = other,
            }
        }
    }

    /// Establishes TCP and TLS with one address of the relay over an uplink.
    async fn connect_to(
        &self,
        address: SocketAddr,
        uplink: &str,
        timeout: Duration,
    ) -> Result<RelayConnection, Failure> {
        let tcp = transport::connect(address, Some(uplink), timeout).await.map_err(|error| {
            let is_refusal = matches!(&error, TransportError::Connect { source, .. }
                if source.kind() == ErrorKind::ConnectionRefused);
            if is_refusal {
                Failure::connection_refused(&error.to_string())
            } else {
                Failure::unreachable(&error.to_string())
            }
        })?;
        // The connected socket shows which address the kernel chose on the uplink.
        let local = tcp.local_addr().map_err(|error| Failure::unreachable(&error.to_string()))?;
        let stream = tls::connect(&self.tls, tcp, timeout)
            .await
            .map_err(|cause| Failure::handshake(address, &cause, &self.own_key))?;
        Ok(RelayConnection { stream, local, remote: address })
    }

    async fn look_up(self: Arc<Self>, timeout: Duration) -> Result<Vec<SocketAddr>, LookupError> {
        let found: Vec<SocketAddr> = tokio::time::timeout(timeout, tokio::net::lookup_host(&self.endpoint))
            .await
            .map_err(|_| LookupError::Timeout)?
            .map_err(LookupError::Failed)?
            .collect();
        if found.is_empty() {
            return Err(LookupError::NoAddress);
        }
        self.publish(&found);
        Ok(found)
    }

    /// Publishes the resolved addresses unless they are known already.
    fn publish(&self, found: &[SocketAddr]) {
        if self.replaced.load(Ordering::Relaxed) {
            return;
        }
        self.addresses.send_if_modified(|known| {
            let is_new = **known != *found;
            if is_new {
                *known = found.into();
            }
            is_new
        });
    }

    fn known_addresses(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.addresses.borrow())
    }
}

/// Returns the address of the relay if its endpoint is an address and not a name.
fn literal(relay: &RelayIdentity) -> Option<SocketAddr> {
    relay.endpoint.parse().ok()
}

/// The staggered attempts to connect to the addresses of the relay over one uplink.
struct AddressRace<'a> {
    dialer: &'a Dialer,
    uplink: &'a str,
    families: Families,
    timeout: Duration,
    tried: Vec<SocketAddr>,
}

impl<'a> AddressRace<'a> {
    /// Returns an attempt to connect to `address`, which starts [`ADDRESS_STAGGER`] after the
    /// previous one. Returns `None` if the address was tried before, is of a family that the uplink
    /// cannot use, or exceeds [`MAX_ADDRESSES`].
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

/// Returns the IP address of a socket address, an IPv4-mapped one as IPv4.
pub(crate) fn local_ip(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_known_are_not_published_again() {
        let relay =
            RelayIdentity { endpoint: "192.0.2.1:443".into(), public_key: PublicKey::from_bytes([7; 32]) };
        let dialer = Dialer::new(&relay, &PrivateKey::generate().unwrap());
        let mut published = dialer.addresses();
        let [one, two] = ["192.0.2.1:443", "[2001:db8::1]:443"].map(|text| text.parse().unwrap());
        dialer.publish(&[one]);
        assert!(!published.has_changed().unwrap());
        dialer.publish(&[one, two]);
        assert_eq!(**published.borrow_and_update(), [one, two]);
        dialer.publish(&[one, two]);
        assert!(!published.has_changed().unwrap());
    }

    #[test]
    fn a_replaced_dialer_publishes_no_address_of_the_former_endpoint() {
        let named = |endpoint: &str| RelayIdentity {
            endpoint: endpoint.into(),
            public_key: PublicKey::from_bytes([7; 32]),
        };
        let key = PrivateKey::generate().unwrap();
        let former = Dialer::new(&named("old.example.org:443"), &key);
        let mut published = former.addresses();
        let [old, new] = ["192.0.2.1:443", "192.0.2.2:443"].map(|text| text.parse().unwrap());
        former.publish(&[old]);
        let same = former.replace(&named("old.example.org:443"), &key);
        assert_eq!(**published.borrow_and_update(), [old], "the endpoint is the same");
        let dialer = same.replace(&named("192.0.2.2:443"), &key);
        former.publish(&[old]);
        same.publish(&[old]);
        assert_eq!(**published.borrow_and_update(), [new]);
        dialer.publish(&[new, old]);
        assert_eq!(**published.borrow_and_update(), [new, old]);
    }
}
