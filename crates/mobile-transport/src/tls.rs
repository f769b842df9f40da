//! TLS 1.3 with raw public keys (RFC 7250) in both directions: a peer is identified by a key
//! instead of a certificate.
//!
//! There are no session tickets, because each handover must prove possession of the key again, and
//! no early data, because early data can be replayed.

mod certificate;
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
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, ServerConfig, SupportedCipherSuite,
    version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use crate::keys::{PrivateKey, PublicKey, RelayKeys};
use crate::socket::{AllowanceExceeded, ReadAheadSocket};
use certificate::{RelayCertificate, identity};
use verify::{ClientKeyVerifier, PinnedRelayVerifier, WrongRelayKey};

/// The transport of a path: TLS over TCP, as client or server.
pub type TlsStream = tokio_rustls::TlsStream<ReadAheadSocket>;

/// The time, and the number of bytes, for which the relay still reads from a client that it has
/// refused: a round trip and the client's first flight.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const CLOSE_READ_LIMIT: u64 = 64 * 1024;

/// The maximum number of bytes that an unauthenticated peer may send before its ClientHello is
/// complete.
///
/// The agent's ClientHello has some 250 bytes; with a post-quantum key share (ML-KEM, 1,184 bytes)
/// it would have 1,500. rustls itself would buffer up to 64 KiB.
const CLIENT_HELLO_BYTES: usize = 4 * 1024;

/// The maximum number of bytes that a client may send after its ClientHello until the handshake is
/// complete.
///
/// The certificate message, the signature and Finished take some 300 bytes. rustls may read further
/// bytes together with them: at most a first record of 16 KiB and one read of 4 KiB.
const CLIENT_FLIGHT_BYTES: usize = 24 * 1024;

/// Decides whether a client's key may use this relay.
///
/// Called at most once per handshake, after the client has proved that it holds the key.
pub type Authorise = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// The reason why a TLS connection failed, in categories that differ in the next step for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The relay does not authorise this client's key.
    Refused,
    /// The relay's key is not the configured one.
    WrongRelayKey {
        /// The keys that the client accepts.
        expected: RelayKeys,
        /// The key that the relay offered.
        offered: PublicKey,
    },
    /// The peer sent more bytes than a handshake needs.
    Oversized,
    /// The peer does not speak the expected protocol; the text describes the violation.
    Protocol(String),
    /// The network failed; another uplink or a later attempt may succeed.
    Network(String),
}

impl fmt::Display for HandshakeFailure {
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
            Self::Oversized => {
                write!(f, "the peer does not speak the expected protocol: {AllowanceExceeded}")
            }
            Self::Protocol(what) => write!(f, "the peer does not speak the expected protocol: {what}"),
            Self::Network(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for HandshakeFailure {}

impl HandshakeFailure {
    /// Returns how the peer violated the protocol; `None` if the connection failed for another
    /// reason. A violation during the handshake means that another service answered.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        match self {
            Self::Oversized => Some(AllowanceExceeded.to_string()),
            Self::Protocol(what) => Some(what.clone()),
            Self::Refused | Self::WrongRelayKey { .. } | Self::Network(_) => None,
        }
    }
}

/// The relay's two TLS configurations, one for paths and one for enrolments. The protocol that a
/// client requests (ALPN) selects between them.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    paths: Arc<ServerConfig>,
    enrolments: Arc<ServerConfig>,
    certificate: Arc<RelayCertificate>,
}

impl RelayConfig {
    /// Replaces the relay's key in all later handshakes; clones of this configuration share it.
    pub fn set_key(&self, key: &PrivateKey) {
        self.certificate.set(key);
    }
}

/// Creates the client's TLS configuration for paths, which proves possession of `key` and accepts
/// only a relay with one of the keys `relay`.
#[must_use]
pub fn client_config(key: &PrivateKey, relay: impl Into<RelayKeys>) -> Arc<ClientConfig> {
    let provider = provider();
    let identity = identity(key);
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .expect("ring has cipher suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedRelayVerifier::new(relay.into(), &provider)))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity)));
    config.alpn_protocols = vec![mobile_proto::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    // The relay is identified by its key, so an observer of the network need not learn a name.
    config.enable_sni = false;
    Arc::new(config)
}

/// Creates the TLS configuration of a client that wants the relay to enrol `key`.
#[must_use]
pub fn enrolment_config(key: &PrivateKey, relay: impl Into<RelayKeys>) -> Arc<ClientConfig> {
    let mut config = Arc::unwrap_or_clone(client_config(key, relay));
    config.alpn_protocols = vec![ENROLL_ALPN.to_vec()];
    Arc::new(config)
}

/// Creates the relay's TLS configurations, which prove possession of `key`.
///
/// A path requires a client key that `authorise` accepts. An enrolment accepts any key that the
/// client proves to possess.
#[must_use]
pub fn server_config(key: &PrivateKey, authorise: Authorise) -> RelayConfig {
    let certificate = Arc::new(RelayCertificate::new(key));
    RelayConfig {
        paths: server_config_for(&certificate, authorise, mobile_proto::ALPN),
        enrolments: server_config_for(&certificate, Arc::new(|_| true), ENROLL_ALPN),
        certificate,
    }
}

fn server_config_for(
    certificate: &Arc<RelayCertificate>,
    authorise: Authorise,
    alpn: &[u8],
) -> Arc<ServerConfig> {
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .expect("ring has cipher suites for TLS 1.3")
        .with_client_cert_verifier(Arc::new(ClientKeyVerifier::new(authorise, &provider)))
        .with_cert_resolver(Arc::clone(certificate) as _);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // The client's order suits its processor. A relay without AES instructions uses its own order
    // instead.
    config.ignore_client_order = !has_aes();
    config.max_early_data_size = 0;
    Arc::new(config)
}

/// Returns whether the client requested an enrolment (ALPN), in which case its key need not be
/// authorised.
#[must_use]
pub fn is_enrolment(stream: &TlsStream) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(ENROLL_ALPN)
}

/// Returns the public key that the peer has proved to possess in the handshake; `None` before that.
#[must_use]
pub fn peer_key(connection: &CommonState) -> Option<PublicKey> {
    PublicKey::from_spki(connection.peer_certificates()?.first()?)
}

/// Performs the client's side of the TLS handshake over a connected socket.
///
/// In TLS 1.3 the relay's refusal of the client's key arrives after the handshake, as an error of a
/// later read. Pass that error to [`classify`].
///
/// # Errors
/// When the handshake fails or takes longer than `timeout`.
pub async fn connect(
    config: &Arc<ClientConfig>,
    tcp: TcpStream,
    timeout: Duration,
) -> Result<TlsStream, HandshakeFailure> {
    // rustls requires a name, but the verifier checks the key only, and SNI is disabled.
    let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
    let handshake = TlsConnector::from(config.clone()).connect(name, ReadAheadSocket::new(tcp));
    let stream = match tokio::time::timeout(timeout, handshake).await {
        Ok(done) => done.map_err(|error| classify(&error))?,
        Err(_) => return Err(timed_out(timeout)),
    };
    require_alpn(stream.get_ref().1)?;
    Ok(stream.into())
}

/// Performs the relay's side of the TLS handshake over an accepted socket; returns the TLS stream
/// and the client's key.
///
/// # Errors
/// When the handshake fails or takes longer than `timeout`.
pub async fn accept(
    config: &RelayConfig,
    tcp: TcpStream,
    timeout: Duration,
) -> Result<(TlsStream, PublicKey), HandshakeFailure> {
    let handshake = async {
        let mut socket = ReadAheadSocket::new(tcp);
        socket.limit(CLIENT_HELLO_BYTES);
        let mut hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket);
        let mut start = match (&mut hello).await {
            Ok(start) => start,
            Err(error) => return Err((error, hello.take_io())),
        };
        let enrols =
            start.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == ENROLL_ALPN));
        let chosen = if enrols { &config.enrolments } else { &config.paths };
        start.io.limit(CLIENT_FLIGHT_BYTES);
        start.into_stream(chosen.clone()).into_fallible().await.map_err(|(error, tcp)| (error, Some(tcp)))
    };
    let mut stream = match tokio::time::timeout(timeout, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, tcp))) => {
            let cause = classify(&error);
            // Do not read any more from a peer that sends too much.
            if let Some(tcp) = tcp.filter(|_| cause != HandshakeFailure::Oversized) {
                close_gracefully(tcp).await;
            }
            return Err(cause);
        }
        Err(_) => return Err(timed_out(timeout)),
    };
    stream.get_mut().0.lift_limit();
    let connection = stream.get_ref().1;
    require_alpn(connection)?;
    let key = peer_key(connection)
        .ok_or_else(|| HandshakeFailure::Protocol("the client proved no Ed25519 key".into()))?;
    Ok((stream.into(), key))
}

/// Determines the cause of an error of a TLS handshake, or of any later read or write.
#[must_use]
pub fn classify(error: &io::Error) -> HandshakeFailure {
    if error.get_ref().and_then(|inner| inner.downcast_ref::<AllowanceExceeded>()).is_some() {
        return HandshakeFailure::Oversized;
    }
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        None => HandshakeFailure::Network(match error.kind() {
            io::ErrorKind::UnexpectedEof => "the peer closed the connection".into(),
            _ => error.to_string(),
        }),
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => {
            match other.0.downcast_ref::<WrongRelayKey>() {
                Some(wrong) => {
                    HandshakeFailure::WrongRelayKey { expected: wrong.expected, offered: wrong.offered }
                }
                None => HandshakeFailure::Protocol(other.to_string()),
            }
        }
        // The relay sends this alert when `authorise` rejects the key.
        Some(rustls::Error::AlertReceived(AlertDescription::AccessDenied)) => HandshakeFailure::Refused,
        Some(other) => HandshakeFailure::Protocol(other.to_string()),
    }
}

/// Closes a connection after a failed handshake in such a way that the peer can read the TLS alert
/// with the reason.
///
/// Dropping a socket with unread bytes would send a reset, upon which the peer may discard the
/// alert.
async fn close_gracefully(mut tcp: ReadAheadSocket) {
    tcp.lift_limit();
    let read_to_end = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(CLOSE_READ_LIMIT), &mut tokio::io::sink()).await
    };
    // The connection is dropped in any case.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, read_to_end).await;
}

fn timed_out(timeout: Duration) -> HandshakeFailure {
    HandshakeFailure::Network(format!("no TLS handshake within {timeout:?}"))
}

/// Fails unless both sides agreed on a protocol, because rustls accepts handshakes in which one
/// side offers no ALPN.
fn require_alpn(connection: &CommonState) -> Result<(), HandshakeFailure> {
    if connection.alpn_protocol().is_some_and(|name| name == mobile_proto::ALPN || name == ENROLL_ALPN) {
        return Ok(());
    }
    Err(HandshakeFailure::Protocol("no common protocol was negotiated (ALPN)".into()))
}

/// Returns ring's cryptography provider with the cipher suites in order of preference.
///
/// If the processor has AES instructions, nothing is faster than AES-GCM, and 128-bit keys cost a
/// third less than 256-bit keys. In software, ChaCha20 is faster and safe from cache-timing
/// attacks.
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

/// Returns whether this processor has instructions for AES-GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests;
