//! TLS 1.3 with raw public keys (RFC 7250) in both directions: an identity is a key, not a certificate.
//!
//! No session tickets and no early data: a handover must prove the key again, and early data can be replayed.

mod verify;

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use mobile_proto::enroll::ENROLL_ALPN;
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, ServerConfig, SupportedCipherSuite,
    version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use crate::keys::{PrivateKey, PublicKey};
use crate::socket::Socket;
use verify::{OneRelay, OurClients, WrongRelayKey};

/// A path's transport: TLS over TCP, as client or as server.
pub type TlsStream = tokio_rustls::TlsStream<Socket>;

/// How long, and for how many bytes, a refused client is listened to: a round trip and its first flight.
const HANG_UP_TIME: Duration = Duration::from_secs(1);
const HANG_UP_BYTES: u64 = 64 * 1024;

/// Decides whether a client's key may use this relay. Asked at most once per handshake, and only
/// after the client has proved that it holds the key.
pub type Authorise = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// Why a TLS connection failed, as far as it tells what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The relay does not know our key.
    Refused,
    /// The relay's key is not the configured one.
    WrongRelayKey {
        /// The key in the configuration.
        expected: PublicKey,
        /// The key the relay offered.
        offered: PublicKey,
    },
    /// The other side speaks something else; the text says what it did.
    Protocol(String),
    /// The network failed: another uplink, or another moment, may succeed.
    Network(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => {
                f.write_str("the relay refused this key: authorize it with `home-relay authorize NAME KEY`")
            }
            Self::WrongRelayKey { expected, offered } => write!(
                f,
                "wrong relay key: expected {expected}, the relay offered {offered}; if the relay's key was \
                 changed on purpose, correct public_key in [relay]"
            ),
            Self::Protocol(what) => write!(f, "the other side does not speak our protocol: {what}"),
            Self::Network(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Cause {}

/// The relay's configurations. Which one a connection gets is decided by the protocol it asks for.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    paths: Arc<ServerConfig>,
    enrolments: Arc<ServerConfig>,
}

/// The client's configuration: proves our key, accepts the relay's and no other.
#[must_use]
pub fn client_config(key: &PrivateKey, relay: PublicKey) -> Arc<ClientConfig> {
    let provider = provider();
    let identity = identity(key, &provider);
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .expect("ring has cipher suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OneRelay::new(relay, &provider)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity)));
    config.alpn_protocols = vec![mobile_proto::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    // The name of the relay is its key: whoever watches the network learns no name.
    config.enable_sni = false;
    Arc::new(config)
}

/// The same for a key that is to be enrolled.
#[must_use]
pub fn enrolment_config(key: &PrivateKey, relay: PublicKey) -> Arc<ClientConfig> {
    let mut config = Arc::unwrap_or_clone(client_config(key, relay));
    config.alpn_protocols = vec![ENROLL_ALPN.to_vec()];
    Arc::new(config)
}

/// The relay's configuration: proves our key, accepts the clients `authorise` says yes to; and for an enrolment, which
/// is no path, whoever proves a key.
#[must_use]
pub fn server_config(key: &PrivateKey, authorise: Authorise) -> RelayConfig {
    RelayConfig {
        paths: one_server_config(key, authorise, mobile_proto::ALPN),
        enrolments: one_server_config(key, Arc::new(|_| true), ENROLL_ALPN),
    }
}

fn one_server_config(key: &PrivateKey, authorise: Authorise, alpn: &[u8]) -> Arc<ServerConfig> {
    let provider = provider();
    let identity = identity(key, &provider);
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .expect("ring has cipher suites for TLS 1.3")
        .with_client_cert_verifier(Arc::new(OurClients::new(authorise, &provider)))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // The client chooses by its processor; a relay that would suffer from the choice chooses itself.
    config.ignore_client_order = !has_aes();
    config.max_early_data_size = 0;
    Arc::new(config)
}

/// Is this connection an enrolment, and so not a path? Its key may be anyone's.
#[must_use]
pub fn is_enrolment(stream: &TlsStream) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(ENROLL_ALPN)
}

/// The key the peer proved in the handshake.
#[must_use]
pub fn peer_key(connection: &CommonState) -> Option<PublicKey> {
    PublicKey::from_spki(connection.peer_certificates()?.first()?)
}

/// Client handshake over a connected socket.
///
/// The relay's refusal of our key comes only after it: as an error of a later read, which [`explain`] understands.
///
/// # Errors
/// When it fails or takes longer than `timeout`.
pub async fn connect(
    config: &Arc<ClientConfig>,
    tcp: TcpStream,
    timeout: Duration,
) -> Result<TlsStream, Cause> {
    // rustls wants a name; ours is in the verifier, and SNI is off.
    let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
    let handshake = TlsConnector::from(config.clone()).connect(name, Socket::new(tcp));
    let stream = match tokio::time::timeout(timeout, handshake).await {
        Ok(done) => done.map_err(|error| explain(&error))?,
        Err(_) => return Err(too_late(timeout)),
    };
    require_alpn(stream.get_ref().1)?;
    Ok(stream.into())
}

/// Server handshake over an accepted socket; the key is the client's.
///
/// # Errors
/// When it fails or takes longer than `timeout`.
pub async fn accept(
    config: &RelayConfig,
    tcp: TcpStream,
    timeout: Duration,
) -> Result<(TlsStream, PublicKey), Cause> {
    let handshake = async {
        let mut hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), Socket::new(tcp));
        let start = match (&mut hello).await {
            Ok(start) => start,
            Err(error) => return Err((error, hello.take_io())),
        };
        let enrols =
            start.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == ENROLL_ALPN));
        let chosen = if enrols { &config.enrolments } else { &config.paths };
        start.into_stream(chosen.clone()).into_fallible().await.map_err(|(error, tcp)| (error, Some(tcp)))
    };
    let stream = match tokio::time::timeout(timeout, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, tcp))) => {
            if let Some(tcp) = tcp {
                hang_up(tcp).await;
            }
            return Err(explain(&error));
        }
        Err(_) => return Err(too_late(timeout)),
    };
    let connection = stream.get_ref().1;
    require_alpn(connection)?;
    let key = peer_key(connection).ok_or_else(|| Cause::Protocol("it proved no Ed25519 key".into()))?;
    Ok((stream.into(), key))
}

/// What an error of a handshake, or of any later read or write, means.
#[must_use]
pub fn explain(error: &io::Error) -> Cause {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        None => Cause::Network(match error.kind() {
            io::ErrorKind::UnexpectedEof => "the other side closed the connection".into(),
            _ => error.to_string(),
        }),
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => {
            match other.0.downcast_ref::<WrongRelayKey>() {
                Some(wrong) => Cause::WrongRelayKey { expected: wrong.expected, offered: wrong.offered },
                None => Cause::Protocol(other.to_string()),
            }
        }
        // What our relay sends when `authorise` says no.
        Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => Cause::Refused,
        Some(other) => Cause::Protocol(other.to_string()),
    }
}

/// Lets the other side read why it was refused: to drop a socket on which bytes wait unread sends a reset, which
/// may overtake the alert.
async fn hang_up(mut tcp: Socket) {
    let read_to_end = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(HANG_UP_BYTES), &mut tokio::io::sink()).await
    };
    // It is gone in any case.
    let _ = tokio::time::timeout(HANG_UP_TIME, read_to_end).await;
}

fn too_late(timeout: Duration) -> Cause {
    Cause::Network(format!("no TLS handshake within {timeout:?}"))
}

/// rustls lets a handshake pass in which one side offers no ALPN at all.
fn require_alpn(connection: &CommonState) -> Result<(), Cause> {
    if connection.alpn_protocol().is_some_and(|name| name == mobile_proto::ALPN || name == ENROLL_ALPN) {
        return Ok(());
    }
    Err(Cause::Protocol("it did not agree on our protocol (ALPN)".into()))
}

/// ring, with its ciphers in our order: where the processor knows AES nothing is faster than AES-GCM, and 128 bits
/// of key cost a third less than 256; in software ChaCha20 is faster, and safe from a look at the cache.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = cipher_suites(has_aes()).to_vec();
    Arc::new(provider)
}

fn cipher_suites(aes: bool) -> [SupportedCipherSuite; 3] {
    let (aes_128, aes_256, chacha) =
        (TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256);
    if aes { [aes_128, aes_256, chacha] } else { [chacha, aes_128, aes_256] }
}

/// Whether this processor has instructions for AES-GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Our key in the form TLS carries it: a bare SubjectPublicKeyInfo in the certificate's place.
fn identity(key: &PrivateKey, provider: &CryptoProvider) -> Arc<CertifiedKey> {
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8()));
    let signer = provider
        .key_provider
        .load_private_key(private)
        .expect("an Ed25519 seed in PKCS#8 is a key ring takes");
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(key.public().to_spki())], signer))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from_seed([seed; 32])
    }

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    async fn meet(
        client: Arc<ClientConfig>,
        server: RelayConfig,
    ) -> (Result<TlsStream, Cause>, Result<(TlsStream, PublicKey), Cause>) {
        let (near, far) = sockets().await;
        tokio::join!(connect(&client, near, SOON), accept(&server, far, SOON))
    }

    #[tokio::test]
    async fn both_sides_prove_their_keys() {
        let known = key(2).public();
        let (client, server) = meet(
            client_config(&key(2), key(1).public()),
            server_config(&key(1), Arc::new(move |k| *k == known)),
        )
        .await;
        let (mut client, (mut server, who)) = (client.unwrap(), server.unwrap());
        assert_eq!(who, key(2).public());
        assert_eq!(peer_key(client.get_ref().1), Some(key(1).public()));
        client.write_all(b"hello").await.unwrap();
        client.flush().await.unwrap();
        let mut buf = [0; 5];
        server.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"hello");
    }

    #[tokio::test]
    async fn the_cipher_is_the_one_this_processor_is_fast_at() {
        let (client, server) =
            meet(client_config(&key(2), key(1).public()), server_config(&key(1), Arc::new(|_| true))).await;
        let (client, server) = (client.unwrap(), server.unwrap().0);
        let agreed = client.get_ref().1.negotiated_cipher_suite();
        assert_eq!(agreed, Some(cipher_suites(has_aes())[0]));
        assert_eq!(server.get_ref().1.negotiated_cipher_suite(), agreed);
    }

    #[tokio::test]
    async fn an_unauthorised_client_is_told_so() {
        let (client, server) =
            meet(client_config(&key(2), key(1).public()), server_config(&key(1), Arc::new(|_| false))).await;
        assert!(server.is_err());
        // In TLS 1.3 the client has finished before the server judges its key.
        let refusal = match client {
            Err(cause) => cause,
            Ok(mut stream) => explain(&stream.read(&mut [0; 1]).await.unwrap_err()),
        };
        assert_eq!(refusal, Cause::Refused);
        assert!(refusal.to_string().contains("`home-relay authorize NAME KEY`"));
    }

    /// The configuration of a prober that offers somebody's public key and can only sign with
    /// another one.
    fn unproved_config(offered: PublicKey, held: &PrivateKey, relay: PublicKey) -> Arc<ClientConfig> {
        let mut config = (*client_config(held, relay)).clone();
        let signer = Arc::clone(&identity(held, &provider()).key);
        let offer = CertifiedKey::new(vec![CertificateDer::from(offered.to_spki())], signer);
        config.client_auth_cert_resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(offer)));
        Arc::new(config)
    }

    #[tokio::test]
    async fn a_key_that_is_not_proved_is_not_looked_up_and_nothing_is_told_of_it() {
        let (known, unknown) = (key(2).public(), key(3).public());
        let mut told = Vec::new();
        for offered in [known, unknown] {
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            let authorise = move |key: &PublicKey| {
                count.fetch_add(1, Ordering::Relaxed);
                *key == known
            };
            let server = server_config(&key(1), Arc::new(authorise));
            let (client, accepted) = meet(unproved_config(offered, &key(4), key(1).public()), server).await;
            assert!(matches!(accepted, Err(Cause::Protocol(_))), "{accepted:?}");
            told.push(match client {
                Err(cause) => cause,
                Ok(mut stream) => explain(&stream.read(&mut [0; 1]).await.unwrap_err()),
            });
            assert_eq!(asked.load(Ordering::Relaxed), 0, "the list of clients was asked");
        }
        assert_ne!(told[0], Cause::Refused);
        assert_eq!(told[0], told[1], "a client's key is told from a stranger's");
    }

    #[tokio::test]
    async fn a_key_nobody_knows_may_enrol_and_do_nothing_else() {
        let server = server_config(&key(1), Arc::new(|_| false));
        let (client, accepted) = meet(enrolment_config(&key(2), key(1).public()), server.clone()).await;
        let (accepted, who) = accepted.unwrap();
        assert_eq!(who, key(2).public(), "it proves its key all the same");
        assert!(is_enrolment(&accepted) && is_enrolment(&client.unwrap()));
        // Whoever offers both names is no path.
        let mut both = (*client_config(&key(2), key(1).public())).clone();
        both.alpn_protocols.push(ENROLL_ALPN.to_vec());
        let (_, accepted) = meet(Arc::new(both), server.clone()).await;
        assert!(is_enrolment(&accepted.unwrap().0));
        let (client, accepted) = meet(enrolment_config(&key(2), key(9).public()), server).await;
        assert!(matches!(client, Err(Cause::WrongRelayKey { .. })) && accepted.is_err());
    }

    #[tokio::test]
    async fn a_wrong_relay_key_is_named_with_the_right_one() {
        let (client, server) =
            meet(client_config(&key(2), key(9).public()), server_config(&key(1), Arc::new(|_| true))).await;
        let cause = client.unwrap_err();
        assert_eq!(cause, Cause::WrongRelayKey { expected: key(9).public(), offered: key(1).public() });
        let text = cause.to_string();
        assert!(text.contains(&key(9).public().to_string()) && text.contains(&key(1).public().to_string()));
        assert!(matches!(server, Err(Cause::Protocol(_))), "{server:?}");
    }

    #[tokio::test]
    async fn a_client_without_a_key_or_without_our_protocol_is_no_client() {
        let server = server_config(&key(1), Arc::new(|_| true));
        let mut other = (*client_config(&key(2), key(1).public())).clone();
        other.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (_, refused) = meet(Arc::new(other.clone()), server.clone()).await;
        assert!(matches!(refused, Err(Cause::Protocol(_))), "{refused:?}");
        other.alpn_protocols.clear();
        let (_, refused) = meet(Arc::new(other), server.clone()).await;
        assert!(matches!(refused, Err(Cause::Protocol(_))), "{refused:?}");
        let provider = provider();
        let anonymous = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OneRelay::new(key(1).public(), &provider)))
            .with_no_client_auth();
        let (_, refused) = meet(Arc::new(anonymous), server).await;
        assert!(matches!(refused, Err(Cause::Protocol(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn a_network_error_is_told_from_a_refusal() {
        let (near, far) = sockets().await;
        drop(far);
        let config = client_config(&key(2), key(1).public());
        let cause = connect(&config, near, SOON).await.unwrap_err();
        assert!(matches!(cause, Cause::Network(_)), "{cause:?}");
        let (near, _silent) = sockets().await;
        let cause = connect(&config, near, Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(&cause, Cause::Network(text) if text.contains("20ms")), "{cause:?}");
    }
}
