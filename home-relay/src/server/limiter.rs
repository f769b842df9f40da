//! Who may begin a handshake now: decided before anything is spent on it. Pure; time is an argument.
//!
//! What costs is TLS (four operations on curves, some 0.3 ms), so strangers together have a rate, each source address a
//! rate of its own, and both a number of connections that may be half open. A source from which a client has proved an
//! authorised key is *known* for a day: it does not share the strangers' rate, has more of its own, and a part of the
//! half-open connections is kept for such. So a flood costs the strangers among the clients a few attempts, and the
//! others nothing. A client that abuses this has few known sources, and each has a part of what is kept.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use mobile_io::keys::PublicKey;

use self::known::Known;
use crate::config::Limits;
use crate::metrics::Handshake;

mod known;

/// A source may use up so much of its rate at once: with 10 a second a hundred clients behind one NAT, that all come
/// back when the relay was restarted.
const SOURCE_BURST: Duration = Duration::from_secs(10);
/// All strangers together: little, because this many handshakes at once are a pause for everybody.
const ALL_BURST: Duration = Duration::from_secs(1);
/// A client was here: an office, a home, a carrier's NAT. Its limits are so many times a stranger's.
const KNOWN_FACTOR: u32 = 10;
/// So much of all half-open connections is a single source's at most, known or not: half of what is kept for the known
/// ones, and room for the hundred clients behind one NAT.
const SOURCE_SHARE: usize = 8;
/// With some 80 bytes an entry, 1 MiB at worst. A source that finds no room is held to the limits of all alone, so nobody
/// is forgiven by being displaced.
const MAX_SOURCES: usize = 8 * 1024;
/// A full table is swept this often at most: a sweep looks at all of it.
const SWEEP: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Limiter {
    limits: Limits,
    half_open: usize,
    strangers: Bucket,
    sources: HashMap<IpAddr, Source>,
    known: Known,
    swept: Option<Instant>,
}

#[derive(Debug, Default)]
struct Source {
    half_open: usize,
    bucket: Bucket,
}

/// A connection that was let in; to be given back.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ticket {
    source: IpAddr,
    tracked: bool,
}

impl Limiter {
    /// With nothing seen yet.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            half_open: 0,
            strangers: Bucket::default(),
            sources: HashMap::new(),
            known: Known::default(),
            swept: None,
        }
    }

    /// Other limits from now on; what is under way stays.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// How long a handshake may take.
    pub(crate) fn handshake_timeout(&self) -> Duration {
        self.limits.handshake_timeout()
    }

    /// May a connection from `address` begin its handshake? If not, how to count it.
    pub(crate) fn admit(&mut self, now: Instant, address: IpAddr) -> Result<Ticket, Handshake> {
        let source = source_of(address);
        let known = self.known.contains(now, source);
        let factor = if known { KNOWN_FACTOR } else { 1 };
        let limits = &self.limits;
        // The last quarter is for those who are known.
        let room = if known { limits.half_open } else { limits.half_open - limits.half_open / 4 };
        if self.half_open >= room {
            return Err(Handshake::Busy);
        }
        let (rate, rate_all) =
            (limits.handshake_rate_per_source.saturating_mul(factor), limits.handshake_rate);
        let half_open = limits.half_open_per_source.saturating_mul(factor as usize);
        let half_open = half_open.min((limits.half_open / SOURCE_SHARE).max(1));
        let tracked = self.has_room(now, source);
        let mut fresh = Source::default();
        let entry = if tracked { self.sources.entry(source).or_default() } else { &mut fresh };
        if entry.half_open >= half_open {
            return Err(Handshake::SourceBusy);
        }
        let taken = entry.bucket.taken(now, rate, SOURCE_BURST).ok_or(Handshake::SourceRate)?;
        if !known {
            // Only now, so that those who are over their own rate do not use up the others'.
            self.strangers = self.strangers.taken(now, rate_all, ALL_BURST).ok_or(Handshake::Rate)?;
        }
        entry.bucket = taken;
        entry.half_open += 1;
        self.half_open += 1;
        Ok(Ticket { source, tracked })
    }

    /// The handshake has ended, one way or another.
    pub(crate) fn end(&mut self, ticket: &Ticket) {
        self.half_open = self.half_open.saturating_sub(1);
        if ticket.tracked
            && let Some(entry) = self.sources.get_mut(&ticket.source)
        {
            entry.half_open = entry.half_open.saturating_sub(1);
        }
    }

    /// A client proved `key`, which is authorised, from `address`.
    pub(crate) fn proved(&mut self, now: Instant, key: PublicKey, address: IpAddr) {
        self.known.proved(now, key, source_of(address));
    }

    /// `key` was revoked: where it was proved, it makes nobody known any more.
    pub(crate) fn forget(&mut self, key: &PublicKey) {
        self.known.forget(key);
    }

    /// Whether `source` has an entry or may have one.
    fn has_room(&mut self, now: Instant, source: IpAddr) -> bool {
        let Self { sources, swept, .. } = self;
        if sources.len() >= MAX_SOURCES && !sources.contains_key(&source) && is_due(swept, now) {
            // A full bucket is what a source begins with: to forget it forgives nothing.
            sources.retain(|_, entry| entry.half_open > 0 || !entry.bucket.is_full(now));
        }
        sources.len() < MAX_SOURCES || sources.contains_key(&source)
    }
}

fn is_due(last: &mut Option<Instant>, now: Instant) -> bool {
    let due = last.is_none_or(|last| now.saturating_duration_since(last) >= SWEEP);
    if due {
        *last = Some(now);
    }
    due
}

/// One IPv4 address; of IPv6 the /64, which is what the smallest customer has, to choose from as it likes.
fn source_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << 64))),
    }
}

/// A token bucket, by the time at which it is full again (the generic cell rate algorithm).
#[derive(Debug, Clone, Copy, Default)]
struct Bucket(Option<Instant>);

impl Bucket {
    /// What is left when one is taken; `None` when there is none. `rate` a second, `burst` of it at once.
    fn taken(self, now: Instant, rate: u32, burst: Duration) -> Option<Self> {
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
