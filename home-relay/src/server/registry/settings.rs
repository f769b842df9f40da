//! The settings that all sessions have in common.

use std::time::Duration;

use mobile_proto::{Limits, PushConfig};

use crate::config::Config;
use crate::pool::Lease;
use crate::reach::Reach;

/// The settings of every session; a reload applies them to running sessions too.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The configuration pushed to every client, without the client's own addresses.
    pub(crate) push: PushConfig,
    /// The capacity of a client's packet queue, in bytes.
    pub(crate) queue_bytes: usize,
    /// Whether packets are compressed for clients that ask for it.
    pub(crate) compression: bool,
    /// Whether packets are sent to a client in turns of its flows (FQ-CoDel), not in the order of
    /// arrival.
    pub(crate) fair: bool,
    /// How long a session without any path is kept.
    pub(crate) session_idle: Duration,
    /// Whether clients are kept from reaching each other.
    pub(crate) isolate: bool,
    /// The reach of clients without a reach of their own.
    pub(crate) reach: Reach,
}

impl Settings {
    /// Extracts the session settings from the configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            push: PushConfig {
                mtu: config.tunnel.mtu,
                dns: config.dns.servers.clone(),
                ..PushConfig::default()
            },
            queue_bytes: config.limits.queue_bytes,
            compression: config.tunnel.compression.is_on(),
            fair: config.tunnel.queue.is_fair(),
            session_idle: config.limits.session_idle,
            isolate: config.clients.isolate,
            reach: config.clients.reach(),
        }
    }

    /// Returns the configuration for the client that holds `lease`.
    pub(super) fn push_to(&self, lease: &Lease) -> PushConfig {
        PushConfig { ipv4: lease.ipv4, ipv6: lease.ipv6, ..self.push.clone() }
    }

    /// Returns the limits of new sessions.
    pub(super) fn limits(&self) -> Limits {
        Limits { compression: self.compression, fair: self.fair, ..Limits::default() }
    }
}
