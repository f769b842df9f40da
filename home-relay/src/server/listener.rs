//! From a TCP connection to a path of a session: TLS, then HELLO, all within one time limit.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;

use mobile_io::keys::{PrivateKey, PublicKey};
use mobile_io::tls::{self, RelayConfig, TlsStream};
use mobile_io::transport;
use mobile_proto::{Hello, HelloReader};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::Relay;
use super::enroll::Enroller;
use super::registry::Registry;
use crate::config::Limits;
use crate::metrics::{Handshake, Metrics};

tokio::task_local! {
    /// Was the key of this handshake refused? TLS only says that the handshake failed.
    static REFUSED: Cell<bool>;
}

/// Makes paths of connections.
#[derive(Clone)]
pub(crate) struct Gate {
    tls: RelayConfig,
    registry: Arc<Registry>,
    enroller: Arc<Enroller>,
    metrics: Arc<Metrics>,
    limits: Limits,
}

impl Gate {
    /// For the clients of the relay, and those that want to be.
    pub(crate) fn new(key: &PrivateKey, relay: &Arc<Relay>, metrics: &Arc<Metrics>, limits: &Limits) -> Self {
        let registry = &relay.registry;
        let clients = Arc::clone(registry);
        Self {
            tls: tls::server_config(
                key,
                Arc::new(move |key| {
                    let authorized = clients.is_authorized(key);
                    if !authorized {
                        // Asked in the handshake of this very task, or in none of ours.
                        let _ = REFUSED.try_with(|refused| refused.set(true));
                    }
                    authorized
                }),
            ),
            registry: Arc::clone(registry),
            enroller: Arc::new(Enroller::new(relay, metrics)),
            metrics: Arc::clone(metrics),
            limits: limits.clone(),
        }
    }

    /// Accepts connections until the task is dropped.
    pub(crate) async fn run(self, listener: TcpListener) {
        let half_open = Arc::new(Semaphore::new(self.limits.half_open));
        loop {
            let (tcp, peer) = match listener.accept().await {
                // An IPv4 peer of a socket for both families reads as what it is.
                Ok((tcp, peer)) => (tcp, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
                Err(error) => {
                    // Out of file descriptors, mostly: others have to finish first.
                    warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(super::ACCEPT_RETRY).await;
                    continue;
                }
            };
            // Closing at once is cheaper for both than a wait behind strangers: the client tries again.
            let Ok(permit) = Arc::clone(&half_open).try_acquire_owned() else {
                self.metrics.handshake(Handshake::Busy);
                continue;
            };
            let gate = self.clone();
            tokio::spawn(async move {
                gate.metrics.half_open.inc();
                let result = gate.handshake(tcp, peer).await;
                gate.metrics.half_open.dec();
                gate.metrics.handshake(result);
                drop(permit);
            });
        }
    }

    async fn handshake(&self, tcp: TcpStream, peer: SocketAddr) -> Handshake {
        let greeted = tokio::time::timeout(self.limits.handshake_timeout(), self.greet(tcp, peer)).await;
        let Greeting { key, hello, leftover, stream } = match greeted {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(result)) => return result,
            Err(_) => {
                debug!(%peer, "handshake: too slow");
                return Handshake::Timeout;
            }
        };
        // Outside the limit: cut short half-way it would leave a session that nobody owns.
        match self.registry.admit(&key, hello, leftover, stream, peer).await {
            Ok(result) => result,
            Err(_) => Handshake::Unauthorized,
        }
    }

    /// Err: it ends here, and is no path.
    async fn greet(&self, tcp: TcpStream, peer: SocketAddr) -> Result<Greeting, Handshake> {
        if let Err(error) = transport::tune(&tcp) {
            debug!(%peer, "handshake: {error}");
            return Err(Handshake::Tls);
        }
        let accept = async {
            // The limit around all of this is the one that counts; twice as long is never reached.
            let accepted = tls::accept(&self.tls, tcp, 2 * self.limits.handshake_timeout()).await;
            (accepted, REFUSED.with(Cell::get))
        };
        let (mut stream, key) = match REFUSED.scope(Cell::new(false), accept).await {
            (Ok(accepted), _) => accepted,
            (Err(_), true) => {
                info!(%peer, "refused: a client whose key is not authorised");
                return Err(Handshake::Unauthorized);
            }
            (Err(cause), false) => {
                debug!(%peer, "handshake: {cause}");
                return Err(Handshake::Tls);
            }
        };
        if tls::is_enrolment(&stream) {
            self.enroller.serve(stream, key, peer).await;
            return Err(Handshake::Enrolment);
        }
        let mut reader = HelloReader::new();
        // A HELLO takes some 50 bytes; what follows it in the same read is handed on.
        let mut buffer = [0; 2048];
        let (hello, leftover) = loop {
            let read = match stream.read(&mut buffer).await {
                Ok(0) => {
                    debug!(%peer, "handshake: closed before HELLO");
                    return Err(Handshake::Hello);
                }
                Ok(read) => read,
                Err(error) => {
                    debug!(%peer, "handshake: {error}");
                    return Err(Handshake::Hello);
                }
            };
            match reader.feed(&buffer[..read]) {
                Ok(Some(hello)) => break hello,
                Ok(None) => {}
                Err(error) => {
                    warn!(%peer, client = %key, "handshake: {error}");
                    return Err(Handshake::Hello);
                }
            }
        };
        Ok(Greeting { key, hello, leftover, stream })
    }
}

/// A client that has said who it is and which session it wants.
struct Greeting {
    key: PublicKey,
    hello: Hello,
    leftover: Vec<u8>,
    stream: TlsStream,
}
