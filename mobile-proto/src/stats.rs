//! What a session and its paths count.

use std::time::{Duration, Instant};

/// Counters of one session, since it was made. Lost and dropped packets are counted once, where
/// it was decided: the receiver's `lost` is exact, the sender's `given_up` an upper bound of it
/// (the peer may have received what it could not acknowledge any more).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets accepted from the TUN.
    pub enqueued_packets: u64,
    /// Their bytes.
    pub enqueued_bytes: u64,
    /// Records sent for the first time.
    pub tx_packets: u64,
    /// Their bytes, without headers.
    pub tx_bytes: u64,
    /// Records sent again after a path switch.
    pub replayed_packets: u64,
    /// Their bytes, without headers.
    pub replayed_bytes: u64,
    /// Bytes of packets that were compressed to be sent, replayed ones included.
    pub tx_compressible_bytes: u64,
    /// What they became.
    pub tx_compressed_bytes: u64,
    /// Bytes of packets that came compressed.
    pub rx_compressible_bytes: u64,
    /// What they came as.
    pub rx_compressed_bytes: u64,
    /// Records acknowledged by the peer.
    pub acked_packets: u64,
    /// Packets delivered, in order, once each.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Records received again and dropped by their number.
    pub duplicates: u64,
    /// Packets that arrived and were dropped because they would be cut into more segments, or more
    /// small ones, than a peer may cause.
    pub dropped_segments: u64,
    /// Records that the peer gave up before they arrived here.
    pub lost: u64,
    /// Records sent once, then given up unacknowledged because they were too old.
    pub given_up: u64,
    /// Packets dropped because the queue was full.
    pub dropped_queue_full: u64,
    /// Packets dropped in an outage because a newer one needed the room: none of a known TCP flow.
    pub dropped_displaced: u64,
    /// Packets dropped in an outage because their data was held already.
    pub dropped_duplicate: u64,
    /// Packets dropped because their flow sends faster than the path takes it: no loss but a sign to their sender, which
    /// any slow link gives.
    pub dropped_delayed: u64,
    /// Bare acknowledgements of inner TCP that were not sent because a later one of their flow came while they waited, which
    /// says all that they said: no loss.
    pub thinned: u64,
    /// Packets dropped because they waited too long for an active path.
    pub dropped_aged: u64,
    /// Packets refused because they are longer than any packet may be, or empty.
    pub dropped_bad_length: u64,
    /// Acknowledgements made here for inner TCP senders in the name of the other end.
    pub local_answers: u64,
    /// ACK frames sent.
    pub acks_sent: u64,
    /// ACK frames received.
    pub acks_received: u64,
    /// Times that transmission moved to another path.
    pub switches: u64,
    /// ACTIVATE frames ignored because a later one was already known.
    pub stale_activates: u64,
    /// Frames ignored because they were written, in haste, for a former epoch of the relay.
    pub stale_frames: u64,
    /// Times that the relay did not know the session any more and records were numbered anew.
    pub renumbered: u64,
    /// Paths closed because of what the peer sent.
    pub protocol_errors: u64,
    /// Bytes that came for a path that was no longer open, ignored.
    pub stray_bytes: u64,
    /// Frames of a later version, skipped.
    pub skipped_frames: u64,
    /// Times that an answer was overdue on a path and it was tried.
    pub liveness_probes: u64,
    /// Times that a path was suspected to be dead.
    pub unresponsive: u64,
}

impl Stats {
    /// Packets lost on this side, but for those that told their sender to slow down, and those whose data was held already.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let full = self.dropped_queue_full + self.dropped_displaced;
        self.given_up + full + self.dropped_aged + self.dropped_bad_length
    }
}

/// Counters and state of one path.
#[derive(Clone, Debug, PartialEq)]
pub struct PathStats {
    /// Whether WELCOME has passed.
    pub ready: bool,
    /// Whether it carries the inner packets.
    pub active: bool,
    /// Whether it is suspected to be dead.
    pub unresponsive: bool,
    /// Whether both ends compress what is worth it.
    pub compression: bool,
    /// Plaintext bytes sent, headers included.
    pub tx_bytes: u64,
    /// Records sent, replayed ones included.
    pub tx_packets: u64,
    /// Plaintext bytes received, headers included.
    pub rx_bytes: u64,
    /// Records delivered that came this way.
    pub rx_packets: u64,
    /// Records sent on it for the second time or more.
    pub replayed_packets: u64,
    /// Records that came this way and were known already.
    pub duplicates: u64,
    /// The smoothed round-trip time, once it was measured: the transport's own where it is known.
    pub srtt: Option<Duration>,
    /// How much it varies, by the transport's own measure.
    pub rttvar: Option<Duration>,
    /// The share of the segments sent that were repeats, over the path's life.
    pub loss: Option<f64>,
    /// When the path was opened.
    pub opened: Instant,
    /// When anything was last received on it.
    pub last_heard: Option<Instant>,
}
