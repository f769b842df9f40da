//! The relay over each uplink: TCP, TLS and both keys, as the agent does it; no session is begun.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mobile_io::keys::PrivateKey;
use mobile_io::tls::{self, TlsStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::RelayIdentity;
use crate::tunnel::cause::Failure;
use crate::tunnel::connect::Dialer;
use crate::uplinks::policy::{Families, Uplink, serves};

/// How long each step may take: a satellite's round trip, three times repeated; and a person waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of it.
pub(super) type Outcome = Result<Reached, Failure>;

/// Both keys are proved and accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reached {
    /// The relay's address.
    pub(super) address: SocketAddr,
    /// How long it took.
    pub(super) took: Duration,
}

/// The addresses of `host:port`.
pub(crate) async fn resolve(endpoint: &str) -> Result<Vec<SocketAddr>, String> {
    match tokio::time::timeout(PATIENCE, tokio::net::lookup_host(endpoint)).await {
        Ok(Ok(found)) => Some(found.collect::<Vec<_>>()).filter(|found| !found.is_empty()).ok_or_else(|| {
            // An answer without addresses.
            "it has no address".to_owned()
        }),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the resolver does not answer".to_owned()),
    }
}

/// Tries every uplink at once.
pub(super) async fn over_each(
    uplinks: &[&Uplink],
    families: Families,
    relay: &RelayIdentity,
    key: &PrivateKey,
) -> Vec<(String, Outcome)> {
    let dialer = Arc::new(Dialer::new(relay, key));
    join_all(uplinks.iter().map(|uplink| {
        let dialer = Arc::clone(&dialer);
        async move { (uplink.name.clone(), over(dialer, uplink, families).await) }
    }))
    .await
}

async fn over(dialer: Arc<Dialer>, uplink: &Uplink, families: Families) -> Outcome {
    let begun = Instant::now();
    let connecting = Arc::clone(&dialer).connect(uplink.name.clone(), serves(uplink, families), PATIENCE);
    let connected = connecting.await?;
    is_accepted(connected.stream, &dialer).await?;
    Ok(Reached { address: connected.remote, took: begun.elapsed() })
}

/// The client's side of TLS 1.3 ends before the relay has looked at its key. So we say goodbye and listen: a relay that
/// accepts the key closes the connection, one that does not says so first.
async fn is_accepted(mut stream: TlsStream, dialer: &Dialer) -> Result<(), Failure> {
    // If it has closed already, what it said is still there to be read.
    let _ = stream.shutdown().await;
    match tokio::time::timeout(PATIENCE, stream.read(&mut [0; 64])).await {
        Err(_) => Err(Failure::timeout("whether it accepts this host's key")),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
        Ok(Err(error)) => Err(Failure::tls(&tls::classify(&error), dialer.own_key())),
    }
}
