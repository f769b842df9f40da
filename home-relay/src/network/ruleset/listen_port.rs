//! The exemption of connections to the relay's own port from connection tracking.

use std::net::SocketAddr;

use super::chain::family;
use crate::config::Tracking;

/// The address this relay listens on, and whether the kernel tracks connections to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenPort {
    pub(super) address: SocketAddr,
    pub(super) track: Tracking,
}

impl ListenPort {
    /// Returns the two rules (for incoming and outgoing packets) that exempt connections to the
    /// relay's port from connection tracking, or `None` if these are to be tracked. Without
    /// tracking, strangers' connections cannot fill the table that holds clients' NAT entries, and
    /// a full table keeps no client from connecting. Another firewall of the host may depend on
    /// tracking.
    pub(super) fn notrack_rules(&self, device: &str, has_firewall: bool) -> Option<(String, String)> {
        match self.track {
            Tracking::On => return None,
            Tracking::Auto if has_firewall => return None,
            Tracking::Auto | Tracking::Off => {}
        }
        let port = self.address.port();
        let (to, from) = match self.address.ip() {
            any if any.is_unspecified() => (String::new(), String::new()),
            one => {
                let (ip, _) = family(one);
                (format!("{ip} daddr {one} "), format!("{ip} saddr {one} "))
            }
        };
        // Packets from clients stay tracked: another table's rules may translate them.
        Some((
            format!("iifname != \"{device}\" {to}fib daddr type local tcp dport {port} notrack"),
            format!("oifname != \"{device}\" {from}tcp sport {port} notrack"),
        ))
    }
}
