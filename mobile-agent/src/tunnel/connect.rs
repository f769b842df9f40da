//! Connects to the relay over one uplink: resolves the names of its endpoints, tries their
//! addresses, and establishes TLS.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use mobile_transport::keys::{PrivateKey, PublicKey};
use mobile_transport::tls::{self, TlsStream};
use mobile_transport::transport::{self, TransportError};
use tokio::sync::watch;

use super::cause::{Failure, Fault};
use super::known_relay::KnownRelay;
use crate::uplinks::policy::Families;

/// The delay between the starts of connection attempts to successive addresses of the relay. RFC
/// 8305, section 5, recommends 250 ms; this delay is shorter, because the connections of mobile
/// processes wait meanwhile.
const ADDRESS_STAGGER: Duration = Duration::from_millis(150);

/// The largest number of addresses of the relay to try, because a name may have any number.
const MAX_ADDRESSES: usize = 6;

/// The relay's endpoints and the keys to connect with.
pub(crate) struct Dialer {
    /// The relay's endpoints and keys, which it may announce anew.
    known: Arc<watch::Sender<KnownRelay>>,
    /// The last resolved addresses of each endpoint. Each connection attempt resolves the names
    /// again but does not wait for the answer.
    resolved: Mutex<HashMap<String, Vec<SocketAddr>>>,
    /// The addresses of all endpoints.
    addresses: watch::Sender<Arc<[SocketAddr]>>,
    key: Mutex<PrivateKey>,
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
    pub(crate) fn new(relay: KnownRelay, key: &PrivateKey) -> Self {
        let dialer = Self {
            known: Arc::new(watch::Sender::new(relay)),
            resolved: Mutex::default(),
            addresses: watch::Sender::new(Arc::default()),
            key: Mutex::new(key.clone()),
        };
        dialer.publish_addresses();
        dialer
    }

    /// Returns what is known of the relay, for those who learn more of it.
    pub(crate) fn known(&self) -> &Arc<watch::Sender<KnownRelay>> {
        &self.known
    }

    /// Uses another key of this host for new connections.
    pub(super) fn set_key(&self, key: PrivateKey) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// Connects to another relay from now on, after a change of the configuration.
    pub(super) fn set_relay(self: &Arc<Self>, relay: KnownRelay, timeout: Duration) {
        self.known.send_replace(relay);
        self.refresh(timeout);
    }

    /// Publishes and resolves the relay's endpoints after a change.
    pub(super) fn refresh(self: &Arc<Self>, timeout: Duration) {
        self.publish_addresses();
        for (_, name) in self.names() {
            // The look-up publishes its result, and the next attempt repeats a failed one.
            tokio::spawn(Arc::clone(self).look_up(name, timeout));
        }
    }

    /// Returns a receiver of the relay's known addresses, which is updated when the name is
    /// resolved.
    pub(crate) fn addresses(&self) -> watch::Receiver<Arc<[SocketAddr]>> {
        self.addresses.subscribe()
    }

    /// Returns this host's public key.
    pub(crate) fn own_key(&self) -> PublicKey {
        self.key().public()
    }

    fn key(&self) -> PrivateKey {
        self.key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the address families in which the relay has an address; both while no address is
    /// known.
    pub(crate) fn families(&self) -> Families {
        let known = self.addresses.borrow();
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
        let mut lookups: FuturesUnordered<_> = self
            .names()
            .map(|(rank, name)| {
                let lookup = tokio::spawn(Arc::clone(&self).look_up(name.clone(), timeout));
                async move { (rank, name, lookup.await.unwrap_or_else(|error| Err(error.into()))) }
            })
            .collect();
        let mut race = AddressRace { dialer: &self, uplink: &uplink, families, timeout, tried: Vec::new() };
        let mut runners: FuturesUnordered<_> =
            self.candidates().into_iter().filter_map(|(rank, address)| race.start(rank, address)).collect();
        let mut failure = Failure::resolve(
            self.known.borrow().configured_endpoint(),
            &format!("it has no address in a family that {uplink} can use"),
        );
        loop {
            // A slow resolver must not delay the next attempt, which uses the answer.
            if runners.is_empty() && !race.tried.is_empty() {
                return Err(failure);
            }
            let finished = tokio::select! {
                Some((rank, name, found)) = lookups.next() => {
                    match found {
                        Ok(found) => {
                            let found = found.into_iter().take(self.addresses_per_endpoint());
                            runners.extend(found.filter_map(|address| race.start(rank, address)));
                        }
                        // The addresses resolved earlier, or another endpoint, may still work.
                        Err(error) if race.tried.is_empty() && lookups.is_empty() => {
                            return Err(Failure::resolve(&name, &error.to_string()));
                        }
                        Err(error) => tracing::debug!(
                            name,
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
        let keys = self.known.borrow().keys();
        let stream = tls::connect(&tls::client_config(&self.key(), keys), tcp, timeout)
            .await
            .map_err(|cause| self.handshake_failure(address, &cause))?;
        if let Some(proved) = tls::peer_key(stream.get_ref().1)
            && self.known.send_if_modified(|known| known.prove(&proved))
        {
            tracing::info!(
                public_key = %proved,
                "the relay proved the key that it had announced: [relay] public_key is out of date"
            );
        }
        Ok(RelayConnection { stream, local, remote: address })
    }

    fn handshake_failure(&self, address: SocketAddr, cause: &tls::HandshakeFailure) -> Failure {
        match cause {
            tls::HandshakeFailure::WrongRelayKey { expected, offered }
                if self.known.borrow().has_new_key() =>
            {
                Failure::wrong_announced_key(expected, offered)
            }
            cause => Failure::handshake(address, cause, &self.own_key()),
        }
    }

    async fn look_up(
        self: Arc<Self>,
        name: String,
        timeout: Duration,
    ) -> Result<Vec<SocketAddr>, LookupError> {
        let found: Vec<SocketAddr> = tokio::time::timeout(timeout, tokio::net::lookup_host(&name))
            .await
            .map_err(|_| LookupError::Timeout)?
            .map_err(LookupError::Failed)?
            .collect();
        if found.is_empty() {
            return Err(LookupError::NoAddress);
        }
        self.publish(name, found.clone());
        Ok(found)
    }

    /// Publishes the resolved addresses of an endpoint.
    fn publish(&self, name: String, found: Vec<SocketAddr>) {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner).insert(name, found);
        self.publish_addresses();
    }

    /// Publishes the addresses of all endpoints unless they are known already.
    fn publish_addresses(&self) {
        let all: Vec<SocketAddr> = self.candidates().into_iter().map(|(_, address)| address).collect();
        self.addresses.send_if_modified(|known| {
            let is_new = **known != *all;
            if is_new {
                *known = all.into();
            }
            is_new
        });
    }

    /// Returns the known addresses of each endpoint with the rank of the endpoint: 0 is tried
    /// first. Forgets those of other endpoints.
    fn candidates(&self) -> Vec<(usize, SocketAddr)> {
        let most = self.addresses_per_endpoint();
        let known = self.known.borrow();
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        resolved.retain(|name, _| known.endpoints().any(|endpoint| endpoint == name));
        let mut candidates = Vec::new();
        for (rank, endpoint) in known.endpoints().enumerate() {
            let literal = endpoint.parse().ok();
            let addresses = resolved.get(endpoint).map(Vec::as_slice).unwrap_or_default();
            for address in literal.iter().chain(addresses).take(most) {
                if !candidates.iter().any(|(_, other)| other == address) {
                    candidates.push((rank, *address));
                }
            }
        }
        candidates
    }

    /// Returns the endpoints that are names, with their ranks.
    fn names(&self) -> impl Iterator<Item = (usize, String)> + use<> {
        let known = self.known.borrow();
        let names = known.endpoints().map(str::to_owned).enumerate();
        let names: Vec<_> = names.filter(|(_, name)| name.parse::<SocketAddr>().is_err()).collect();
        names.into_iter()
    }

    /// Returns how many addresses of an endpoint are tried, so that each endpoint has its share.
    fn addresses_per_endpoint(&self) -> usize {
        MAX_ADDRESSES / self.known.borrow().endpoints().count().max(1)
    }
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
    /// previous one. An endpoint of a higher `rank` gives those before it a head start, in which
    /// their names may be resolved. Returns `None` if the address was tried before, is of a family
    /// that the uplink cannot use, or exceeds [`MAX_ADDRESSES`].
    fn start(
        &mut self,
        rank: usize,
        address: SocketAddr,
    ) -> Option<impl Future<Output = Result<RelayConnection, Failure>> + use<'a>> {
        let Families { ipv4, ipv6 } = self.families;
        let served = if address.is_ipv4() { ipv4 } else { ipv6 };
        if !served || self.tried.contains(&address) || self.tried.len() == MAX_ADDRESSES {
            return None;
        }
        let turn = u32::try_from(self.tried.len().max(rank)).unwrap_or(u32::MAX);
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
    use mobile_proto::Announcement;

    use super::*;
    use crate::config::RelayIdentity;

    fn dialer(endpoint: &str) -> Dialer {
        let public_key = PublicKey::from_bytes([7; 32]);
        let relay = RelayIdentity { endpoint: endpoint.into(), public_key };
        Dialer::new(KnownRelay::configured(&relay), &PrivateKey::generate().unwrap())
    }

    fn name() -> String {
        "relay.example.org:443".into()
    }

    fn announce(dialer: &Dialer, endpoint: &str) {
        let announced = Announcement { key: None, endpoint: Some(endpoint.into()) };
        dialer.known.send_if_modified(|known| known.learn(&announced));
        dialer.publish_addresses();
    }

    #[test]
    fn an_announced_endpoint_comes_first_and_each_has_its_share_of_the_addresses() {
        let dialer = dialer("192.0.2.9:443");
        announce(&dialer, &name());
        let many: Vec<SocketAddr> = (1..20).map(|host| ([198, 51, 100, host], 443).into()).collect();
        dialer.publish(name(), many.clone());
        let configured = "192.0.2.9:443".parse().unwrap();
        let expected = [(0, many[0]), (0, many[1]), (0, many[2]), (1, configured)];
        assert_eq!(dialer.candidates(), expected);
        announce(&dialer, "[2001:db8::1]:443");
        assert_eq!(dialer.candidates(), [(0, "[2001:db8::1]:443".parse().unwrap()), (1, configured)]);
        assert_eq!(dialer.families(), Families { ipv4: true, ipv6: true });
        announce(&dialer, "");
        assert_eq!(**dialer.addresses().borrow(), [configured]);
    }

    #[test]
    fn addresses_that_are_known_are_not_published_again() {
        let dialer = dialer("relay.example.org:443");
        let mut published = dialer.addresses();
        let [one, two] = ["192.0.2.1:443", "[2001:db8::1]:443"].map(|text| text.parse().unwrap());
        dialer.publish(name(), vec![one]);
        assert_eq!(**published.borrow_and_update(), [one]);
        dialer.publish(name(), vec![one]);
        assert!(!published.has_changed().unwrap());
        dialer.publish(name(), vec![one, two]);
        assert_eq!(**published.borrow_and_update(), [one, two]);
        dialer.publish(name(), vec![one, two]);
        assert!(!published.has_changed().unwrap());
    }
}
