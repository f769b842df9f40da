//! A small model of TCP over a bad link, with those parts that affect the health of a path:
//! selective acknowledgement, loss detection by later arrivals (RACK), tail probe, retransmission
//! timeout with back-off, and a congestion window. The model runs in steps of a millisecond, with
//! random numbers from a seed.

mod link;
mod peer;
mod sender;

use std::time::{Duration, Instant};

use link::Link;
pub(super) use link::LinkDirection;
use peer::Peer;
use sender::Sender;

use super::{Health, PathContext, TransportSample};
use crate::Limits;

/// A change of the path's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Probing,
    Unresponsive,
    Recovered,
}

/// A sender, the health of its path, a link and a receiver.
pub(super) struct Model {
    pub(super) link: Link,
    pub(super) peer: Peer,
    pub(super) health: Health,
    pub(super) outcomes: Vec<(u64, Outcome)>,
    pub(super) ms: u64,
    pub(super) samples: u64,
    pub(super) pings: u64,
    /// The time at which an acknowledgement of new data last arrived, in milliseconds since the
    /// model's start.
    pub(super) last_answer: u64,
    sender: Sender,
    limits: Limits,
    start: Instant,
    unanswered: bool,
}

impl Model {
    pub(super) fn new(up: LinkDirection, down: LinkDirection, seed: u64) -> Self {
        let rtt = (up.delay_ms + down.delay_ms) as f64;
        let mut model = Self {
            link: Link::new(up, down, seed),
            peer: Peer::new(),
            health: Health::default(),
            outcomes: Vec::new(),
            ms: 0,
            samples: 0,
            pings: 0,
            last_answer: 0,
            sender: Sender::new(rtt),
            limits: Limits::default(),
            start: Instant::now(),
            unanswered: false,
        };
        let (now, sample) = (model.now(), model.sender.sample(0));
        let _ = model.health.on_sample(now, sample);
        model
    }

    /// Sets whether each direction is dead from now on.
    pub(super) fn cut(&mut self, up: bool, down: bool) {
        (self.link.up.dead, self.link.down.dead) = (up, down);
    }

    /// Runs for a number of milliseconds, writing `bytes` every `write_every` of them (0 for
    /// never).
    pub(super) fn run(&mut self, milliseconds: u64, write_every: u64, bytes: u64) {
        for _ in 0..milliseconds {
            self.ms += 1;
            if write_every > 0 && self.ms.is_multiple_of(write_every) {
                self.sender.write(bytes);
            }
            self.peer.receive(self.ms, &mut self.link);
            self.arrive_here();
            self.sender.on_timer(self.ms, &mut self.link);
            self.sender.transmit(self.ms, &mut self.link);
            self.check_health();
            self.sender.transmit(self.ms, &mut self.link);
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
        self.sender.write_first(40);
        self.sender.transmit(self.ms, &mut self.link);
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.ms)
    }

    fn arrive_here(&mut self) {
        for (cumulative, selective) in self.link.arrived_down(self.ms) {
            let now = self.now();
            if self.peer.program_answers {
                let _ = self.health.on_bytes_received(now);
            }
            if !self.sender.on_ack(self.ms, cumulative, &selective) {
                continue;
            }
            self.last_answer = self.ms;
            if self.peer.program_answers && self.health.on_progress(now) {
                self.outcomes.push((self.ms, Outcome::Recovered));
            }
        }
    }

    /// Passes samples, PINGs and timeouts between the health and the modelled TCP, as a session and
    /// its driver do.
    fn check_health(&mut self) {
        let now = self.now();
        let unanswered = self.sender.is_unanswered();
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
        let pong =
            self.peer.program_answers && self.ms.is_multiple_of(1000) && self.ms < self.last_answer + 100;
        if pong || self.health.wants_sample(now, context) {
            self.samples += 1;
            let sample = self.sender.sample(self.ms);
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
