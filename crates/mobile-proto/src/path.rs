//! The state of one path: its lifecycle, its two directions and its timers.

mod pings;
mod side;

use std::time::{Duration, Instant};

use crate::compression::{ReceiveCompression, SendCompression};
use crate::health::{Health, MAX_PINGS, PathContext, RELAY_MAX_PINGS};
use crate::{CloseCode, Limits, Packet, PathId, PathStats, frame, message};
pub(crate) use pings::Pings;
pub(crate) use side::{ClientPath, PathSide, RelayPath};

/// Time after which a path is dropped whose transport cannot even take the few bytes of CLOSE,
/// perhaps because the driver has dropped it long ago.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The phase of a path's life, which starts with HELLO and ends with the removal from the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathState {
    /// Client: WELCOME has not arrived yet.
    Connecting,
    /// The path is usable, as a standby or as the active path.
    Ready,
    /// CLOSE has to be sent; received data is still processed.
    Closing,
    /// CLOSE has to be sent; received data is ignored, because the peer violated the protocol.
    Failed,
}

/// One path of a session.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) id: PathId,
    pub(crate) state: PathState,
    pub(crate) side: PathSide,
    /// Encoded control frames that wait to be sent.
    pub(crate) control: Vec<u8>,
    pub(crate) pings: Pings,
    pub(crate) tx: SendState,
    pub(crate) rx: ReceiveState,
    pub(crate) health: Health,
    /// Whether a transport sample is useful now, although no judgement depends on it.
    pub(crate) sample_due: bool,
    pub(crate) stats: PathStats,
    closing_since: Option<Instant>,
}

/// The state of the records that a path sends.
#[derive(Debug, Default)]
pub(crate) struct SendState {
    /// The record number of the next DATA frame, as the peer counts; `None` before SEQ.
    pub(crate) number: Option<u64>,
    pub(crate) compression: SendCompression,
}

/// The state of the frames that a path receives.
#[derive(Debug, Default)]
pub(crate) struct ReceiveState {
    /// The record number of the next DATA frame; `None` before SEQ.
    pub(crate) number: Option<u64>,
    /// The start of a frame whose remainder has not arrived yet.
    pub(crate) partial_frame: Vec<u8>,
    pub(crate) compression: ReceiveCompression,
}

impl Path {
    /// Creates a client's path, which waits for WELCOME. Its HELLO names `epoch`, and announces
    /// that the client reads compressed packets if `compression` is set.
    pub(crate) fn connect(now: Instant, id: PathId, epoch: u64, compression: bool) -> Self {
        let side = PathSide::Client(Box::new(ClientPath { epoch, ..ClientPath::default() }));
        let mut path = Self::new(now, id, PathState::Connecting, side);
        // Agreed already, because a closing path reads packets but ignores WELCOME.
        path.rx.compression = ReceiveCompression::new(compression);
        path
    }

    /// Creates a relay's path, whose HELLO has arrived just now. WELCOME agrees to `compression`.
    pub(crate) fn accept(now: Instant, id: PathId, relay: RelayPath, compression: bool) -> Self {
        let mut path = Self::new(now, id, PathState::Ready, PathSide::Relay(relay));
        path.stats.last_heard = Some(now);
        path.rx.compression = ReceiveCompression::new(compression);
        path.set_send_compression(compression);
        path
    }

    fn new(now: Instant, id: PathId, state: PathState, side: PathSide) -> Self {
        let stats = PathStats {
            ready: false,
            active: false,
            unresponsive: false,
            compression: false,
            tx_bytes: 0,
            tx_packets: 0,
            rx_bytes: 0,
            rx_packets: 0,
            replayed_packets: 0,
            duplicates: 0,
            srtt: None,
            rttvar: None,
            loss: None,
            opened: now,
            last_heard: None,
        };
        Self {
            id,
            state,
            side,
            control: Vec::new(),
            pings: Pings::default(),
            tx: SendState::default(),
            rx: ReceiveState::default(),
            health: Health::default(),
            sample_due: true,
            stats,
            closing_since: None,
        }
    }

    /// Returns whether frames other than HELLO and CLOSE may be sent.
    pub(crate) fn is_ready(&self) -> bool {
        self.state == PathState::Ready
    }

    /// Returns whether only CLOSE is left to be sent.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.state, PathState::Closing | PathState::Failed)
    }

    /// Returns whether received records are numbered for another epoch than the relay's.
    pub(crate) fn is_stale(&self) -> bool {
        self.side.relay().is_some_and(|relay| relay.stale_epoch)
    }

    /// Returns whether frames wait to be sent that belong to no record.
    pub(crate) fn has_control(&self) -> bool {
        let relay = |relay: &RelayPath| relay.config_due || relay.doubt_due;
        let due = self.pings.pong_due.is_some() || self.pings.due || self.side.relay().is_some_and(relay);
        !self.control.is_empty() || (self.is_ready() && due)
    }

    /// Makes a client's path ready: its WELCOME has arrived, for this epoch.
    pub(crate) fn on_welcome(&mut self, now: Instant, epoch: u64, compression: bool) {
        let PathSide::Client(client) = &mut self.side else { return };
        client.epoch = epoch;
        let hello_sent_at = client.hello_sent_at;
        self.set_send_compression(compression);
        self.state = PathState::Ready;
        self.sample_due = true;
        if let Some(sent) = hello_sent_at {
            self.on_rtt_measured(now.saturating_duration_since(sent));
        }
    }

    /// Records received bytes. Returns whether an unresponsive path has recovered by this.
    pub(crate) fn on_bytes_received(&mut self, now: Instant, bytes: usize) -> bool {
        self.stats.rx_bytes += bytes as u64;
        self.stats.last_heard = Some(now);
        self.health.on_bytes_received(now)
    }

    /// Queues CLOSE as the last frame of the path.
    pub(crate) fn close(&mut self, now: Instant, code: CloseCode, state: PathState) {
        if !self.is_closing() {
            self.closing_since = Some(now);
            message::put_close(&mut self.control, code);
        }
        self.state = state;
    }

    /// Ends the path after a violation of the protocol: only CLOSE is left to be sent.
    pub(crate) fn fail(&mut self, now: Instant) {
        self.close(now, CloseCode::ProtocolError, PathState::Failed);
        self.rx = ReceiveState::default();
    }

    /// Appends SEQ with `number`, the number of the next record sent on the path.
    pub(crate) fn put_seq(&mut self, number: u64, out: &mut Vec<u8>) {
        self.tx.number = Some(number);
        frame::put_number(out, frame::SEQ, number);
    }

    /// Sets whether both ends agreed to compression on this path.
    fn set_send_compression(&mut self, compression: bool) {
        self.tx.compression = if compression { SendCompression::Agreed } else { SendCompression::Off };
        self.stats.compression = compression;
    }

    /// Appends a record as a DATA or COMPRESSED frame, after a SEQ with its number if the peer's
    /// counter differs. Returns the compressed size if `compress` is set and the path allows it.
    pub(crate) fn put_record(
        &mut self,
        number: u64,
        packet: Packet<'_>,
        compress: bool,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        if self.tx.number != Some(number) {
            self.put_seq(number, out);
        }
        self.tx.number = Some(number + 1);
        self.stats.tx_packets += 1;
        if compress && let Some(compressed) = self.tx.compression.encode(packet) {
            frame::put_compressed(out, packet, compressed);
            return Some(compressed.len());
        }
        frame::put_packet(out, packet);
        None
    }

    /// Handles a PONG. Returns whether it answers an open PING; the answer to the newest PING
    /// measures the RTT.
    pub(crate) fn handle_pong(&mut self, now: Instant, nonce: u64) -> bool {
        if !self.pings.on_pong(nonce) {
            return false;
        }
        self.sample_due = true;
        if let Some(rtt) = self.pings.round_trip(now, nonce) {
            self.on_rtt_measured(rtt);
        }
        true
    }

    /// Updates the smoothed RTT (RFC 6298) with one measurement.
    fn on_rtt_measured(&mut self, rtt: Duration) {
        self.stats.srtt = Some(self.stats.srtt.map_or(rtt, |srtt| srtt * 7 / 8 + rtt / 8));
    }

    /// Requests that a PING is sent. From now on the path counts as waiting for an answer, unless
    /// it is `unanswered` already. If it counted only once the PING was written, a PING that a full
    /// transport never takes would never be missed.
    pub(crate) fn request_ping(&mut self, now: Instant, unanswered: bool) {
        if !unanswered {
            self.health.start_waiting(now);
        }
        self.pings.due = true;
    }

    /// Returns whether an answer is missing: to HELLO, to a PING, or to a PING that could not be
    /// sent yet.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.state == PathState::Connecting || self.pings.is_unanswered()
    }

    /// Returns the values with which the path's health is judged, given whether anything sent is
    /// `unanswered` and whether the path is `active`.
    pub(crate) fn health_context<'a>(
        &self,
        limits: &'a Limits,
        unanswered: bool,
        active: bool,
    ) -> PathContext<'a> {
        PathContext {
            limits,
            unanswered: unanswered && !self.is_closing(),
            connecting: self.state == PathState::Connecting,
            judged: self.is_ready() || active,
            max_pings: match self.side {
                PathSide::Client(_) => MAX_PINGS,
                PathSide::Relay(_) => RELAY_MAX_PINGS,
            },
            srtt: self.stats.srtt,
        }
    }

    /// Returns when a client sends a PING because nothing was received for a keepalive interval.
    /// Only the client keeps paths alive; the relay measures with PINGs while data flows.
    pub(crate) fn ping_at(&self, limits: &Limits) -> Option<Instant> {
        self.side.client()?;
        if !self.is_ready() || self.pings.due {
            return None;
        }
        let last_sent = self.pings.last_sent().unwrap_or(self.stats.opened);
        self.last_activity().max(last_sent).checked_add(limits.keepalive)
    }

    /// Returns when a relay frees the path because nothing was received for too long.
    pub(crate) fn idle_at(&self, limits: &Limits) -> Option<Instant> {
        self.side.relay()?;
        self.last_activity().checked_add(limits.keepalive.saturating_mul(limits.idle_keepalives))
    }

    /// Returns when to drop the path because CLOSE could not be sent.
    pub(crate) fn forget_at(&self) -> Option<Instant> {
        self.closing_since?.checked_add(CLOSE_TIMEOUT)
    }

    /// Frees unused memory of the path while no data flows.
    pub(crate) fn trim(&mut self) {
        if self.rx.partial_frame.is_empty() {
            self.rx.partial_frame = Vec::new();
        }
        self.control.shrink_to_fit();
    }

    fn last_activity(&self) -> Instant {
        self.stats.last_heard.unwrap_or(self.stats.opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_pong_counts_and_only_the_last_one_measures_the_rtt() {
        let now = Instant::now();
        let mut path = Path::accept(now, PathId(1), RelayPath::default(), false);
        let mut out = Vec::new();
        path.pings.put(now, &mut out);
        path.pings.put(now + Duration::from_millis(5), &mut out);
        assert!(!path.handle_pong(now, 3), "never sent");
        assert!(path.handle_pong(now + Duration::from_millis(20), 1));
        assert_eq!(path.stats.srtt, None);
        assert!(!path.handle_pong(now, 1), "answered already");
        assert!(path.is_unanswered());
        assert!(path.handle_pong(now + Duration::from_millis(25), 2));
        assert_eq!(path.stats.srtt, Some(Duration::from_millis(20)));
        assert!(!path.is_unanswered());
    }
}
