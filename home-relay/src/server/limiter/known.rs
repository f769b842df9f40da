//! The sources from which a client proved an authorised key within a day: few of each key, and none of a key that was
//! revoked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mobile_io::keys::PublicKey;

use super::is_due;

/// A laptop is back at the same places the next day.
pub(super) const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);
/// Of one key, the latest: home, work, a telephone, on the way. An IPv6 customer has a /48 to prove it from.
pub(super) const MAX_PER_KEY: usize = 4;
/// Of all keys together: with some 300 bytes each, 5 MiB at worst.
pub(super) const MAX_KNOWN: usize = 16 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Of each key, the one that was proved longest ago first.
    proofs: HashMap<PublicKey, Vec<Proof>>,
    /// The same by source.
    sources: HashMap<IpAddr, Source>,
    /// How many proofs there are.
    count: usize,
    swept: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Proof {
    source: IpAddr,
    at: Instant,
}

#[derive(Debug)]
struct Source {
    last: Instant,
    /// Keys that were proved from here.
    keys: usize,
}

impl Known {
    pub(super) fn contains(&self, now: Instant, source: IpAddr) -> bool {
        self.sources.get(&source).is_some_and(|known| is_fresh(now, known.last))
    }

    /// `key` was proved from `source`, which takes the place of the one that the same key left longest ago.
    pub(super) fn proved(&mut self, now: Instant, key: PublicKey, source: IpAddr) {
        if self.count >= MAX_KNOWN && is_due(&mut self.swept, now) {
            self.keep(|_, proof| is_fresh(now, proof.at));
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
        self.note(Proof { source, at: now });
        if let Some(displaced) = displaced {
            self.withdraw(displaced);
        }
    }

    /// `key` is no client's any more.
    pub(super) fn forget(&mut self, key: &PublicKey) {
        if self.proofs.contains_key(key) {
            self.keep(|other, _| other != key);
        }
    }

    fn keep(&mut self, which: impl Fn(&PublicKey, &Proof) -> bool) {
        self.proofs.retain(|key, proofs| {
            proofs.retain(|proof| which(key, proof));
            !proofs.is_empty()
        });
        self.sources.clear();
        self.count = 0;
        let left: Vec<Proof> = self.proofs.values().flatten().copied().collect();
        left.into_iter().for_each(|proof| self.note(proof));
    }

    fn note(&mut self, Proof { source, at }: Proof) {
        let known = self.sources.entry(source).or_insert(Source { last: at, keys: 0 });
        known.last = known.last.max(at);
        known.keys += 1;
        self.count += 1;
    }

    fn withdraw(&mut self, Proof { source, .. }: Proof) {
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
