//! The state of one path: its lifecycle, its incomplete frame and its timers.

use std::time::{Duration, Instant};

use crate::compression::{Decoder, SendCompression};
use crate::health::{Health, MAX_PINGS, PathContext};
use crate::{CloseCode, Limits, Packet, PathId, PathStats, frame, message};

/// Interval of RTT measurements while data flows; they cost 30 bytes a second.
const RTT_INTERVAL: Duration = Duration::from_secs(1);

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
    /// Client: the epoch named in HELLO, then the one named in WELCOME. Relay: its own epoch.
    pub(crate) epoch: u64,
    /// The client's switch counter when the path was opened.
    pub(crate) switch: u64,
    /// Client: the paths to keep, of an activation that waits for WELCOME or may have to be
    /// repeated then.
    pub(crate) pending_activation: Option<Vec<PathId>>,
    /// Relay: whether received records are numbered for another epoch, until an ACTIVATE for this
    /// epoch arrives.
    pub(crate) stale_epoch: bool,
    /// Client: the nonce of the PING sent with ACTIVATE. A PONG with this nonce, or a later one, is
    /// the relay's answer to ACTIVATE.
    pub(crate) confirming_nonce: Option<u64>,
    /// Client: whether ACTIVATE was written directly after HELLO, so that WELCOME answers both.
    pub(crate) activated_early: bool,
    /// Encoded control frames that wait to be sent.
    pub(crate) control: Vec<u8>,
    /// Whether the configuration has to be sent.
    pub(crate) config_due: bool,
    /// The nonce of the newest received PING that has not been answered; a PONG for older ones is
    /// of no use to the peer.
    pub(crate) pong_due: Option<u64>,
    /// Whether a PING has to be sent.
    pub(crate) ping_due: bool,
    /// Relay: whether DOUBT has to be sent, because the active path is probing or unresponsive.
    pub(crate) doubt_due: bool,
    /// The record number of the next DATA frame sent on this path, as the peer counts; `None`
    /// before SEQ.
    pub(crate) tx_number: Option<u64>,
    /// The record number of the next DATA frame received on this path; `None` before SEQ.
    pub(crate) rx_number: Option<u64>,
    /// The start of a frame whose remainder has not arrived yet.
    pub(crate) partial_frame: Vec<u8>,
    /// The compression of the packets sent on this path.
    pub(crate) tx_compression: SendCompression,
    /// The decoder of the compressed packets received on this path; created with the first one.
    pub(crate) decoder: Option<Box<Decoder>>,
    pub(crate) health: Health,
    /// Whether a transport sample is useful now, although no judgement depends on it.
    pub(crate) sample_due: bool,
    /// Client: when HELLO was sent; `None` before.
    pub(crate) hello_sent_at: Option<Instant>,
    pub(crate) stats: PathStats,
    closing_since: Option<Instant>,
    /// The nonces of the oldest and the newest sent PING that have not been answered.
    pings: Option<(u64, u64)>,
    last_ping: Option<Instant>,
    nonce: u64,
}

impl Path {
    pub(crate) fn new(now: Instant, id: PathId, state: PathState, epoch: u64, switch: u64) -> Self {
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
            epoch,
            switch,
            pending_activation: None,
            stale_epoch: false,
            confirming_nonce: None,
            activated_early: false,
            control: Vec::new(),
            config_due: false,
            pong_due: None,
            ping_due: false,
            doubt_due: false,
            tx_number: None,
            rx_number: None,
            partial_frame: Vec::new(),
            tx_compression: SendCompression::default(),
            decoder: None,
            health: Health::default(),
            sample_due: true,
            hello_sent_at: None,
            stats,
            closing_since: None,
            pings: None,
            last_ping: None,
            nonce: 0,
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
        (self.partial_frame, self.decoder) = (Vec::new(), None);
    }

    /// Appends SEQ with `number`, the number of the next record sent on the path.
    pub(crate) fn put_seq(&mut self, number: u64, out: &mut Vec<u8>) {
        self.tx_number = Some(number);
        frame::put_number(out, frame::SEQ, number);
    }

    /// Sets whether both ends agreed to compression on this path.
    pub(crate) fn set_compression(&mut self, compression: bool) {
        self.tx_compression = if compression { SendCompression::Agreed } else { SendCompression::Off };
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
        if self.tx_number != Some(number) {
            self.put_seq(number, out);
        }
        self.tx_number = Some(number + 1);
        self.stats.tx_packets += 1;
        if compress && let Some(compressed) = self.tx_compression.encode(packet) {
            frame::put_compressed(out, packet, compressed);
            return Some(compressed.len());
        }
        frame::put_packet(out, packet);
        None
    }

    /// Appends a PING frame.
    pub(crate) fn put_ping(&mut self, now: Instant, out: &mut Vec<u8>) {
        self.nonce += 1;
        let oldest = self.pings.map_or(self.nonce, |(oldest, _)| oldest);
        self.pings = Some((oldest, self.nonce));
        self.last_ping = Some(now);
        self.ping_due = false;
        message::put_nonce(out, frame::PING, self.nonce);
    }

    /// Returns the nonce of the next PING.
    pub(crate) fn next_nonce(&self) -> u64 {
        self.nonce + 1
    }

    /// Handles a PONG. Returns whether it answers an open PING; the answer to the newest PING
    /// measures the RTT.
    pub(crate) fn handle_pong(&mut self, now: Instant, nonce: u64) -> bool {
        let asked = |(oldest, newest): &(u64, u64)| (*oldest..=*newest).contains(&nonce);
        let Some((_, newest)) = self.pings.filter(asked) else { return false };
        self.pings = (nonce < newest).then_some((nonce + 1, newest));
        self.sample_due = true;
        if nonce == newest
            && let Some(sent) = self.last_ping
        {
            self.on_rtt_measured(now.saturating_duration_since(sent));
        }
        true
    }

    /// Updates the smoothed RTT (RFC 6298) with one measurement.
    pub(crate) fn on_rtt_measured(&mut self, rtt: Duration) {
        self.stats.srtt = Some(self.stats.srtt.map_or(rtt, |srtt| srtt * 7 / 8 + rtt / 8));
    }

    /// Requests that a PING is sent. From now on the path counts as waiting for an answer, unless
    /// it is `unanswered` already. If it counted only once the PING was written, a PING that a full
    /// transport never takes would never be missed.
    pub(crate) fn request_ping(&mut self, now: Instant, unanswered: bool) {
        if !unanswered {
            self.health.start_waiting(now);
        }
        self.ping_due = true;
    }

    /// Returns whether an answer is missing: to HELLO, to a PING, or to a PING that could not be
    /// sent yet.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.state == PathState::Connecting || self.pings.is_some() || self.ping_due
    }

    /// Returns whether the RTT has to be measured again while data flows.
    pub(crate) fn needs_rtt(&self, now: Instant) -> bool {
        self.pings.is_none()
            && !self.ping_due
            && self.last_ping.is_none_or(|at| now.saturating_duration_since(at) >= RTT_INTERVAL)
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
            max_pings: MAX_PINGS,
            srtt: self.stats.srtt,
        }
    }

    /// Client: returns when to send a PING because nothing was received for a keepalive interval.
    pub(crate) fn ping_at(&self, limits: &Limits) -> Option<Instant> {
        if !self.is_ready() || self.ping_due {
            return None;
        }
        self.last_activity().max(self.last_ping.unwrap_or(self.stats.opened)).checked_add(limits.keepalive)
    }

    /// Relay: returns when to free the path because nothing was received for too long.
    pub(crate) fn idle_at(&self, limits: &Limits) -> Option<Instant> {
        self.last_activity().checked_add(limits.keepalive.saturating_mul(limits.idle_keepalives))
    }

    /// Returns when to drop the path because CLOSE could not be sent.
    pub(crate) fn forget_at(&self) -> Option<Instant> {
        self.closing_since?.checked_add(CLOSE_TIMEOUT)
    }

    /// Frees unused memory of the path while no data flows.
    pub(crate) fn trim(&mut self) {
        if self.partial_frame.is_empty() {
            self.partial_frame = Vec::new();
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
        let mut path = Path::new(now, PathId(1), PathState::Ready, 1, 0);
        let mut out = Vec::new();
        path.put_ping(now, &mut out);
        path.put_ping(now + Duration::from_millis(5), &mut out);
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
