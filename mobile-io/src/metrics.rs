//! Metrics over HTTP: `/metrics` for Prometheus, `/healthz` for whoever watches.

use std::io;
use std::net::SocketAddr;

/// A running metrics server; stops when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}")]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// Serves `gather`'s text at `/metrics` and `healthy`'s verdict at `/healthz`.
///
/// # Errors
/// When the address is busy or not ours.
pub fn serve(
    _listen: SocketAddr,
    _gather: impl Fn() -> String + Send + Sync + 'static,
    _healthy: impl Fn() -> Result<(), String> + Send + Sync + 'static,
) -> Result<Server, MetricsError> {
    unimplemented!()
}

/// The text format 0.0.4 of everything in the registry.
#[must_use]
pub fn encode(_registry: &prometheus::Registry) -> String {
    unimplemented!()
}

impl Server {
    /// Where it listens (the port is known even if 0 was asked for).
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}
