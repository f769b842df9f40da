//! The track record of each uplink: its failed connections, and the losses of its link.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::candidate::CandidatePath;
use super::damping::Damping;
use crate::tunnel::cause::Fault;

/// The track record of all uplinks.
#[derive(Debug)]
pub(super) struct TrackRecord {
    /// Returns a random number in 0..1, so that the retries of many agents spread out.
    jitter: fn() -> f64,
    /// The connection failures of each uplink on the network it is attached to.
    failures: BTreeMap<String, Damping>,
    /// The link losses of each uplink, which are kept when the uplink attaches to another network.
    flaps: BTreeMap<String, Damping>,
}

impl TrackRecord {
    pub(super) fn new(jitter: fn() -> f64) -> Self {
        Self { jitter, failures: BTreeMap::new(), flaps: BTreeMap::new() }
    }

    /// Forgets the failures of the uplinks that may be attached to another network now, and all
    /// link losses that are too old to matter.
    pub(super) fn networks_changed(&mut self, now: Instant, changed: &BTreeSet<String>) {
        // Failures on another network say nothing about this one.
        self.failures.retain(|name, _| !changed.contains(name));
        self.flaps.retain(|_, damping| !damping.is_expired(now));
    }

    /// Forgets what happened on an uplink.
    pub(super) fn forget(&mut self, uplink: &str) {
        self.failures.remove(uplink);
        self.flaps.remove(uplink);
    }

    /// Records a failed connection attempt or a lost path of an uplink.
    pub(super) fn failure(&mut self, now: Instant, uplink: &str, fault: Fault) {
        let jitter = (self.jitter)();
        self.failures.entry(uplink.to_owned()).or_default().record_failure(now, fault, jitter);
    }

    /// Records that the relay stopped answering on a path of an uplink.
    pub(super) fn silence(&mut self, now: Instant, uplink: &str) {
        self.failures.entry(uplink.to_owned()).or_default().record_silence(now);
    }

    /// Records that an uplink lost its link.
    pub(super) fn flap(&mut self, now: Instant, uplink: &str) {
        self.flaps.entry(uplink.to_owned()).or_default().record_flap(now);
    }

    /// Clears the failures of a path's uplink if the path has been healthy for long enough. Returns
    /// whether it has.
    pub(super) fn clear_failures_if_healthy(&mut self, now: Instant, path: &mut CandidatePath) -> bool {
        clear_if_healthy(&mut self.failures, now, path)
    }

    /// Clears the link losses of a path's uplink if the path has been healthy for long enough.
    /// Returns whether it has.
    pub(super) fn clear_flaps_if_healthy(&mut self, now: Instant, path: &mut CandidatePath) -> bool {
        clear_if_healthy(&mut self.flaps, now, path)
    }

    /// Returns the connection failures of an uplink.
    pub(super) fn failures(&self, uplink: &str) -> Option<&Damping> {
        self.failures.get(uplink)
    }

    /// Returns the uplinks that rank behind the others at present.
    pub(super) fn avoided(&self, now: Instant) -> impl Iterator<Item = &String> {
        let is_avoided = move |damping: &Damping| damping.avoided_until().is_some_and(|until| until > now);
        self.failures
            .iter()
            .chain(&self.flaps)
            .filter(move |(_, damping)| is_avoided(damping))
            .map(|(name, _)| name)
    }

    /// Returns until when each of the avoided uplinks ranks behind the others.
    pub(super) fn avoided_until(&self) -> impl Iterator<Item = Instant> {
        self.failures.values().chain(self.flaps.values()).filter_map(Damping::avoided_until)
    }
}

/// Removes the record of a path's uplink if the path has been healthy for long enough. Returns
/// whether it has.
///
/// Sets `healthy_since` of the path to `None`, so that each healthy period counts once.
fn clear_if_healthy(
    record: &mut BTreeMap<String, Damping>,
    now: Instant,
    candidate: &mut CandidatePath,
) -> bool {
    let Some(since) = candidate.healthy_since.take() else { return false };
    let life = now.saturating_duration_since(since);
    let good = record.entry(candidate.uplink.clone()).or_default().is_reset_by(life);
    if good {
        record.remove(&candidate.uplink);
    }
    good
}
