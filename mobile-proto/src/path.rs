//! One path: its state, its partial frame, its clocks.

use std::time::{Duration, Instant};

use crate::compression::{Decoder, Outgoing};
use crate::health::{Health, Outlook, PINGS};
use crate::{CloseCode, Limits, Packet, PathId, PathStats, frame, message};

/// While data flows the RTT is measured this often: 30 bytes a second are nothing.
const RTT_INTERVAL: Duration = Duration::from_secs(1);

/// A path that could not take the few bytes of CLOSE for this long is dead; the shell may have
/// dropped its transport long ago.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Where a path is in its life. It starts with HELLO and ends by leaving the session's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Client: no WELCOME yet.
    Connecting,
    /// Usable, as a standby or as the active path.
    Ready,
    /// CLOSE is to be sent; input is still good.
    Closing,
    /// CLOSE is to be sent; input makes no sense any more.
    Failed,
}

/// One path of a session.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) id: PathId,
    pub(crate) state: State,
    /// Client: the epoch that HELLO named, then the one that WELCOME did. Relay: its own.
    pub(crate) epoch: u64,
    /// The client's switch counter when the path was opened.
    pub(crate) switch: u64,
    /// Client, until WELCOME: the path is to be active, or is so early; these are to be kept.
    pub(crate) wish: Option<Vec<PathId>>,
    /// Relay: what comes is numbered for another epoch, until an ACTIVATE says otherwise.
    pub(crate) foreign: bool,
    /// Client: a PONG with this nonce, or a later one, is the relay's answer to ACTIVATE.
    pub(crate) confirmed_by: Option<u64>,
    /// Client: ACTIVATE stands right behind HELLO, so that WELCOME is the answer to both.
    pub(crate) early: bool,
    /// Control frames that wait to be sent.
    pub(crate) control: Vec<u8>,
    /// The configuration is to be pushed.
    pub(crate) config_due: bool,
    /// The newest PING that is not answered yet: older ones are of no use to the peer.
    pub(crate) pong: Option<u64>,
    /// A PING is to be sent.
    pub(crate) ping_due: bool,
    /// Relay: the client is to be told that the active path is doubted.
    pub(crate) doubt_due: bool,
    /// The number of the next DATA frame sent here, as the peer counts.
    pub(crate) tx_number: Option<u64>,
    /// The number of the next DATA frame received here.
    pub(crate) rx_number: Option<u64>,
    /// The start of a frame whose rest is still to come.
    pub(crate) partial: Vec<u8>,
    /// What happens to the packets sent here.
    pub(crate) outgoing: Outgoing,
    /// Reads the compressed packets received here, since the first one.
    pub(crate) decoder: Option<Box<Decoder>>,
    pub(crate) health: Health,
    /// A sample of the transport would be good now, though nothing depends on it.
    pub(crate) sample_due: bool,
    /// Client: when HELLO was sent, which WELCOME answers.
    pub(crate) hello_sent: Option<Instant>,
    pub(crate) stats: PathStats,
    closing_since: Option<Instant>,
    /// The oldest and the newest PING that have no answer yet.
    pings: Option<(u64, u64)>,
    last_ping: Option<Instant>,
    nonce: u64,
}

impl Path {
    pub(crate) fn new(now: Instant, id: PathId, state: State, epoch: u64, switch: u64) -> Self {
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
            wish: None,
            foreign: false,
            confirmed_by: None,
            early: false,
            control: Vec::new(),
            config_due: false,
            pong: None,
            ping_due: false,
            doubt_due: false,
            tx_number: None,
            rx_number: None,
            partial: Vec::new(),
            outgoing: Outgoing::default(),
            decoder: None,
            health: Health::default(),
            sample_due: true,
            hello_sent: None,
            stats,
            closing_since: None,
            pings: None,
            last_ping: None,
            nonce: 0,
        }
    }

    /// Whether frames other than HELLO and CLOSE may be sent.
    pub(crate) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether CLOSE is all that is left to send.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing | State::Failed)
    }

    /// Something came. True if the path is not suspect any more.
    pub(crate) fn heard(&mut self, now: Instant, bytes: usize) -> bool {
        self.stats.rx_bytes += bytes as u64;
        self.stats.last_heard = Some(now);
        self.health.heard(now)
    }

    /// CLOSE is the next and last thing to send.
    pub(crate) fn close(&mut self, now: Instant, code: CloseCode, state: State) {
        if !self.is_closing() {
            self.closing_since = Some(now);
            message::put_close(&mut self.control, code);
        }
        self.state = state;
    }

    /// Appends the number of the next record.
    pub(crate) fn put_seq(&mut self, number: u64, out: &mut Vec<u8>) {
        self.tx_number = Some(number);
        frame::put_number(out, frame::SEQ, number);
    }

    /// Both ends want compression on this path.
    pub(crate) fn agree(&mut self, compression: bool) {
        self.outgoing = if compression { Outgoing::Agreed } else { Outgoing::Plain };
        self.stats.compression = compression;
    }

    /// Appends a record, and its number where the peer's counter is another. Returns the size it was compressed to, if `compress`
    /// and the path allow it.
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
        if compress && let Some(made) = self.outgoing.encode(packet) {
            frame::put_compressed(out, packet, made);
            return Some(made.len());
        }
        frame::put_packet(out, packet);
        None
    }

    /// Appends a PING.
    pub(crate) fn put_ping(&mut self, now: Instant, out: &mut Vec<u8>) {
        self.nonce += 1;
        let oldest = self.pings.map_or(self.nonce, |(oldest, _)| oldest);
        self.pings = Some((oldest, self.nonce));
        self.last_ping = Some(now);
        self.ping_due = false;
        message::put_nonce(out, frame::PING, self.nonce);
    }

    /// What the next PING will carry.
    pub(crate) fn next_nonce(&self) -> u64 {
        self.nonce + 1
    }

    /// A PONG came: true if it answers a PING. The last one's measures the RTT.
    pub(crate) fn handle_pong(&mut self, now: Instant, nonce: u64) -> bool {
        let asked = |(oldest, newest): &(u64, u64)| (*oldest..=*newest).contains(&nonce);
        let Some((_, newest)) = self.pings.filter(asked) else { return false };
        self.pings = (nonce < newest).then_some((nonce + 1, newest));
        self.sample_due = true;
        if nonce == newest
            && let Some(sent) = self.last_ping
        {
            self.measured(now.saturating_duration_since(sent));
        }
        true
    }

    /// Takes one measurement of the RTT, smoothed as in RFC 6298.
    pub(crate) fn measured(&mut self, rtt: Duration) {
        self.stats.srtt = Some(self.stats.srtt.map_or(rtt, |srtt| srtt * 7 / 8 + rtt / 8));
    }

    /// A PING is to be sent. From now on the path has something to answer, unless it is `unanswered` already: what a full
    /// transport never lets out would otherwise never be missed.
    pub(crate) fn ask(&mut self, now: Instant, unanswered: bool) {
        if !unanswered {
            self.health.begin(now);
        }
        self.ping_due = true;
    }

    /// Whether a HELLO or a PING is unanswered, or a PING could not even be sent yet.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.state == State::Connecting || self.pings.is_some() || self.ping_due
    }

    /// Whether the RTT should be measured again while data flows.
    pub(crate) fn wants_rtt(&self, now: Instant) -> bool {
        self.pings.is_none()
            && !self.ping_due
            && self.last_ping.is_none_or(|at| now.saturating_duration_since(at) >= RTT_INTERVAL)
    }

    /// What its health is judged by, if something is `unanswered` and the path is `active` or not.
    pub(crate) fn outlook<'a>(&self, limits: &'a Limits, unanswered: bool, active: bool) -> Outlook<'a> {
        Outlook {
            limits,
            unanswered: unanswered && !self.is_closing(),
            connecting: self.state == State::Connecting,
            judged: self.is_ready() || active,
            pings: PINGS,
            srtt: self.stats.srtt,
        }
    }

    /// Client: when to ping because nothing was heard.
    pub(crate) fn ping_at(&self, limits: &Limits) -> Option<Instant> {
        if !self.is_ready() || self.ping_due {
            return None;
        }
        self.quiet_since().max(self.last_ping.unwrap_or(self.stats.opened)).checked_add(limits.keepalive)
    }

    /// Relay: when to free the path because nothing was heard.
    pub(crate) fn idle_at(&self, limits: &Limits) -> Option<Instant> {
        self.quiet_since().checked_add(limits.keepalive.saturating_mul(limits.idle_keepalives))
    }

    /// When to forget the path because CLOSE could not be sent.
    pub(crate) fn forget_at(&self) -> Option<Instant> {
        self.closing_since?.checked_add(CLOSE_PATIENCE)
    }

    /// Gives back memory while nothing flows.
    pub(crate) fn trim(&mut self) {
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        self.control.shrink_to_fit();
    }

    fn quiet_since(&self) -> Instant {
        self.stats.last_heard.unwrap_or(self.stats.opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_answer_counts_and_only_that_to_the_last_ping_measures() {
        let now = Instant::now();
        let mut path = Path::new(now, PathId(1), State::Ready, 1, 0);
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
