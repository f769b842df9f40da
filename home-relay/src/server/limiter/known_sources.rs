//! The known sources: the addresses from which a client authenticated with an authorised key within
//! a day. The number of sources per key is bounded, and revoking a key forgets its sources.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mobile_transport::keys::PublicKey;

use super::sweep_is_due;

/// How long a source stays known after a client authenticated from it, because a laptop is back at
/// the same places the next day.
pub(super) const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);
/// The number of latest source addresses remembered per key: home, work, a telephone, one on the
/// way. The number is bounded because an IPv6 customer may have a /48 to connect from.
pub(super) const MAX_PER_KEY: usize = 4;
/// The largest number of remembered pairs of a key and a source from which it authenticated: at
/// some 300 bytes each, 5 MiB at worst.
pub(super) const MAX_KNOWN: usize = 16 * 1024;

/// The table of known sources, indexed by the client's key and by source.
#[derive(Debug, Default)]
pub(super) struct KnownSources {
    /// The latest sources from which each key was authenticated, with the times, the oldest first.
    proofs: HashMap<PublicKey, Vec<Proof>>,
    /// The known sources, each with the time of its latest authentication.
    sources: HashMap<IpAddr, KnownSource>,
    /// The number of pairs of a key and a source in `proofs`.
    count: usize,
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Proof {
    source: IpAddr,
    at: Instant,
}

#[derive(Debug)]
struct KnownSource {
    last: Instant,
    /// The number of keys that were authenticated from this source.
    keys: usize,
}

impl KnownSources {
    pub(super) fn contains(&self, now: Instant, source: IpAddr) -> bool {
        self.sources.get(&source).is_some_and(|known| is_fresh(now, known.last))
    }

    /// Records that a client authenticated with `key` from `source`, displacing the oldest source
    /// of the same key if the key has too many.
    pub(super) fn record_proof(&mut self, now: Instant, key: PublicKey, source: IpAddr) {
        if self.count >= MAX_KNOWN && sweep_is_due(&mut self.swept, now) {
            self.retain(|_, proof| is_fresh(now, proof.at));
        }
        let proofs = self.proofs.entry(key).or_default();
        let same = proofs.iter().position(|proof| proof.source == source);
        let displaced = same.or((proofs.len() >= MAX_PER_KEY).then_some(0)).map(|at| proofs.remove(at));
        if displaced.is_none() && self.count >= MAX_KNOWN {
            if proofs.is_empty() {
                self.proofs.remove(&key);
            }
            return;
        }
        proofs.push(Proof { source, at: now });
        self.add_proof(Proof { source, at: now });
        if let Some(displaced) = displaced {
            self.remove_proof(displaced);
        }
    }

    /// Forgets all source addresses from which the holder of a now revoked key has authenticated.
    pub(super) fn forget(&mut self, key: &PublicKey) {
        if self.proofs.contains_key(key) {
            self.retain(|other, _| other != key);
        }
    }

    fn retain(&mut self, is_kept: impl Fn(&PublicKey, &Proof) -> bool) {
        self.proofs.retain(|key, proofs| {
            proofs.retain(|proof| is_kept(key, proof));
            !proofs.is_empty()
        });
        self.sources.clear();
        self.count = 0;
        let remaining: Vec<Proof> = self.proofs.values().flatten().copied().collect();
        remaining.into_iter().for_each(|proof| self.add_proof(proof));
    }

    fn add_proof(&mut self, Proof { source, at }: Proof) {
        let known = self.sources.entry(source).or_insert(KnownSource { last: at, keys: 0 });
        known.last = known.last.max(at);
        known.keys += 1;
        self.count += 1;
    }

    fn remove_proof(&mut self, Proof { source, .. }: Proof) {
        self.count -= 1;
        if let Some(known) = self.sources.get_mut(&source) {
            known.keys -= 1;
            if known.keys == 0 {
                self.sources.remove(&source);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.count, self.proofs.values().map(Vec::len).sum::<usize>());
        assert_eq!(self.count, self.sources.values().map(|known| known.keys).sum::<usize>());
        self.count
    }
}

fn is_fresh(now: Instant, at: Instant) -> bool {
    now.saturating_duration_since(at) < KNOWN_FOR
}
