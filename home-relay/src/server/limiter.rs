//! Decides whether a connection may begin its handshake, before anything is spent on it. Pure: the
//! time is an argument.
//!
//! The cost is in TLS (four elliptic-curve operations, some 0.3 ms). A source from which a client
//! has authenticated is *known* for a day; other sources are *strangers*. All strangers together
//! have a rate of handshakes. Each source (an IPv4 address or an IPv6 /64) has a rate of its own
//! and a maximum number of half-open connections, and all connections together have such a maximum.
//! The section `[limits]` sets them. A known source does not share the strangers' rate, has a
//! higher rate of its own, and a quarter of the half-open connections is reserved for known
//! sources. A flood therefore costs clients at unknown addresses a few attempts, and clients at
//! known addresses nothing. A client that abuses this has at most four known sources, and each can
//! hold only a part of the reserve.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mobile_transport::keys::PublicKey;

use self::known_sources::KnownSources;
use crate::config::Limits;
use crate::metrics::HandshakeResult;

mod known_sources;

/// The burst of one source: its rate of handshakes multiplied by this time may come at once. At 10
/// per second, these are the hundred clients behind one NAT that return when the relay restarts.
const SOURCE_BURST: Duration = Duration::from_secs(10);
/// The burst of all unknown sources together: their rate multiplied by this time may come at once.
/// The time is short, because many handshakes at once delay everybody.
const ALL_BURST: Duration = Duration::from_secs(1);
/// The factor by which the handshake limits of a known source (an office, a home, a carrier's NAT)
/// exceed those of an unknown one.
const KNOWN_FACTOR: u32 = 10;
/// The divisor of `[limits] half_open` that gives the largest number of half-open connections of
/// one source, known or not. An eighth is half of the reserve for known sources, and enough for a
/// hundred clients behind one NAT.
const SOURCE_SHARE: usize = 8;
/// The largest number of sources in the limiter's table: at some 80 bytes an entry, 1 MiB at worst.
/// An unknown source without an entry is still held to the limit of all unknown sources, so filling
/// the table gains an attacker nothing.
const MAX_SOURCES: usize = 8 * 1024;
/// The shortest time between two removals of old entries from a full table of sources, because each
/// of them visits every entry.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The handshake limiter, shared because a reload changes its limits.
pub(super) type SharedLimiter = Arc<Mutex<HandshakeLimiter>>;

/// The limits on handshakes, and the state of every source address that they apply to.
#[derive(Debug)]
pub(crate) struct HandshakeLimiter {
    limits: Limits,
    half_open: usize,
    strangers: TokenBucket,
    sources: HashMap<IpAddr, SourceState>,
    known: KnownSources,
    swept: Option<Instant>,
}

#[derive(Debug, Default)]
struct SourceState {
    half_open: usize,
    bucket: TokenBucket,
}

/// The permit of an admitted connection, to be returned with [`HandshakeLimiter::end`].
#[derive(Debug)]
#[must_use]
pub(crate) struct HandshakePermit {
    source: IpAddr,
    tracked: bool,
}

impl HandshakeLimiter {
    /// Creates a limiter that has seen no source.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            half_open: 0,
            strangers: TokenBucket::default(),
            sources: HashMap::new(),
            known: KnownSources::default(),
            swept: None,
        }
    }

    /// Replaces the limits; connections in their handshake are not affected.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Returns the time in which a handshake must complete.
    pub(crate) fn handshake_timeout(&self) -> Duration {
        self.limits.handshake_timeout
    }

    /// Admits a connection from `address` to its handshake; an error is the reason for refusing it.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        address: IpAddr,
    ) -> Result<HandshakePermit, HandshakeResult> {
        let source = source_of(address);
        let known = self.known.contains(now, source);
        let factor = if known { KNOWN_FACTOR } else { 1 };
        let limits = &self.limits;
        // The last quarter is reserved for known sources.
        let room = if known { limits.half_open } else { limits.half_open - limits.half_open / 4 };
        if self.half_open >= room {
            return Err(HandshakeResult::Busy);
        }
        let (rate, rate_all) =
            (limits.handshake_rate_per_source.saturating_mul(factor), limits.handshake_rate);
        let half_open = limits.half_open_per_source.saturating_mul(factor as usize);
        let half_open = half_open.min((limits.half_open / SOURCE_SHARE).max(1));
        let tracked = self.has_room(now, source);
        let mut fresh = SourceState::default();
        let entry = if tracked { self.sources.entry(source).or_default() } else { &mut fresh };
        if entry.half_open >= half_open {
            return Err(HandshakeResult::SourceBusy);
        }
        let bucket = entry.bucket.take(now, rate, SOURCE_BURST).ok_or(HandshakeResult::SourceRate)?;
        if !known {
            // Take from the shared rate last, so that sources over their own rate do not use it up.
            self.strangers = self.strangers.take(now, rate_all, ALL_BURST).ok_or(HandshakeResult::Rate)?;
        }
        entry.bucket = bucket;
        entry.half_open += 1;
        self.half_open += 1;
        Ok(HandshakePermit { source, tracked })
    }

    /// Takes back the permit of a handshake that has ended, successfully or not.
    pub(crate) fn end(&mut self, permit: &HandshakePermit) {
        self.half_open = self.half_open.saturating_sub(1);
        if permit.tracked
            && let Some(entry) = self.sources.get_mut(&permit.source)
        {
            entry.half_open = entry.half_open.saturating_sub(1);
        }
    }

    /// Records that a client authenticated with the authorised `key` from `address`, whose source
    /// is now known.
    pub(crate) fn record_proof(&mut self, now: Instant, key: PublicKey, address: IpAddr) {
        self.known.record_proof(now, key, source_of(address));
    }

    /// Forgets a revoked key: sources from which only this key was authenticated are no longer
    /// known.
    pub(crate) fn forget(&mut self, key: &PublicKey) {
        self.known.forget(key);
    }

    /// Returns whether `source` has an entry in the table of sources or can get one.
    fn has_room(&mut self, now: Instant, source: IpAddr) -> bool {
        let Self { sources, swept, .. } = self;
        if sources.len() >= MAX_SOURCES && !sources.contains_key(&source) && sweep_is_due(swept, now) {
            // A new source begins with a full bucket, so forgetting a full one loses nothing.
            sources.retain(|_, entry| entry.half_open > 0 || !entry.bucket.is_full(now));
        }
        sources.len() < MAX_SOURCES || sources.contains_key(&source)
    }
}

fn sweep_is_due(last: &mut Option<Instant>, now: Instant) -> bool {
    let due = last.is_none_or(|last| now.saturating_duration_since(last) >= SWEEP_INTERVAL);
    if due {
        *last = Some(now);
    }
    due
}

/// Returns the source that an address counts as: one IPv4 address, or an IPv6 /64, which is the
/// smallest block that a customer has.
fn source_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << 64))),
    }
}

/// A token bucket, stored as the time at which it is full again (the generic cell rate algorithm).
#[derive(Debug, Clone, Copy, Default)]
struct TokenBucket(Option<Instant>);

impl TokenBucket {
    /// Returns the bucket after taking one token, or `None` if it is empty; `rate` is per second,
    /// and `burst` is the time in which an empty bucket fills.
    fn take(self, now: Instant, rate: u32, burst: Duration) -> Option<Self> {
        let missing = self.0.map_or(Duration::ZERO, |full| full.saturating_duration_since(now));
        let missing = missing + Duration::from_secs(1) / rate.max(1);
        (missing <= burst).then(|| Self(now.checked_add(missing)))
    }

    fn is_full(self, now: Instant) -> bool {
        self.0.is_none_or(|full| full <= now)
    }
}

#[cfg(test)]
mod tests;
