//! Checks whether the relay can be reached over each uplink: connects by TCP and TLS and verifies
//! the keys of both sides, as the agent does, but does not begin a session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mobile_transport::keys::PrivateKey;
use mobile_transport::tls::{self, TlsStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::tunnel::cause::Failure;
use crate::tunnel::connect::Dialer;
use crate::tunnel::known_relay::KnownRelay;
use crate::uplinks::policy::{Families, Uplink, reachable_families};

/// The timeout of each step of a connection attempt: long enough for several round trips over a
/// satellite, short enough for a person who waits.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of an attempt to reach the relay.
pub(super) type Outcome = Result<Reached, Failure>;

/// A successful attempt: both sides proved their keys and accepted the other's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reached {
    /// The address of the relay that answered.
    pub(super) address: SocketAddr,
    /// The duration of the attempt.
    pub(super) took: Duration,
}

/// The reason why the relay's name cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The look-up failed.
    #[error(transparent)]
    Lookup(#[from] std::io::Error),
    /// The resolver answered without an address.
    #[error("the name has no address")]
    NoAddress,
    /// The resolver did not answer in time.
    #[error("the resolver does not answer")]
    NoAnswer,
}

/// Resolves `host:port` to addresses.
pub(crate) async fn resolve(endpoint: &str) -> Result<Vec<SocketAddr>, ResolveError> {
    let looked_up = tokio::time::timeout(STEP_TIMEOUT, tokio::net::lookup_host(endpoint)).await;
    let addresses: Vec<_> = looked_up.map_err(|_| ResolveError::NoAnswer)??.collect();
    if addresses.is_empty() { Err(ResolveError::NoAddress) } else { Ok(addresses) }
}

/// Attempts to reach the relay over all uplinks concurrently. Returns the name of each uplink with
/// the result.
pub(super) async fn over_each(
    uplinks: &[&Uplink],
    families: Families,
    relay: &KnownRelay,
    key: &PrivateKey,
) -> Vec<(String, Outcome)> {
    let dialer = Arc::new(Dialer::new(relay.clone(), key));
    join_all(uplinks.iter().map(|uplink| {
        let dialer = Arc::clone(&dialer);
        async move { (uplink.name.clone(), over(dialer, uplink, families).await) }
    }))
    .await
}

async fn over(dialer: Arc<Dialer>, uplink: &Uplink, families: Families) -> Outcome {
    let begun = Instant::now();
    let connecting =
        Arc::clone(&dialer).connect(uplink.name.clone(), reachable_families(uplink, families), STEP_TIMEOUT);
    let connected = connecting.await?;
    is_accepted(connected.stream, &dialer).await?;
    Ok(Reached { address: connected.remote, took: begun.elapsed() })
}

/// Checks that the relay accepts this host's key.
///
/// In TLS 1.3 the client's handshake ends before the server has verified the client's certificate
/// (RFC 8446, section 4.4). So this function sends `close_notify` and reads: a relay that accepts
/// the key closes the connection, and a relay that refuses it sends an alert first.
async fn is_accepted(mut stream: TlsStream, dialer: &Dialer) -> Result<(), Failure> {
    // If the relay has closed the connection already, its alert can still be read.
    let _ = stream.shutdown().await;
    match tokio::time::timeout(STEP_TIMEOUT, stream.read(&mut [0; 64])).await {
        Err(_) => Err(Failure::timeout("whether it accepts this host's key")),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
        Ok(Err(error)) => Err(Failure::tls(&tls::classify(&error), &dialer.own_key())),
    }
}
