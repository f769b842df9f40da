//! Transmission on a path, in this order: control frames, among them the answers to PINGs, an
//! acknowledgement, then records.

use std::time::Instant;

use super::Session;
use super::sender::Sender;
use super::side::Side;
use crate::compression::{self, Heuristic};
use crate::message::{self, VersionedConfig};
use crate::path::{Path, PathSide, PathState};
use crate::queue::Record;
use crate::{Limits, PathId, Stats, frame};

/// The size of a full TLS record in bytes (RFC 8446, 5.1). A path whose driver asks for fewer bytes
/// at a time is slow, because each write becomes one TLS record, and on a fast path a full one.
const FULL_TLS_RECORD: usize = 1 << 14;

/// How much a path may take from its session at a time, as the driver of its transport decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The number of bytes up to which records are written. A record that starts below is written
    /// completely; with 0 bytes, only frames are written that do not wait for records.
    pub bytes: usize,
    /// Whether the rate of the path is growing.
    ///
    /// Meanwhile no packet is dropped for its delay ([`Limits::target_delay`]), because the delay
    /// does not show that its sender is too fast.
    pub growing: bool,
}

impl Budget {
    /// Creates the budget of a path whose rate does not grow.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { bytes, growing: false }
    }
}

impl Session {
    /// Appends frames for a path until `out` has about as many bytes as the budget allows.
    ///
    /// With a budget below a full TLS record, an interactive flow is not written together with a
    /// bulk transfer, which would delay it.
    pub fn poll_transmit(&mut self, now: Instant, path: PathId, out: &mut Vec<u8>, budget: Budget) {
        let Some(index) = self.paths.find(path) else { return };
        let unanswered = self.is_unanswered(&self.paths[index]);
        let start = out.len();
        self.transmit_control(now, index, out);
        if self.paths[index].is_closing() {
            self.paths.remove(path);
            return;
        }
        if self.paths.is_active(path) {
            let records = budget.bytes > 0 && self.sender.can_send_record(&self.limits);
            self.receiver.put_ack(records || out.len() > start, out, &mut self.stats);
            // Before WELCOME, the answer to HELLO measures the RTT.
            if records && self.paths[index].is_ready() && self.paths[index].pings.needs_rtt(now) {
                self.paths[index].pings.put(now, out);
            }
            self.update_outage(now);
            let path = &mut self.paths[index];
            self.sender.queue.set_growing(budget.growing);
            self.sender.transmit(now, path, out, budget.bytes, &self.limits, &mut self.stats);
        }
        let written = out.len() - start;
        self.paths[index].stats.tx_bytes += written as u64;
        // The timeout starts with the first frame that is unanswered, not with later ones.
        if written > 0 && !unanswered && self.is_unanswered(&self.paths[index]) {
            self.paths[index].health.start_waiting(now);
        }
    }

    /// Returns whether there is something to send on a path.
    #[must_use]
    pub fn wants_transmit(&self, path: PathId) -> bool {
        let Some(index) = self.paths.find(path) else { return false };
        let path = &self.paths[index];
        path.has_control()
            || (self.paths.is_active(path.id)
                && (self.receiver.ack.is_due()
                    || self.sender.can_send_record(&self.limits)
                    || self.sender.pending_seq(path).is_some()))
    }

    fn transmit_control(&mut self, now: Instant, index: usize, out: &mut Vec<u8>) {
        let path = &mut self.paths[index];
        if !path.control.is_empty() {
            out.extend_from_slice(&path.control);
            // Control frames are rare, and a relay has many idle paths.
            path.control = Vec::new();
            if let PathSide::Client(client) = &mut path.side
                && path.state == PathState::Connecting
                && client.hello_sent_at.is_none()
            {
                path.health.start_waiting(now);
                client.hello_sent_at = Some(now);
            }
        }
        if !path.is_ready() {
            return;
        }
        if let (PathSide::Relay(path), Side::Relay(relay)) = (&mut path.side, &self.side)
            && std::mem::take(&mut path.config_due)
        {
            VersionedConfig::put(out, relay.config.version, &relay.config.config);
        }
        if let Some(nonce) = path.pings.pong_due.take() {
            message::put_nonce(out, frame::PONG, nonce);
        }
        if let PathSide::Relay(path) = &mut path.side
            && std::mem::take(&mut path.doubt_due)
        {
            frame::put(out, frame::DOUBT, &[]);
        }
        if path.pings.due {
            path.pings.put(now, out);
        }
    }
}

impl Sender {
    /// Appends records for the active path until about `limit` bytes are in `out`, then SEQ if no
    /// record shows the peer which number is next.
    fn transmit(
        &mut self,
        now: Instant,
        path: &mut Path,
        out: &mut Vec<u8>,
        limit: usize,
        limits: &Limits,
        stats: &mut Stats,
    ) {
        while out.len() < limit && self.transmit_record(now, path, out, limits, stats) {
            // The peer can decrypt none of a TLS record before it has all of it, so a keystroke is
            // sent without the bulk data after it. Retransmitted records have no turns.
            if limit < FULL_TLS_RECORD && !self.replay.has_next() && self.queue.is_turn_over() {
                break;
            }
        }
        if let Some(number) = self.pending_seq(path) {
            path.put_seq(number, out);
        }
    }

    /// Writes the next record: the oldest that the active path has not carried yet. Returns false
    /// if there is none.
    fn transmit_record(
        &mut self,
        now: Instant,
        path: &mut Path,
        out: &mut Vec<u8>,
        limits: &Limits,
        stats: &mut Stats,
    ) -> bool {
        if let Some((number, record)) = self.replay.next() {
            path.stats.replayed_packets += 1;
            stats.replayed_packets += 1;
            stats.replayed_bytes += record.packet.len() as u64;
            put_record(path, &mut self.heuristic, stats, (number, record), out);
            return true;
        }
        let room = self.replay_room(limits);
        let popped = self.queue.pop(now, room, |record| {
            stats.dropped_delayed += 1;
            self.buffers.recycle(record.packet);
        });
        let Some(record) = popped else { return false };
        stats.tx_packets += 1;
        stats.tx_bytes += record.packet.len() as u64;
        let sent = self.replay.push_sent(record);
        put_record(path, &mut self.heuristic, stats, sent, out);
        true
    }

    fn can_send_record(&self, limits: &Limits) -> bool {
        self.replay.has_next() || self.can_send_new(limits)
    }

    /// Returns whether a new record can be sent. New records wait while the replay buffer is full;
    /// an empty one accepts a record of any size.
    fn can_send_new(&self, limits: &Limits) -> bool {
        self.queue.next_cost().is_some_and(|cost| cost <= self.replay_room(limits))
    }

    fn replay_room(&self, limits: &Limits) -> usize {
        if self.replay.is_empty() {
            usize::MAX
        } else {
            limits.replay_bytes.saturating_sub(self.replay.cost())
        }
    }

    /// Returns the record number to send in SEQ although no record follows, so that the peer counts
    /// the records given up before it as lost even if nothing else is sent for long.
    fn pending_seq(&self, path: &Path) -> Option<u64> {
        self.replay.gap().filter(|&number| path.tx.number < Some(number))
    }
}

/// Writes a record to a path, compressed if both ends agreed to it and the heuristic expects a
/// gain.
fn put_record(
    path: &mut Path,
    heuristic: &mut Heuristic,
    stats: &mut Stats,
    (number, record): (u64, &Record),
    out: &mut Vec<u8>,
) {
    let (bucket, length) = (record.bucket(), record.packet.len());
    let compress = path.tx.compression.is_on()
        && length >= compression::MIN_LENGTH
        && heuristic.should_compress(bucket, length);
    if let Some(compressed) = path.put_record(number, record.packet(), compress, out) {
        heuristic.observe(bucket, length, compressed);
        stats.tx_compressible_bytes += length as u64;
        stats.tx_compressed_bytes += compressed as u64;
    }
}
