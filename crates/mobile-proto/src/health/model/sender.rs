//! The modelled sender.

use std::collections::VecDeque;
use std::time::Duration;

use super::TransportSample;
use super::link::Link;

#[derive(Debug)]
struct Segment {
    sequence: u64,
    size: u64,
    sent_ms: u64,
    sacked: bool,
    lost: bool,
    /// The segment was retransmitted, and the retransmission is in the network.
    retransmitted: bool,
    ever_retransmitted: bool,
}

/// The measured round-trip time and its variation, in milliseconds.
struct RoundTrip {
    smoothed: f64,
    variation: f64,
}

/// The retransmission timer, which first sends a tail probe.
struct RetransmissionTimer {
    at: Option<u64>,
    backoff: u32,
    probed: bool,
}

/// The kernel's TCP on this side.
pub(super) struct Sender {
    backlog: VecDeque<u64>,
    segments: VecDeque<Segment>,
    next: u64,
    window: f64,
    threshold: f64,
    delivered: u32,
    segs_out: u32,
    retransmissions: u32,
    round_trip: RoundTrip,
    timer: RetransmissionTimer,
    last_ack: u64,
}

impl Sender {
    /// Creates a sender whose handshake measured a round-trip time of `rtt` milliseconds.
    pub(super) fn new(rtt: f64) -> Self {
        Self {
            backlog: VecDeque::new(),
            segments: VecDeque::new(),
            next: 0,
            window: 10.0,
            threshold: f64::MAX,
            delivered: 1,
            segs_out: 0,
            retransmissions: 0,
            // As after a handshake.
            round_trip: RoundTrip { smoothed: rtt, variation: rtt / 2.0 },
            timer: RetransmissionTimer { at: None, backoff: 0, probed: false },
            last_ack: 0,
        }
    }

    /// Accepts bytes to send, unless many segments wait.
    pub(super) fn write(&mut self, bytes: u64) {
        if self.backlog.len() < 200 {
            let mut left = bytes;
            while left > 0 {
                let size = left.min(1448);
                self.backlog.push_back(size);
                left -= size;
            }
        }
    }

    /// Accepts a small segment, which is sent before all others.
    pub(super) fn write_first(&mut self, size: u64) {
        self.backlog.push_front(size);
    }

    /// Returns whether anything was written that is not acknowledged.
    pub(super) fn is_unanswered(&self) -> bool {
        !self.segments.is_empty() || !self.backlog.is_empty()
    }

    fn in_flight(&self) -> usize {
        let there = |segment: &&Segment| !segment.sacked && (!segment.lost || segment.retransmitted);
        self.segments.iter().filter(there).count()
    }

    fn send(&mut self, ms: u64, link: &mut Link, sequence: u64, size: u64) {
        self.segs_out += 1;
        link.send_up(ms, sequence, size);
        // A tail probe waits for a pause, a retransmission does not.
        if self.timer.at.is_none() || (!self.timer.probed && self.timer.backoff == 0) {
            self.arm(ms);
        }
    }

    fn arm(&mut self, ms: u64) {
        let RoundTrip { smoothed, variation } = self.round_trip;
        let rto = (smoothed + (4.0 * variation).max(200.0)) as u64;
        let wait = if self.timer.probed || self.timer.backoff > 0 {
            rto << self.timer.backoff
        } else {
            let alone = if self.segments.len() == 1 { 200 } else { 2 };
            ((2.0 * smoothed) as u64 + alone).min(rto)
        };
        self.timer.at = Some(ms + wait.max(1));
    }

    /// Sends as much as the congestion window allows.
    pub(super) fn transmit(&mut self, ms: u64, link: &mut Link) {
        while (self.in_flight() as f64) < self.window {
            let lost = self.segments.iter_mut().find(|it| it.lost && !it.retransmitted && !it.sacked);
            if let Some(segment) = lost {
                (segment.retransmitted, segment.ever_retransmitted, segment.sent_ms) = (true, true, ms);
                let (sequence, size) = (segment.sequence, segment.size);
                self.retransmissions += 1;
                self.send(ms, link, sequence, size);
            } else if let Some(size) = self.backlog.pop_front() {
                let sequence = self.next;
                self.next += 1;
                let new = Segment {
                    sequence,
                    size,
                    sent_ms: ms,
                    sacked: false,
                    lost: false,
                    retransmitted: false,
                    ever_retransmitted: false,
                };
                self.segments.push_back(new);
                self.send(ms, link, sequence, size);
            } else {
                return;
            }
        }
    }

    /// Fires the retransmission timer, or the tail probe before it.
    pub(super) fn on_timer(&mut self, ms: u64, link: &mut Link) {
        if self.timer.at.is_none_or(|at| at > ms) || self.segments.is_empty() {
            return;
        }
        if !self.timer.probed && self.timer.backoff == 0 {
            self.timer.probed = true;
            if let Some(last) = self.segments.back_mut() {
                last.ever_retransmitted = true;
                let (sequence, size) = (last.sequence, last.size);
                self.retransmissions += 1;
                self.timer.at = None;
                self.send(ms, link, sequence, size);
            }
            return;
        }
        self.timer.backoff = (self.timer.backoff + 1).min(8);
        self.threshold = (self.window / 2.0).max(2.0);
        self.window = 1.0;
        self.segments.iter_mut().for_each(|it| (it.lost, it.retransmitted) = (!it.sacked, false));
        self.arm(ms);
    }

    /// Handles an acknowledgement. Returns whether it acknowledges new data.
    pub(super) fn on_ack(&mut self, ms: u64, cumulative: u64, selective: &[u64]) -> bool {
        self.last_ack = ms;
        let known = |it: &Segment| it.sequence < cumulative || selective.contains(&it.sequence);
        let mut newest = None;
        let mut fresh = 0_u32;
        for segment in self.segments.iter_mut().filter(|it| !it.sacked) {
            if known(segment) {
                segment.sacked = true;
                fresh += 1;
                newest = newest.max(Some(segment.sent_ms));
                if !segment.ever_retransmitted {
                    let error = (ms - segment.sent_ms) as f64 - self.round_trip.smoothed;
                    self.round_trip.smoothed += error / 8.0;
                    self.round_trip.variation += (error.abs() - self.round_trip.variation) / 4.0;
                }
            }
        }
        self.segments.retain(|it| it.sequence >= cumulative);
        if fresh == 0 {
            return false;
        }
        self.delivered += fresh;
        self.timer = RetransmissionTimer { at: None, backoff: 0, probed: false };
        let before = self.segments.iter().any(|it| it.lost);
        let overtaken = newest.unwrap_or(0).saturating_sub((self.round_trip.smoothed / 4.0) as u64);
        for segment in self.segments.iter_mut().filter(|it| !it.sacked && it.sent_ms < overtaken) {
            (segment.lost, segment.retransmitted) = (true, false);
        }
        if !before && self.segments.iter().any(|it| it.lost) {
            self.threshold = (self.window / 2.0).max(2.0);
            self.window = self.threshold;
        } else if self.window < self.threshold {
            self.window += f64::from(fresh);
        } else {
            self.window += f64::from(fresh) / self.window;
        }
        // The receiver's buffer bounds the window.
        self.window = self.window.min(64.0);
        if !self.segments.is_empty() {
            self.arm(ms);
        }
        true
    }

    /// Returns the statistics of the sender.
    pub(super) fn sample(&self, now_ms: u64) -> TransportSample {
        let ms = |ms: f64| Duration::from_micros((ms * 1000.0) as u64);
        TransportSample {
            delivered: self.delivered,
            in_flight: self.in_flight() as u32,
            unacked: self.segments.len() as u32,
            segs_out: self.segs_out,
            retransmitted: self.retransmissions,
            last_ack: Duration::from_millis(now_ms - self.last_ack),
            srtt: ms(self.round_trip.smoothed),
            rttvar: ms(self.round_trip.variation),
        }
    }
}
