//! Accepts TCP connections and turns each into a path of a session: TLS, then HELLO, within one
//! time limit.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mobile_proto::{Hello, HelloReader};
use mobile_transport::keys::{PrivateKey, PublicKey};
use mobile_transport::tls::{self, HandshakeFailure, RelayConfig, TlsStream};
use mobile_transport::transport;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

use super::enroll::Enroller;
use super::limiter::{HandshakeLimiter, HandshakePermit, SharedLimiter};
use super::registry::Registry;
use super::relay::Relay;
use crate::metrics::{HandshakeResult, Metrics};
use mobile_host::log_rate_limiter::LogRateLimiter;

tokio::task_local! {
    /// Whether the relay refused the client's key in this task's handshake, although the client
    /// proved to hold it. TLS itself only reports that the handshake failed.
    static REFUSED: Cell<bool>;
}

/// Accepts connections and authenticates clients.
#[derive(Clone)]
pub(crate) struct Acceptor {
    tls: RelayConfig,
    relay: Arc<Relay>,
    registry: Arc<Registry>,
    enroller: Arc<Enroller>,
    metrics: Arc<Metrics>,
    limiter: SharedLimiter,
    /// The log rate limit of each handshake result, so that a flood cannot fill the log.
    log_limiters: Arc<Mutex<[LogRateLimiter; HandshakeResult::ALL.len()]>>,
}

impl Acceptor {
    /// Creates the acceptor for the relay's clients and for enrolments.
    pub(crate) fn new(key: &PrivateKey, relay: &Arc<Relay>, metrics: &Arc<Metrics>) -> Self {
        let registry = relay.registry();
        let clients = Arc::clone(registry);
        let tls = tls::server_config(
            key,
            Arc::new(move |key| {
                let authorized = clients.is_authorized(key);
                if !authorized {
                    // TLS calls this closure in the task of the handshake, or outside of any
                    // handshake.
                    let _ = REFUSED.try_with(|refused| refused.set(true));
                }
                authorized
            }),
        );
        relay.set_tls(tls.clone());
        Self {
            tls,
            relay: Arc::clone(relay),
            registry: Arc::clone(registry),
            enroller: Arc::new(Enroller::new(relay, metrics)),
            metrics: Arc::clone(metrics),
            limiter: Arc::clone(relay.limiter()),
            log_limiters: Arc::default(),
        }
    }

    /// Accepts connections until the task is dropped.
    pub(crate) async fn run(self, listener: TcpListener) {
        loop {
            let (tcp, peer) = match listener.accept().await {
                // Report an IPv4 peer of a dual-stack socket by its IPv4 address.
                Ok((tcp, peer)) => (tcp, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
                Err(error) => {
                    // Mostly the process is out of file descriptors: other connections must end
                    // first.
                    warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(super::ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            let admitted = self.limiter().admit(Instant::now(), peer.ip());
            let permit = match admitted {
                Ok(permit) => HalfOpen::new(&self, permit),
                // Closing at once is cheaper for both ends than waiting behind strangers: the
                // client retries.
                Err(reason) => {
                    transport::reset(tcp);
                    self.count(reason, peer);
                    continue;
                }
            };
            let acceptor = self.clone();
            tokio::spawn(async move {
                let result = acceptor.handshake(tcp, peer).await;
                drop(permit);
                acceptor.count(result, peer);
            });
        }
    }

    fn limiter(&self) -> MutexGuard<'_, HandshakeLimiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the result of a connection attempt, and logs it, rate-limited, if the operator may
    /// have to act.
    fn count(&self, result: HandshakeResult, peer: SocketAddr) {
        self.metrics.handshake(result);
        let limit = match result {
            HandshakeResult::Opened
            | HandshakeResult::Resumed
            | HandshakeResult::Tls
            | HandshakeResult::Oversized
            | HandshakeResult::Hello
            | HandshakeResult::Enrolment
            | HandshakeResult::Timeout => return,
            HandshakeResult::Unauthorized => None,
            HandshakeResult::Busy => Some("half_open"),
            HandshakeResult::SourceBusy => Some("half_open_per_source"),
            HandshakeResult::SourceRate => Some("handshake_rate_per_source"),
            HandshakeResult::Rate => Some("handshake_rate"),
        };
        let Some(suppressed) = self.may_log(result) else { return };
        match limit {
            None => info!(%peer, suppressed, "connection refused: the client's key is not authorised"),
            Some(limit) => {
                warn!(%peer, suppressed, "connection refused: [limits] {limit} is reached");
            }
        }
    }

    /// Returns `Some` if a message about `result` may be logged, with the number of messages
    /// suppressed before it.
    fn may_log(&self, result: HandshakeResult) -> Option<u64> {
        let mut log_limiters = self.log_limiters.lock().unwrap_or_else(PoisonError::into_inner);
        log_limiters[result as usize].allow(Instant::now())
    }

    async fn handshake(&self, tcp: TcpStream, peer: SocketAddr) -> HandshakeResult {
        let time_limit = self.limiter().handshake_timeout();
        let greeting = tokio::time::timeout(time_limit, self.authenticate(tcp, peer, time_limit)).await;
        let AuthenticatedClient { key, hello, leftover, stream } = match greeting {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(result)) => return result,
            Err(_) => {
                debug!(%peer, "handshake timed out");
                return HandshakeResult::Timeout;
            }
        };
        self.record_proof(key, peer);
        // Outside the time limit: a cancellation half-way would leave a session without an owner.
        match self.registry.admit(&key, hello, leftover, stream, peer).await {
            Ok(result) => {
                self.relay.adopt_key(key).await;
                result
            }
            Err(_) => HandshakeResult::Unauthorized,
        }
    }

    /// Records in the handshake limiter that a client authenticated with `key` from this address,
    /// unless the key was revoked in the meantime.
    fn record_proof(&self, key: PublicKey, peer: SocketAddr) {
        let mut limiter = self.limiter();
        // Check under the limiter's lock: a revocation removes the key from the registry first, and
        // from the limiter second.
        if self.registry.is_authorized(&key) {
            limiter.record_proof(Instant::now(), key, peer.ip());
        }
    }

    /// Performs the TLS handshake and reads HELLO; `Err` is the result of an attempt that opens no
    /// path.
    async fn authenticate(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        time_limit: Duration,
    ) -> Result<AuthenticatedClient, HandshakeResult> {
        if let Err(error) = transport::tune(&tcp) {
            debug!(%peer, "handshake failed: {error}");
            return Err(HandshakeResult::Tls);
        }
        let accept = async {
            // The caller's time limit covers all of this function; this longer one is never
            // reached.
            let accepted = tls::accept(&self.tls, tcp, 2 * time_limit).await;
            (accepted, REFUSED.with(Cell::get))
        };
        let (mut stream, key) = match REFUSED.scope(Cell::new(false), accept).await {
            (Ok(accepted), _) => accepted,
            (Err(_), true) => return Err(HandshakeResult::Unauthorized),
            (Err(cause), false) => {
                debug!(%peer, "handshake failed: {cause}");
                return Err(if cause == HandshakeFailure::Oversized {
                    HandshakeResult::Oversized
                } else {
                    HandshakeResult::Tls
                });
            }
        };
        if tls::is_enrolment(&stream) {
            self.enroller.serve(stream, key, peer).await;
            return Err(HandshakeResult::Enrolment);
        }
        let mut reader = HelloReader::new();
        // A HELLO takes some 50 bytes; bytes after it in the same read are passed to the session.
        let mut buffer = [0; 2048];
        let (hello, leftover) = loop {
            let read = match stream.read(&mut buffer).await {
                Ok(0) => {
                    debug!(%peer, "handshake failed: connection closed before HELLO");
                    return Err(HandshakeResult::Hello);
                }
                Ok(read) => read,
                Err(error) => {
                    debug!(%peer, "handshake failed: {error}");
                    return Err(HandshakeResult::Hello);
                }
            };
            match reader.feed(&buffer[..read]) {
                Ok(Some(hello)) => break hello,
                Ok(None) => {}
                Err(error) => {
                    if let Some(suppressed) = self.may_log(HandshakeResult::Hello) {
                        warn!(%peer, client = %key, suppressed, "handshake failed: {error}");
                    }
                    return Err(HandshakeResult::Hello);
                }
            }
        };
        Ok(AuthenticatedClient { key, hello, leftover, stream })
    }
}

/// An authenticated client and the HELLO that names its session.
struct AuthenticatedClient {
    key: PublicKey,
    hello: Hello,
    leftover: Vec<u8>,
    stream: TlsStream,
}

/// A connection in its handshake, counted as half-open until dropped.
struct HalfOpen {
    acceptor: Acceptor,
    permit: HandshakePermit,
}

impl HalfOpen {
    fn new(acceptor: &Acceptor, permit: HandshakePermit) -> Self {
        acceptor.metrics.half_open.inc();
        Self { acceptor: acceptor.clone(), permit }
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.acceptor.metrics.half_open.dec();
        self.acceptor.limiter().end(&self.permit);
    }
}
