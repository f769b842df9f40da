//! The registry's entry of one client.

use std::sync::{self, Arc, PoisonError, RwLock};
use std::time::Instant;

use mobile_transport::keys::PublicKey;
use tokio::sync::Mutex;
use tracing::info;

use crate::pool::Lease;
use crate::server::queue::PacketQueue;
use crate::server::session::ActiveSession;
use crate::server::source_filter::OwnReach;
use crate::store::{Client, Confirmed};
use mobile_host::log_rate_limiter::LogRateLimiter;

/// An authorised client: its addresses, its packet queue and its session.
pub(super) struct ClientEntry {
    pub(super) name: String,
    pub(super) lease: Lease,
    keys: RwLock<ClientKeys>,
    /// The relay's announcement that the client has confirmed.
    pub(super) confirmation: sync::Mutex<Confirmation>,
    /// The client's own reach, if it has one.
    pub(super) reach: OwnReach,
    pub(super) queue: Arc<PacketQueue>,
    /// Locked while a session begins or ends, so that a client never has two sessions.
    pub(super) slot: Mutex<SessionSlot>,
    /// The log rate limit of this client's session and path events.
    log_limiter: sync::Mutex<LogRateLimiter>,
}

impl ClientEntry {
    /// Creates the entry of a client without a session; `lease` is what this host serves of the
    /// client's addresses, and `queue_bytes` the capacity of its packet queue.
    pub(super) fn new(client: &Client, lease: Lease, queue_bytes: usize) -> Self {
        Self {
            name: client.name.clone(),
            lease,
            keys: RwLock::new(ClientKeys::of(client)),
            confirmation: sync::Mutex::new(Confirmation::saved(client.confirmed.clone())),
            reach: Arc::new(RwLock::new(client.reach.clone())),
            queue: Arc::new(PacketQueue::new(queue_bytes)),
            slot: Mutex::default(),
            log_limiter: sync::Mutex::new(LogRateLimiter::new(MAX_LOG_LINES)),
        }
    }

    /// Returns the keys that the client may prove.
    pub(super) fn keys(&self) -> ClientKeys {
        *self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the keys that the client may prove. The registry's index has to follow.
    pub(super) fn set_keys(&self, keys: ClientKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Returns whether an event of this client may be logged; first logs how many were suppressed,
    /// if any.
    pub(super) fn may_log(&self) -> bool {
        let passed = self.log_limiter.lock().unwrap_or_else(PoisonError::into_inner).allow(Instant::now());
        if let Some(suppressed @ 1..) = passed {
            info!(
                client = self.name,
                suppressed, "suppressed log lines about the sessions and paths of this client"
            );
        }
        passed.is_some()
    }
}

/// The keys that a client may prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientKeys {
    pub(super) current: PublicKey,
    /// The key that replaces `current` once it has opened a session.
    pub(super) next: Option<PublicKey>,
}

impl ClientKeys {
    pub(super) fn of(client: &Client) -> Self {
        Self { current: client.public_key, next: client.next_key }
    }

    pub(super) fn all(self) -> impl Iterator<Item = PublicKey> {
        [self.current].into_iter().chain(self.next)
    }
}

/// The announcement that a client has confirmed last.
#[derive(Debug, Default)]
pub(super) struct Confirmation {
    pub(super) confirmed: Confirmed,
    /// Whether it is not in the store yet.
    pub(super) is_unsaved: bool,
}

impl Confirmation {
    pub(super) fn saved(confirmed: Confirmed) -> Self {
        Self { confirmed, is_unsaved: false }
    }
}

/// The session of a client, and whether the client may have one.
#[derive(Default)]
pub(super) struct SessionSlot {
    pub(super) revoked: bool,
    pub(super) active: Option<Arc<ActiveSession>>,
}

/// The largest number of log lines about one client in a period of the log rate limiter (10 s); a
/// laptop that moves makes three or four.
const MAX_LOG_LINES: u32 = 40;
