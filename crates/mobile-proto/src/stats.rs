//! Counters of a session and its paths.

use std::time::{Duration, Instant};

// Larger than the bound: a flat table of independent counters.
/// Counters of one session since it was created.
///
/// A packet that was dropped is counted once, at the end that dropped it. The receiver's `lost` is
/// exact. The sender's `given_up` is an upper bound of it, because the peer may have received
/// records that it could not acknowledge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets accepted from the TUN.
    pub enqueued_packets: u64,
    /// Bytes of the packets accepted from the TUN.
    pub enqueued_bytes: u64,
    /// Records sent for the first time.
    pub tx_packets: u64,
    /// Bytes of the packets in the records sent for the first time: with the packets' IP headers,
    /// without the headers of the tunnel's frames, before compression.
    pub tx_bytes: u64,
    /// Records sent again after a path switch.
    pub replayed_packets: u64,
    /// Bytes of the packets in the records sent again, counted like [`tx_bytes`](Self::tx_bytes).
    pub replayed_bytes: u64,
    /// Bytes, before compression, of the packets sent in compressed form, replayed ones included.
    pub tx_compressible_bytes: u64,
    /// Bytes, after compression, of the packets sent in compressed form.
    pub tx_compressed_bytes: u64,
    /// Bytes, after decompression, of the packets received in compressed form.
    pub rx_compressible_bytes: u64,
    /// Bytes, before decompression, of the packets received in compressed form.
    pub rx_compressed_bytes: u64,
    /// Records acknowledged by the peer.
    pub acked_packets: u64,
    /// Packets delivered, in order, once each.
    pub rx_packets: u64,
    /// Bytes of the packets delivered.
    pub rx_bytes: u64,
    /// Records dropped because a record with the same number had already been received.
    pub duplicates: u64,
    /// Packets received and dropped because the kernel would have to cut them into more segments,
    /// or more small ones, than a peer may cause.
    pub dropped_segments: u64,
    /// Records that the peer gave up before they arrived here.
    pub lost: u64,
    /// Records sent once, then given up unacknowledged because they were too old.
    pub given_up: u64,
    /// Packets dropped because the queue was full.
    pub dropped_queue_full: u64,
    /// Packets dropped in an outage to make room for newer ones; none of them a segment of a
    /// tracked TCP flow.
    pub dropped_displaced: u64,
    /// Packets dropped in an outage because an earlier packet with the same data was already held.
    pub dropped_duplicate: u64,
    /// Packets dropped because their flow sends faster than the path carries it. This is no failure
    /// but a signal to the sender, as on any slow link.
    pub dropped_delayed: u64,
    /// Bare acknowledgements of inner TCP that were not sent, because a later one of their flow
    /// made them redundant while they waited. The later one acknowledges the same data.
    pub thinned: u64,
    /// Packets dropped because they waited too long for an active path.
    pub dropped_aged: u64,
    /// Packets refused because they were empty or longer than the maximum.
    pub dropped_bad_length: u64,
    /// Acknowledgements that this session sent to local TCP senders in the name of the other end.
    pub local_answers: u64,
    /// ACK frames sent to the peer.
    pub acks_sent: u64,
    /// ACK frames received from the peer.
    pub acks_received: u64,
    /// Number of times that transmission moved to another path.
    pub switches: u64,
    /// ACTIVATE frames ignored because a later one had already arrived.
    pub stale_activates: u64,
    /// Frames ignored because they were written early, for a former epoch of the relay.
    pub stale_frames: u64,
    /// Number of times that the relay no longer knew the session and the records were renumbered.
    pub renumbered: u64,
    /// Paths closed because of a protocol violation by the peer.
    pub protocol_errors: u64,
    /// Bytes ignored because they arrived for a path that was no longer open.
    pub stray_bytes: u64,
    /// Frames of a later version, skipped.
    pub skipped_frames: u64,
    /// Number of times that an answer was overdue on a path and probing started.
    pub liveness_probes: u64,
    /// Number of times that a path became unresponsive.
    pub unresponsive: u64,
}

impl Stats {
    /// Returns the number of packets lost on this side, without those dropped to slow their sender
    /// down and those whose data was already held.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let full = self.dropped_queue_full + self.dropped_displaced;
        self.given_up + full + self.dropped_aged + self.dropped_bad_length
    }
}

// Larger than the bound: a flat table of independent values, which a snapshot copies.
/// Counters and state of one path.
#[derive(Clone, Debug, PartialEq)]
pub struct PathStats {
    /// Whether WELCOME was received or sent.
    pub ready: bool,
    /// Whether the path carries the inner packets.
    pub active: bool,
    /// Whether the path is unresponsive.
    pub unresponsive: bool,
    /// Whether both ends agreed to compression.
    pub compression: bool,
    /// Plaintext bytes sent on the path (without the overhead of TLS), headers of frames included.
    pub tx_bytes: u64,
    /// Records sent, replayed ones included.
    pub tx_packets: u64,
    /// Plaintext bytes received on the path (without the overhead of TLS), headers of frames
    /// included.
    pub rx_bytes: u64,
    /// Records received on this path and delivered.
    pub rx_packets: u64,
    /// Records sent on this path that had been sent before.
    pub replayed_packets: u64,
    /// Records received on this path that had already arrived.
    pub duplicates: u64,
    /// The smoothed round-trip time, by the transport's own measure if available; `None` until it
    /// is measured.
    pub srtt: Option<Duration>,
    /// The variation of the round-trip time, by the transport's own measure; `None` without one.
    pub rttvar: Option<Duration>,
    /// Share of the segments sent that were retransmissions, over the path's life; `None` without
    /// transport samples.
    pub loss: Option<f64>,
    /// When the path was opened.
    pub opened: Instant,
    /// When data was last received on the path.
    pub last_heard: Option<Instant>,
}
