//! Deletes entries from the kernel's connection tracking table.

use std::net::IpAddr;

use mobile_netlink::netfilter::{self, ConntrackEntry};
use tracing::{info, warn};

/// Deletes the connections from and to these addresses from the kernel's connection tracking table,
/// so that the next holder of an address inherits none.
pub(crate) fn delete_connections(addresses: &[IpAddr]) {
    if addresses.is_empty() {
        return;
    }
    delete_connections_where(|connection| connection.involves(|address| addresses.contains(&address)));
}

/// Deletes the connections that `is_over` selects from the kernel's connection tracking table.
pub(crate) fn delete_connections_where(is_over: impl Fn(&ConntrackEntry) -> bool) {
    match netfilter::delete_connections(is_over) {
        Ok(0) => {}
        Ok(connections) => {
            info!(connections, "deleted tracked connections of addresses that changed their holder");
        }
        Err(error) => warn!(
            "cannot delete the tracked connections of former clients, which time out within days: {error}; \
             `conntrack -F` deletes all connections"
        ),
    }
}

/// Runs `work`, which deletes tracked connections, on a blocking thread: the connection tracking
/// table may be large, and packets must not wait for it.
pub(crate) async fn delete_in_background(work: impl FnOnce() + Send + 'static) {
    let _ = tokio::task::spawn_blocking(work).await;
}
