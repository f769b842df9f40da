//! The bottleneck of the network: a FIFO that is served at a fixed rate.

use std::time::{Duration, Instant};

/// A bottleneck, and the propagation delay of the path through it.
pub(in crate::rate_control) struct Bottleneck {
    /// The rate in bytes per second.
    pub(in crate::rate_control) rate: u64,
    /// The round trip with an empty FIFO.
    pub(in crate::rate_control) rtt: Duration,
    /// The number of bytes that the FIFO holds.
    pub(in crate::rate_control) fifo: u64,
    /// The probability with which a packet is lost behind the FIFO.
    pub(in crate::rate_control) loss: f64,
    free_at: Instant,
    random: u64,
}

/// The fate of one packet.
pub(super) struct Passage {
    /// The time that the packet waits in the FIFO.
    pub(super) queue_delay: Duration,
    /// The time at which the packet has left the bottleneck.
    pub(super) passed_at: Instant,
    /// The time at which an immediate acknowledgement is back; `None` if the packet was lost.
    pub(super) ack_at: Option<Instant>,
}

impl Bottleneck {
    pub(super) fn new(rate: u64, rtt: Duration) -> Self {
        Self { rate, rtt, fifo: u64::MAX, loss: 0.0, free_at: Instant::now(), random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Returns the time at which the model begins.
    pub(super) fn began(&self) -> Instant {
        self.free_at
    }

    /// Returns how long a packet that came now would wait.
    pub(super) fn queue_delay(&self, now: Instant) -> Duration {
        self.free_at.saturating_duration_since(now)
    }

    /// Passes a packet of this length.
    pub(super) fn pass(&mut self, now: Instant, bytes: u64) -> Passage {
        let queue_delay = self.queue_delay(now);
        let queued = (queue_delay.as_secs_f64() * self.rate as f64) as u64;
        if queued.saturating_add(bytes) > self.fifo {
            return Passage { queue_delay, passed_at: now + queue_delay, ack_at: None };
        }
        self.free_at = now + queue_delay + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let lost = self.loss > 0.0 && self.chance() < self.loss;
        let ack_at = (!lost).then(|| self.free_at + self.rtt);
        Passage { queue_delay, passed_at: self.free_at, ack_at }
    }

    /// Returns a number from 0 to 1 (xorshift64).
    fn chance(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}
