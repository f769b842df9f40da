//! Loss-based congestion control as in Linux: cubic (RFC 9438) with HyStart.

use std::time::{Duration, Instant};

use super::congestion::Ack;
use super::{MS, PACKET};

/// The state of cubic; windows are in packets.
pub(in crate::rate_control) struct Cubic {
    pub(super) window: f64,
    threshold: f64,
    /// The window before the last loss, and the time at which growth began after it.
    last_max: f64,
    epoch: Option<Instant>,
    /// The window of an AIMD flow in the same situation.
    friendly: f64,
}

/// RFC 9438: the factor of the window's decrease, and of its growth.
const BETA: f64 = 0.7;
const C: f64 = 0.4;

impl Cubic {
    pub(super) fn new() -> Self {
        Self { window: 10.0, threshold: f64::INFINITY, last_max: 0.0, epoch: None, friendly: 0.0 }
    }

    /// Continues with the window of another congestion control, in congestion avoidance.
    pub(super) fn resume(window: f64) -> Self {
        Self { window, threshold: window, last_max: window, epoch: None, friendly: window }
    }

    pub(super) fn left_slow_start(&self) -> bool {
        self.threshold.is_finite()
    }

    pub(super) fn is_in_slow_start(&self) -> bool {
        self.window < self.threshold
    }

    pub(super) fn on_ack(&mut self, ack: &Ack) {
        if !ack.window_limited || ack.recovering {
            return;
        }
        let acked = ack.acked as f64 / PACKET as f64;
        if self.is_in_slow_start() {
            self.window += acked;
            // HyStart: the round trip has grown.
            if self.window >= 16.0 && ack.rtt >= ack.min_rtt + (ack.min_rtt / 8).clamp(4 * MS, 16 * MS) {
                self.threshold = self.window;
            }
            return;
        }
        let began = *self.epoch.get_or_insert(ack.now);
        let past = (ack.now - began + ack.min_rtt).as_secs_f64();
        let to_max = ((self.last_max - self.window_after_loss()).max(0.0) / C).cbrt();
        let target = C * (past - to_max).powi(3) + self.last_max;
        self.friendly += 3.0 * (1.0 - BETA) / (1.0 + BETA) * acked / self.friendly.max(1.0);
        let target = target.max(self.friendly).clamp(self.window, self.window * 1.5);
        self.window += (target - self.window) / self.window * acked;
    }

    fn window_after_loss(&self) -> f64 {
        self.threshold.min(self.last_max)
    }

    pub(super) fn on_loss(&mut self) {
        self.last_max = self.window;
        self.window = (self.window * BETA).max(2.0);
        self.threshold = self.window;
        self.friendly = self.window;
        self.epoch = None;
    }

    /// Returns the kernel's pacing rate in bytes per second, which is only an estimate for a sender
    /// that is not paced.
    pub(super) fn pacing_rate(&self, rtt: Duration) -> f64 {
        let gain = if self.window < self.threshold / 2.0 { 2.0 } else { 1.2 };
        gain * self.window * PACKET as f64 / rtt.as_secs_f64().max(1e-6)
    }
}
