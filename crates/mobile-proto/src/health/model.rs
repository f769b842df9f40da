//! A small model of TCP over a bad link, with those parts that affect the health of a path:
//! selective acknowledgement, loss detection by later arrivals (RACK), tail probe, retransmission
//! timeout with back-off, and a congestion window. The model runs in steps of a millisecond, with
//! random numbers from a seed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Health, PathContext, TransportSample};
use crate::Limits;

/// One direction of the link.
#[derive(Clone, Debug)]
pub(super) struct LinkDirection {
    pub(super) delay_ms: u64,
    /// Probability in percent that a packet is lost.
    pub(super) loss: u64,
    pub(super) bytes_per_ms: u64,
    pub(super) dead: bool,
    /// The time in milliseconds at which all queued packets will have been sent.
    busy_until: f64,
}

impl LinkDirection {
    pub(super) fn new(delay_ms: u64, loss: u64, bytes_per_ms: u64) -> Self {
        Self { delay_ms, loss, bytes_per_ms, dead: false, busy_until: 0.0 }
    }
}

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

/// A change of the path's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Probing,
    Unresponsive,
    Recovered,
}

/// A sender, the health of its path, a link and a receiver.
pub(super) struct Model {
    pub(super) up: LinkDirection,
    pub(super) down: LinkDirection,
    pub(super) health: Health,
    pub(super) outcomes: Vec<(u64, Outcome)>,
    pub(super) ms: u64,
    pub(super) samples: u64,
    pub(super) pings: u64,
    /// The time at which an acknowledgement of new data last arrived, in milliseconds since the
    /// model's start.
    pub(super) last_answer: u64,
    /// Whether the peer's program answers with a PONG each second; otherwise only its kernel
    /// acknowledges segments.
    pub(super) program_answers: bool,
    /// Whether the peer retransmits segments without end, because nothing reaches it.
    pub(super) peer_retransmits: bool,
    limits: Limits,
    start: Instant,
    seed: u64,
    backlog: VecDeque<u64>,
    segments: VecDeque<Segment>,
    next: u64,
    window: f64,
    threshold: f64,
    delivered: u32,
    segs_out: u32,
    retransmissions: u32,
    srtt: f64,
    rttvar: f64,
    backoff: u32,
    timer: Option<u64>,
    probed: bool,
    last_ack: u64,
    /// Segments in flight (arrival, sequence), and acknowledgements in flight (arrival, cumulative,
    /// selective).
    to_peer: Vec<(u64, u64)>,
    to_us: Vec<(u64, u64, Vec<u64>)>,
    received_below: u64,
    received: Vec<u64>,
    delayed_ack_at: Option<u64>,
    unanswered: bool,
}

impl Model {
    pub(super) fn new(up: LinkDirection, down: LinkDirection, seed: u64) -> Self {
        let rtt = (up.delay_ms + down.delay_ms) as f64;
        let mut model = Self {
            up,
            down,
            health: Health::default(),
            outcomes: Vec::new(),
            ms: 0,
            samples: 0,
            pings: 0,
            last_answer: 0,
            program_answers: true,
            peer_retransmits: false,
            limits: Limits::default(),
            start: Instant::now(),
            seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            backlog: VecDeque::new(),
            segments: VecDeque::new(),
            next: 0,
            window: 10.0,
            threshold: f64::MAX,
            delivered: 1,
            segs_out: 0,
            retransmissions: 0,
            // As after a handshake.
            srtt: rtt,
            rttvar: rtt / 2.0,
            backoff: 0,
            timer: None,
            probed: false,
            last_ack: 0,
            to_peer: Vec::new(),
            to_us: Vec::new(),
            received_below: 0,
            received: Vec::new(),
            delayed_ack_at: None,
            unanswered: false,
        };
        let (now, sample) = (model.now(), model.sample());
        let _ = model.health.on_sample(now, sample);
        model
    }

    /// Sets whether each direction is dead from now on.
    pub(super) fn cut(&mut self, up: bool, down: bool) {
        (self.up.dead, self.down.dead) = (up, down);
    }

    /// Runs for a number of milliseconds, writing `bytes` every `write_every` of them (0 for
    /// never).
    pub(super) fn run(&mut self, milliseconds: u64, write_every: u64, bytes: u64) {
        for _ in 0..milliseconds {
            self.ms += 1;
            if write_every > 0 && self.ms.is_multiple_of(write_every) && self.backlog.len() < 200 {
                let mut left = bytes;
                while left > 0 {
                    let size = left.min(1448);
                    self.backlog.push_back(size);
                    left -= size;
                }
            }
            self.arrive_at_peer();
            self.arrive_here();
            self.on_timer();
            self.transmit();
            self.check_health();
            self.transmit();
        }
    }

    pub(super) fn count(&self, outcomes: Outcome) -> usize {
        self.outcomes.iter().filter(|(_, it)| *it == outcomes).count()
    }

    pub(super) fn first(&self, outcomes: Outcome, after: u64) -> Option<u64> {
        self.outcomes.iter().find(|(at, it)| *it == outcomes && *at > after).map(|(at, _)| *at)
    }

    /// Sends a small segment, like the PING of a keepalive.
    pub(super) fn ping(&mut self) {
        self.pings += 1;
        self.backlog.push_front(40);
        self.transmit();
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.ms)
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed >> 11
    }

    /// Returns the arrival time of a packet sent now, in milliseconds of the model's clock, or
    /// `None` if it is lost.
    fn pass(&mut self, up: bool, size: u64) -> Option<u64> {
        let lost = self.random() % 100;
        let (ms, direction) = (self.ms as f64, if up { &mut self.up } else { &mut self.down });
        let queued = direction.busy_until.max(ms) - ms;
        // A router queues 300 ms and then drops.
        if direction.dead || lost < direction.loss || queued > 300.0 {
            return None;
        }
        direction.busy_until =
            direction.busy_until.max(ms) + (size + 52) as f64 / direction.bytes_per_ms as f64;
        Some(direction.busy_until.ceil() as u64 + direction.delay_ms)
    }

    fn in_flight(&self) -> usize {
        let there = |segment: &&Segment| !segment.sacked && (!segment.lost || segment.retransmitted);
        self.segments.iter().filter(there).count()
    }

    fn send(&mut self, sequence: u64, size: u64) {
        self.segs_out += 1;
        if let Some(at) = self.pass(true, size) {
            self.to_peer.push((at, sequence));
        }
        // A tail probe waits for a pause, a retransmission does not.
        if self.timer.is_none() || (!self.probed && self.backoff == 0) {
            self.arm();
        }
    }

    fn arm(&mut self) {
        let rto = (self.srtt + (4.0 * self.rttvar).max(200.0)) as u64;
        let wait = if self.probed || self.backoff > 0 {
            rto << self.backoff
        } else {
            let alone = if self.segments.len() == 1 { 200 } else { 2 };
            ((2.0 * self.srtt) as u64 + alone).min(rto)
        };
        self.timer = Some(self.ms + wait.max(1));
    }

    fn transmit(&mut self) {
        while (self.in_flight() as f64) < self.window {
            let ms = self.ms;
            let lost = self.segments.iter_mut().find(|it| it.lost && !it.retransmitted && !it.sacked);
            if let Some(segment) = lost {
                (segment.retransmitted, segment.ever_retransmitted, segment.sent_ms) = (true, true, ms);
                let (sequence, size) = (segment.sequence, segment.size);
                self.retransmissions += 1;
                self.send(sequence, size);
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
                self.send(sequence, size);
            } else {
                return;
            }
        }
    }

    /// Fires the retransmission timer, or the tail probe before it.
    fn on_timer(&mut self) {
        if self.timer.is_none_or(|at| at > self.ms) || self.segments.is_empty() {
            return;
        }
        if !self.probed && self.backoff == 0 {
            self.probed = true;
            if let Some(last) = self.segments.back_mut() {
                last.ever_retransmitted = true;
                let (sequence, size) = (last.sequence, last.size);
                self.retransmissions += 1;
                self.timer = None;
                self.send(sequence, size);
            }
            return;
        }
        self.backoff = (self.backoff + 1).min(8);
        self.threshold = (self.window / 2.0).max(2.0);
        self.window = 1.0;
        self.segments.iter_mut().for_each(|it| (it.lost, it.retransmitted) = (!it.sacked, false));
        self.arm();
    }

    fn arrive_at_peer(&mut self) {
        let due: Vec<_> = self.to_peer.extract_if(.., |(at, _)| *at <= self.ms).collect();
        let mut at_once = false;
        for (_, sequence) in due {
            let in_order = sequence == self.received_below && self.received.is_empty();
            if sequence >= self.received_below && !self.received.contains(&sequence) {
                self.received.push(sequence);
            }
            while let Some(index) = self.received.iter().position(|it| *it == self.received_below) {
                self.received.swap_remove(index);
                self.received_below += 1;
            }
            // Every second segment is acknowledged at once, and every one out of order.
            at_once |= !in_order || self.delayed_ack_at.is_some();
            self.delayed_ack_at.get_or_insert(self.ms + 20);
        }
        at_once |= self.delayed_ack_at.is_some_and(|at| at <= self.ms);
        if self.peer_retransmits && self.ms.is_multiple_of(50) {
            at_once = true;
        }
        if at_once {
            self.delayed_ack_at = None;
            if let Some(at) = self.pass(false, 40) {
                self.to_us.push((at, self.received_below, self.received.clone()));
            }
        }
    }

    fn arrive_here(&mut self) {
        let due: Vec<_> = self.to_us.extract_if(.., |(at, _, _)| *at <= self.ms).collect();
        for (_, cumulative, selective) in due {
            self.last_ack = self.ms;
            let now = self.now();
            if self.program_answers {
                let _ = self.health.on_bytes_received(now);
            }
            let known = |it: &Segment| it.sequence < cumulative || selective.contains(&it.sequence);
            let mut newest = None;
            let mut fresh = 0_u32;
            for segment in self.segments.iter_mut().filter(|it| !it.sacked) {
                if known(segment) {
                    segment.sacked = true;
                    fresh += 1;
                    newest = newest.max(Some(segment.sent_ms));
                    if !segment.ever_retransmitted {
                        let error = (self.ms - segment.sent_ms) as f64 - self.srtt;
                        self.srtt += error / 8.0;
                        self.rttvar += (error.abs() - self.rttvar) / 4.0;
                    }
                }
            }
            self.segments.retain(|it| it.sequence >= cumulative);
            if fresh == 0 {
                continue;
            }
            self.last_answer = self.ms;
            self.delivered += fresh;
            (self.backoff, self.probed, self.timer) = (0, false, None);
            let before = self.segments.iter().any(|it| it.lost);
            let overtaken = newest.unwrap_or(0).saturating_sub((self.srtt / 4.0) as u64);
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
                self.arm();
            }
            if self.program_answers && self.health.on_progress(now) {
                self.outcomes.push((self.ms, Outcome::Recovered));
            }
        }
    }

    pub(super) fn sample(&self) -> TransportSample {
        let ms = |ms: f64| Duration::from_micros((ms * 1000.0) as u64);
        TransportSample {
            delivered: self.delivered,
            in_flight: self.in_flight() as u32,
            unacked: self.segments.len() as u32,
            segs_out: self.segs_out,
            retransmitted: self.retransmissions,
            last_ack: Duration::from_millis(self.ms - self.last_ack),
            srtt: ms(self.srtt),
            rttvar: ms(self.rttvar),
        }
    }

    /// Passes samples, PINGs and timeouts between the health and the modelled TCP, as a session and
    /// its driver do.
    fn check_health(&mut self) {
        let now = self.now();
        let unanswered = !self.segments.is_empty() || !self.backlog.is_empty();
        if unanswered && !self.unanswered {
            self.health.start_waiting(now);
        }
        self.unanswered = unanswered;
        let limits = self.limits.clone();
        let context = PathContext {
            limits: &limits,
            unanswered,
            connecting: false,
            judged: true,
            max_pings: super::MAX_PINGS,
            srtt: None,
        };
        // A PONG each second brings a sample with it.
        let pong = self.program_answers && self.ms.is_multiple_of(1000) && self.ms < self.last_answer + 100;
        if pong || self.health.wants_sample(now, context) {
            self.samples += 1;
            let sample = self.sample();
            if self.health.on_sample(now, sample) {
                self.outcomes.push((self.ms, Outcome::Recovered));
            }
        }
        if self.health.deadline(context).is_none_or(|at| at > now) {
            return;
        }
        let update = self.health.on_timeout(now, context);
        assert!(self.health.deadline(context).is_none_or(|at| at > now), "the timer would spin");
        if update.probing {
            self.outcomes.push((self.ms, Outcome::Probing));
        }
        if update.unresponsive.is_some() {
            self.outcomes.push((self.ms, Outcome::Unresponsive));
        }
        if update.send_ping {
            self.ping();
        }
    }
}
