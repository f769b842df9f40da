//! The congestion control bbr, version 1 (net/ipv4/tcp_bbr.c).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::congestion::Ack;
use super::{MS, PACKET};

/// The state of bbr.
pub(in crate::rate_control) struct BbrModel {
    phase: Phase,
    /// The highest rates in bytes per second of the last ten round trips, each with its round trip;
    /// the first is the highest.
    rates: VecDeque<(u64, f64)>,
    round: u64,
    round_ends_at: u64,
    /// The rate at which the path was last not full, and the round trips without growth since.
    full_rate: f64,
    full_rounds: u32,
    pub(super) min_rtt: Duration,
    min_rtt_at: Instant,
    pub(super) pacing_rate: f64,
    /// The congestion window in bytes.
    pub(super) window: f64,
    window_before: f64,
    was_recovering: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Startup,
    Drain,
    ProbeBandwidth { index: usize, since: Instant },
    ProbeRtt { until: Option<Instant> },
}

/// `bbr_high_gain`: 2/ln(2).
const HIGH_GAIN: f64 = 2.885;
const WINDOW_GAIN: f64 = 2.0;
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
const MIN_WINDOW: f64 = 4.0 * PACKET as f64;

impl BbrModel {
    pub(super) fn new(now: Instant, min_rtt: Duration, srtt: Duration, window: u64, delivered: u64) -> Self {
        let window = window as f64;
        Self {
            phase: Phase::Startup,
            rates: VecDeque::new(),
            round: 0,
            round_ends_at: delivered,
            full_rate: 0.0,
            full_rounds: 0,
            min_rtt,
            min_rtt_at: now,
            pacing_rate: HIGH_GAIN * window / srtt.as_secs_f64().max(1e-3),
            window,
            window_before: window,
            was_recovering: false,
        }
    }

    pub(super) fn is_starting(&self) -> bool {
        self.phase == Phase::Startup
    }

    pub(super) fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |&(_, rate)| rate)
    }

    /// Returns whether bbr measures the round trip, in which case its rate samples are low on
    /// purpose.
    pub(super) fn is_probing_rtt(&self) -> bool {
        matches!(self.phase, Phase::ProbeRtt { .. })
    }

    pub(super) fn on_ack(&mut self, ack: &Ack) {
        let round_started = self.observe_rate(ack);
        self.advance_cycle(ack);
        if round_started && !ack.rate.app_limited && self.full_rounds < 3 {
            if self.rate() >= self.full_rate * 1.25 {
                (self.full_rate, self.full_rounds) = (self.rate(), 0);
            } else {
                self.full_rounds += 1;
            }
        }
        if self.phase == Phase::Startup && self.full_rounds >= 3 {
            self.phase = Phase::Drain;
        }
        if self.phase == Phase::Drain && ack.in_flight as f64 <= self.product(1.0) {
            self.begin_cycle(ack.now);
        }
        self.observe_rtt(ack);
        let pacing_rate = self.rate() * self.pacing_gain() * 0.99;
        if self.rate() > 0.0 && (self.full_rounds >= 3 || pacing_rate > self.pacing_rate) {
            self.pacing_rate = pacing_rate;
        }
        self.update_window(ack);
    }

    /// Records the delivery rate; returns whether a round trip has begun.
    fn observe_rate(&mut self, ack: &Ack) -> bool {
        let starts = ack.rate.prior_delivered >= self.round_ends_at;
        if starts {
            self.round += 1;
            self.round_ends_at = ack.delivered;
        }
        if let Some(rate) = ack.rate.rate
            && (!ack.rate.app_limited || rate >= self.rate())
        {
            while self.rates.back().is_some_and(|&(_, earlier)| earlier <= rate) {
                self.rates.pop_back();
            }
            self.rates.push_back((self.round, rate));
        }
        while self.rates.len() > 1 && self.rates[0].0 + 10 <= self.round {
            self.rates.pop_front();
        }
        starts
    }

    fn advance_cycle(&mut self, ack: &Ack) {
        let Phase::ProbeBandwidth { index, since } = self.phase else { return };
        let full_length = ack.now - since > self.min_rtt;
        let before = ack.in_flight + ack.acked;
        let ends = match CYCLE[index] {
            gain if gain > 1.0 => full_length && (ack.recovering || before as f64 >= self.product(gain)),
            gain if gain < 1.0 => full_length || before as f64 <= self.product(1.0),
            _ => full_length,
        };
        if ends {
            self.phase = Phase::ProbeBandwidth { index: (index + 1) % CYCLE.len(), since: ack.now };
        }
    }

    fn begin_cycle(&mut self, now: Instant) {
        // bbr begins at random, but not with the phase that drains.
        self.phase = Phase::ProbeBandwidth { index: 2, since: now };
    }

    fn observe_rtt(&mut self, ack: &Ack) {
        let expired = ack.now > self.min_rtt_at + MIN_RTT_WINDOW;
        if ack.rtt <= self.min_rtt || expired {
            (self.min_rtt, self.min_rtt_at) = (ack.rtt, ack.now);
        }
        if expired && !self.is_probing_rtt() {
            self.save_window();
            self.phase = Phase::ProbeRtt { until: None };
        }
        let Phase::ProbeRtt { until } = self.phase else { return };
        match until {
            None if ack.in_flight as f64 <= MIN_WINDOW => {
                let lasts = (200 * MS).max(self.min_rtt);
                self.phase = Phase::ProbeRtt { until: Some(ack.now + lasts) };
            }
            Some(end) if end <= ack.now => {
                self.min_rtt_at = ack.now;
                self.window = self.window.max(self.window_before);
                if self.full_rounds >= 3 {
                    self.begin_cycle(ack.now);
                } else {
                    self.phase = Phase::Startup;
                }
            }
            _ => {}
        }
    }

    /// Keeps the window for the end of a recovery or of a measurement of the round trip
    /// (`bbr_save_cwnd`).
    fn save_window(&mut self) {
        let is_reduced = self.was_recovering || self.is_probing_rtt();
        self.window_before = if is_reduced { self.window_before.max(self.window) } else { self.window };
    }

    fn pacing_gain(&self) -> f64 {
        match self.phase {
            Phase::Startup => HIGH_GAIN,
            Phase::Drain => 1.0 / HIGH_GAIN,
            Phase::ProbeBandwidth { index, .. } => CYCLE[index],
            Phase::ProbeRtt { .. } => 1.0,
        }
    }

    /// Returns the bandwidth-delay product times `gain`, in bytes.
    fn product(&self, gain: f64) -> f64 {
        gain * self.rate() * self.min_rtt.as_secs_f64()
    }

    fn update_window(&mut self, ack: &Ack) {
        let gain = if matches!(self.phase, Phase::ProbeBandwidth { .. }) { WINDOW_GAIN } else { HIGH_GAIN };
        let target = self.product(gain) + 6.0 * PACKET as f64;
        if ack.recovering && !self.was_recovering {
            // Packet conservation for one round trip.
            self.save_window();
            self.window = (ack.in_flight + ack.acked) as f64;
        } else if self.was_recovering && !ack.recovering {
            self.window = self.window.max(self.window_before);
        }
        self.was_recovering = ack.recovering;
        if self.full_rounds >= 3 {
            self.window = (self.window + ack.acked as f64).min(target);
        } else if self.window < target || ack.delivered < 10 * PACKET {
            self.window += ack.acked as f64;
        }
        self.window = self.window.max(MIN_WINDOW);
        if self.is_probing_rtt() {
            self.window = self.window.min(MIN_WINDOW);
        }
    }
}
