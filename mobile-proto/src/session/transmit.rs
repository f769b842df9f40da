//! Transmission on a path, in this order: control frames, among them the answers to PINGs, an
//! acknowledgement, then records.

use std::time::Instant;

use super::Session;
use crate::compression::{self, Heuristic};
use crate::message::{self, VersionedConfig, Welcome};
use crate::path::{Path, PathSide, PathState};
use crate::queue::Record;
use crate::{Limits, PathId, Stats, frame};

/// The size of a full TLS record in bytes (RFC 8446, 5.1). A path whose driver asks for fewer bytes
/// at a time is slow, because each write becomes one TLS record, and on a fast path a full one.
const FULL_TLS_RECORD: usize = 1 << 14;

/// State of the acknowledgement of received records. The acknowledgement is sent along with
/// anything else that is sent. Alone it is sent only after `ack_bytes` (so that the sender's replay
/// buffer drains during a bulk transfer) or after `ack_delay` (so that the last records of a burst
/// do not linger there).
#[derive(Debug, Default)]
pub(super) struct AckState {
    /// Whether anything was received since the last acknowledgement.
    pending: bool,
    /// Whether the acknowledgement has to be sent at once.
    now: bool,
    bytes: usize,
    due: Option<Instant>,
}

impl AckState {
    /// Records that a record of `bytes` was received.
    pub(super) fn received(&mut self, now: Instant, bytes: usize, limits: &Limits) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.now |= self.bytes >= limits.ack_bytes;
        self.schedule(now, limits);
    }

    /// Schedules an acknowledgement, which is also a sign of life, within [`Limits::ack_delay`].
    pub(super) fn schedule(&mut self, now: Instant, limits: &Limits) {
        self.pending = true;
        if self.due.is_none() {
            self.due = now.checked_add(limits.ack_delay);
        }
    }

    /// Requests that the acknowledgement is sent at once, because the peer waits for it.
    pub(super) fn send_now(&mut self) {
        (self.pending, self.now) = (true, true);
    }

    /// Records that the acknowledgement was sent.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Returns when the acknowledgement has to be sent; `None` if there is none to send or if it
    /// has to be sent at once.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.now { None } else { self.due }
    }

    fn is_due(&self) -> bool {
        self.pending && self.now
    }
}

impl Session {
    /// Appends frames for a path until about `limit` bytes are in `out`. A frame that starts below
    /// the limit is written completely.
    ///
    /// With a limit of 0 only frames are written that do not wait for records. With a limit below a
    /// full TLS record, an interactive flow is not written together with a bulk transfer, which
    /// would delay it.
    pub fn poll_transmit(&mut self, now: Instant, path: PathId, out: &mut Vec<u8>, limit: usize) {
        let Some(index) = self.find(path) else { return };
        let unanswered = self.is_unanswered(&self.paths[index]);
        let start = out.len();
        self.transmit_control(now, index, out);
        if self.paths[index].is_closing() {
            self.remove_path(path);
            return;
        }
        if self.active == Some(path) {
            let records = limit > 0 && self.can_send_record();
            if self.ack.pending && (self.ack.now || records || out.len() > start) {
                frame::put_number(out, frame::ACK, self.rx_next);
                self.stats.acks_sent += 1;
                self.ack.reset();
            }
            // Before WELCOME, the answer to HELLO measures the RTT.
            if records && self.paths[index].is_ready() && self.paths[index].pings.needs_rtt(now) {
                self.paths[index].pings.put(now, out);
            }
            self.update_outage(now);
            while out.len() < limit && self.transmit_record(now, index, out) {
                // The peer can decrypt none of a TLS record before it has all of it, so a keystroke
                // is sent without the bulk data after it. Retransmitted records have no turns.
                if limit < FULL_TLS_RECORD && !self.replay.has_next() && self.queue.is_turn_over() {
                    break;
                }
            }
            if let Some(number) = self.pending_seq(index) {
                self.paths[index].put_seq(number, out);
            }
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
        let Some(index) = self.find(path) else { return false };
        let path = &self.paths[index];
        path.has_control()
            || (self.active == Some(path.id)
                && (self.ack.is_due() || self.can_send_record() || self.pending_seq(index).is_some()))
    }

    /// Returns whether something sent on a path still has to be answered.
    pub(super) fn is_unanswered(&self, path: &Path) -> bool {
        path.is_unanswered() || (self.active == Some(path.id) && self.replay.in_flight())
    }

    pub(super) fn put_welcome(&self, compression: bool, out: &mut Vec<u8>) {
        if let Some(config) = &self.config {
            Welcome::put(out, self.epoch, self.rx_next, self.config_version, config, compression);
        }
    }

    fn transmit_control(&mut self, now: Instant, index: usize, out: &mut Vec<u8>) {
        let path = &mut self.paths[index];
        if !path.control.is_empty() {
            out.extend_from_slice(&path.control);
            path.control.clear();
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
        if let PathSide::Relay(relay) = &mut path.side
            && std::mem::take(&mut relay.config_due)
            && let Some(config) = &self.config
        {
            VersionedConfig::put(out, self.config_version, config);
        }
        if let Some(nonce) = path.pings.pong_due.take() {
            message::put_nonce(out, frame::PONG, nonce);
        }
        if let PathSide::Relay(relay) = &mut path.side
            && std::mem::take(&mut relay.doubt_due)
        {
            frame::put(out, frame::DOUBT, &[]);
        }
        if path.pings.due {
            path.pings.put(now, out);
        }
    }

    fn can_send_record(&self) -> bool {
        self.replay.has_next() || self.can_send_new()
    }

    /// Returns whether a new record can be sent. New records wait while the replay buffer is full;
    /// an empty one accepts a record of any size.
    fn can_send_new(&self) -> bool {
        self.queue.next_cost().is_some_and(|cost| cost <= self.replay_room())
    }

    fn replay_room(&self) -> usize {
        if self.replay.is_empty() {
            usize::MAX
        } else {
            self.limits.replay_bytes.saturating_sub(self.replay.cost())
        }
    }

    /// Returns the record number to send in SEQ although no record follows, so that the peer counts
    /// the records given up before it as lost even if nothing else is sent for long.
    fn pending_seq(&self, index: usize) -> Option<u64> {
        self.replay.gap().filter(|&number| self.paths[index].tx.number < Some(number))
    }

    /// Writes the next record: the oldest that the active path has not carried yet. Returns false
    /// if there is none.
    fn transmit_record(&mut self, now: Instant, index: usize, out: &mut Vec<u8>) -> bool {
        let path = &mut self.paths[index];
        if let Some((number, record)) = self.replay.next() {
            path.stats.replayed_packets += 1;
            self.stats.replayed_packets += 1;
            self.stats.replayed_bytes += record.packet.len() as u64;
            put_record(path, &mut self.compression_heuristic, &mut self.stats, (number, record), out);
            return true;
        }
        let room = self.replay_room();
        let (buffers, stats) = (&mut self.buffers, &mut self.stats);
        let popped = self.queue.pop(now, room, |record| {
            stats.dropped_delayed += 1;
            buffers.recycle(record.packet);
        });
        let Some(record) = popped else { return false };
        self.stats.tx_packets += 1;
        self.stats.tx_bytes += record.packet.len() as u64;
        let sent = self.replay.push_sent(record);
        put_record(&mut self.paths[index], &mut self.compression_heuristic, &mut self.stats, sent, out);
        true
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
