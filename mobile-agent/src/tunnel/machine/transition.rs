//! The transition of the session from one path to the next: its cause, the time without a path, and
//! the packets that this host dropped meanwhile.

use std::time::{Duration, Instant};

use super::action::Handover;
use crate::tunnel::cause::HandoverCause;

/// A period during which no path works.
#[derive(Debug, Clone)]
pub(super) struct Outage {
    pub(super) cause: HandoverCause,
    from: String,
    pub(super) since: Instant,
}

/// An outage or a handover that is in progress, if there is one.
#[derive(Debug, Default)]
pub(super) struct Transition {
    /// The current outage. It ends when the relay answers on a path.
    pub(super) outage: Option<Outage>,
    /// The cause and the old uplink of a handover away from a path that still works.
    pub(super) planned: Option<(HandoverCause, String)>,
    /// The number of packets that this host dropped since the last handover.
    dropped: u64,
}

impl Transition {
    /// Starts an outage. An outage that is in progress already keeps its cause and its beginning.
    pub(super) fn begin_outage(&mut self, cause: HandoverCause, from: &str, since: Instant) {
        self.planned = None;
        self.outage.get_or_insert_with(|| Outage { cause, from: from.to_owned(), since });
    }

    /// Adds packets that this host dropped.
    pub(super) fn count_dropped(&mut self, dropped: u64) {
        self.dropped += dropped;
    }

    /// Ends the outage or handover, because the relay has answered on a path of the uplink `to`.
    /// Returns `None` if nothing was interrupted, as by the first path of a run.
    pub(super) fn complete(&mut self, now: Instant, to: Option<String>, replayed: u64) -> Option<Handover> {
        let dropped = std::mem::take(&mut self.dropped);
        let (cause, from, blackout) = match (self.outage.take(), self.planned.take()) {
            (Some(outage), _) => (outage.cause, outage.from, now.saturating_duration_since(outage.since)),
            (None, Some((cause, from))) => (cause, from, Duration::ZERO),
            (None, None) => return None,
        };
        Some(Handover { cause, from, to: to?, blackout, replayed, dropped })
    }
}
