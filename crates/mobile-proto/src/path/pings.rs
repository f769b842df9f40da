//! The PINGs and PONGs of one path.

use std::time::{Duration, Instant};

use crate::{frame, message};

/// Interval of RTT measurements while data flows; they cost 30 bytes a second.
const RTT_INTERVAL: Duration = Duration::from_secs(1);

/// The PINGs that a path still has to send, that it sent, and that it still has to answer.
#[derive(Debug, Default)]
pub(crate) struct Pings {
    /// Whether a PING has to be sent.
    pub(crate) due: bool,
    /// The nonce of the newest received PING that has not been answered; a PONG for older ones is
    /// of no use to the peer.
    pub(crate) pong_due: Option<u64>,
    /// The nonces of the oldest and the newest sent PING that have not been answered.
    outstanding: Option<(u64, u64)>,
    last_sent: Option<Instant>,
    /// The nonce of the PING sent last; 0 before the first one.
    last_nonce: u64,
}

impl Pings {
    /// Appends a PING frame.
    pub(crate) fn put(&mut self, now: Instant, out: &mut Vec<u8>) {
        self.last_nonce += 1;
        let oldest = self.outstanding.map_or(self.last_nonce, |(oldest, _)| oldest);
        self.outstanding = Some((oldest, self.last_nonce));
        self.last_sent = Some(now);
        self.due = false;
        message::put_nonce(out, frame::PING, self.last_nonce);
    }

    /// Returns the nonce of the next PING.
    pub(crate) fn next_nonce(&self) -> u64 {
        self.last_nonce + 1
    }

    /// Returns when the newest PING was sent.
    pub(crate) fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    /// Records a PONG. Returns whether it answers an open PING.
    pub(super) fn on_pong(&mut self, nonce: u64) -> bool {
        let asked = |(oldest, newest): &(u64, u64)| (*oldest..=*newest).contains(&nonce);
        let Some((_, newest)) = self.outstanding.filter(asked) else { return false };
        self.outstanding = (nonce < newest).then_some((nonce + 1, newest));
        true
    }

    /// Returns the time since the newest PING was sent, if that is the one with this nonce.
    pub(super) fn round_trip(&self, now: Instant, nonce: u64) -> Option<Duration> {
        let sent = self.last_sent.filter(|_| nonce == self.last_nonce)?;
        Some(now.saturating_duration_since(sent))
    }

    /// Returns whether a PING was not answered, or could not be sent yet.
    pub(super) fn is_unanswered(&self) -> bool {
        self.outstanding.is_some() || self.due
    }

    /// Returns whether the RTT has to be measured again while data flows.
    pub(crate) fn needs_rtt(&self, now: Instant) -> bool {
        !self.is_unanswered()
            && self.last_sent.is_none_or(|at| now.saturating_duration_since(at) >= RTT_INTERVAL)
    }
}
