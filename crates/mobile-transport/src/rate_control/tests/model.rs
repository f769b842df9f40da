//! A model of one path: a session with a backlog, the driver that follows a [`RateControl`], the
//! kernel's TCP sender, and the bottleneck of the network.
//!
//! The model advances in steps of 0.1 ms of a virtual clock; timers of the driver fire up to 2 ms
//! late.

mod bbr;
mod bottleneck;
mod congestion;
mod cubic;
mod kernel;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bottleneck::Bottleneck;
use congestion::{Congestion, SteadyBbr};
use cubic::Cubic;
use kernel::{Kernel, Segment};

use super::super::{CongestionOutcome, RateControl, SocketChange, WriteOutcome};

pub(in crate::rate_control) const MS: Duration = Duration::from_millis(1);

/// The step of the virtual clock.
const STEP: Duration = Duration::from_micros(100);

/// The length in bytes of a bulk packet, and of a keystroke.
pub(in crate::rate_control) const PACKET: u64 = 1500;
const KEYSTROKE: u64 = 100;

/// The number of unsent bytes in the kernel at which a socket takes no more; from half of it on,
/// the socket is writable again.
pub(in crate::rate_control) const NOTSENT_LOWAT: usize = crate::transport::NOTSENT_LOWAT as usize;

/// The bytes that a socket holds unacknowledged: the default of `tcp_wmem`, and a raised buffer.
const SEND_BUFFER: u64 = 4 << 20;
const RAISED_SEND_BUFFER: u64 = 18 << 20;

/// A TLS record; with a smaller budget, a session sends a keystroke without bulk data behind it.
const FULL_TLS_RECORD: usize = 1 << 14;

/// The measurements of one run of a [`Link`].
pub(in crate::rate_control) struct RunResult {
    /// The number of bytes acknowledged to the path, and to the competing flow.
    pub(in crate::rate_control) bytes: u64,
    pub(in crate::rate_control) competing_bytes: u64,
    /// The longest and the mean delay of a packet in the FIFO.
    pub(in crate::rate_control) longest: Duration,
    pub(in crate::rate_control) mean: Duration,
    /// The longest time that a keystroke took from the session's queue through the bottleneck.
    pub(in crate::rate_control) slowest_keystroke: Duration,
}

/// A path whose session always has bulk data to send.
pub(in crate::rate_control) struct Link {
    pub(in crate::rate_control) control: RateControl,
    pub(in crate::rate_control) kernel: Kernel,
    pub(in crate::rate_control) bottleneck: Bottleneck,
    /// A greedy sender with loss-based congestion control that shares the bottleneck.
    competitor: Option<Kernel>,
    pub(in crate::rate_control) now: Instant,
    /// The time at which the driver's timer ends its pause; `None` if the driver does not pause.
    wakes_at: Option<Instant>,
    /// Whether the socket takes no more bytes, until half of its unsent bytes are gone.
    blocked: bool,
    send_buffer: u64,
    /// The time between two keystrokes; `None` if there are none.
    pub(in crate::rate_control) typing: Option<Duration>,
    /// The times at which the keystrokes came that wait in the session's queue.
    keystrokes: VecDeque<Instant>,
    pub(in crate::rate_control) switches: Switches,
}

/// How often the path changed its congestion control.
#[derive(Debug, Default)]
pub(in crate::rate_control) struct Switches {
    pub(in crate::rate_control) to_bbr: u32,
    pub(in crate::rate_control) back: u32,
}

impl Link {
    /// Creates a path with an unlimited FIFO whose kernel knows the path: bbr in a steady state
    /// with two and a half bandwidth-delay products in flight.
    pub(in crate::rate_control) fn known(rate: u64, rtt: Duration) -> Self {
        let known = SteadyBbr { min_rtt: rtt, starting: false };
        Self::with(Bottleneck::new(rate, rtt), Congestion::SteadyBbr(known))
    }

    /// Creates a path whose kernel starts with cubic.
    pub(in crate::rate_control) fn new(rate: u64, rtt: Duration) -> Self {
        Self::with(Bottleneck::new(rate, rtt), Congestion::LossBased(Cubic::new()))
    }

    fn with(bottleneck: Bottleneck, congestion: Congestion) -> Self {
        let now = bottleneck.began();
        Self {
            control: RateControl::limited(NOTSENT_LOWAT),
            kernel: Kernel::new(now, congestion),
            bottleneck,
            competitor: None,
            now,
            wakes_at: None,
            blocked: false,
            send_buffer: SEND_BUFFER,
            typing: None,
            keystrokes: VecDeque::new(),
            switches: Switches::default(),
        }
    }

    /// Returns what the kernel knows of the path.
    ///
    /// # Panics
    /// For a path that was not created with [`known`](Self::known).
    pub(in crate::rate_control) fn known_path(&mut self) -> &mut SteadyBbr {
        match &mut self.kernel.congestion {
            Congestion::SteadyBbr(known) => known,
            _ => panic!("the kernel measures the path"),
        }
    }

    /// Starts a flow with loss-based congestion control that shares the bottleneck.
    pub(in crate::rate_control) fn compete(&mut self) {
        self.competitor = Some(Kernel::new(self.now, Congestion::LossBased(Cubic::new())));
    }

    /// Returns whether the rate control has raised the send buffer.
    pub(in crate::rate_control) fn has_raised_send_buffer(&self) -> bool {
        self.send_buffer > SEND_BUFFER
    }

    /// Runs the model for the time `length`.
    pub(in crate::rate_control) fn run(&mut self, length: Duration) -> RunResult {
        let (end, before) = (self.now + length, self.kernel.delivered);
        let competing = |link: &Self| link.competitor.as_ref().map_or(0, |flow| flow.delivered);
        let competing_before = competing(self);
        let (mut longest, mut sum, mut slowest_keystroke) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let mut next_keystroke = self.typing.map(|interval| self.now + interval);
        while self.now < end {
            self.now += STEP;
            if next_keystroke.is_some_and(|at| at <= self.now) {
                self.keystrokes.push_back(self.now);
                next_keystroke = self.typing.map(|interval| self.now + interval);
            }
            self.step();
            longest = longest.max(self.kernel.last_queue_delay);
            sum += self.bottleneck.queue_delay(self.now);
            slowest_keystroke = slowest_keystroke.max(std::mem::take(&mut self.kernel.slowest_keystroke));
        }
        let waiting = self.keystrokes.front().map_or(Duration::ZERO, |at| self.now - *at);
        RunResult {
            bytes: self.kernel.delivered - before,
            competing_bytes: competing(self) - competing_before,
            longest,
            mean: sum / (length.as_micros() / STEP.as_micros()) as u32,
            slowest_keystroke: slowest_keystroke.max(waiting),
        }
    }

    fn step(&mut self) {
        if let Some(flow) = &mut self.competitor {
            flow.receive(self.now);
            while flow.unsent_bytes() < NOTSENT_LOWAT as u64 {
                flow.write(Segment { bytes: PACKET, typed_at: None });
            }
            flow.send(self.now, &mut self.bottleneck);
        }
        self.kernel.receive(self.now);
        self.drive();
        self.kernel.send(self.now, &mut self.bottleneck);
    }

    /// Writes to the socket as the driver does.
    fn drive(&mut self) {
        if self.wakes_at.is_some_and(|at| at > self.now) {
            return;
        }
        loop {
            let unsent = self.kernel.unsent_bytes();
            let full = unsent >= NOTSENT_LOWAT as u64 || self.kernel.outstanding() >= self.send_buffer;
            self.blocked = full || (self.blocked && unsent >= NOTSENT_LOWAT as u64 / 2);
            if self.blocked {
                self.control.on_write(WriteOutcome::Blocked);
                return;
            }
            self.control.on_write(WriteOutcome::Complete);
            self.sample();
            let budget = self.control.budget();
            if budget.bytes == 0 {
                let late = MS * (self.kernel.delivered / PACKET % 2 + 1) as u32;
                self.wakes_at = self.control.paused_until().map(|until| until + late);
                return;
            }
            self.wakes_at = None;
            self.write_batch(budget.bytes);
            self.kernel.send(self.now, &mut self.bottleneck);
        }
    }

    /// Writes keystrokes first, and bulk packets until the budget is used up.
    fn write_batch(&mut self, budget: usize) {
        let mut written = 0;
        while written < budget as u64 {
            let typed_at = self.keystrokes.pop_front();
            let bytes = if typed_at.is_some() { KEYSTROKE } else { PACKET };
            self.kernel.write(Segment { bytes, typed_at });
            written += bytes;
            if typed_at.is_some() && self.keystrokes.is_empty() && budget < FULL_TLS_RECORD {
                return;
            }
        }
    }

    fn sample(&mut self) {
        if !self.control.sample_due().is_due(self.now) {
            return;
        }
        let sample = self.kernel.sample(&self.bottleneck);
        for command in self.control.observe(self.now, &sample) {
            match command {
                SocketChange::UseBbr => {
                    self.switches.to_bbr += 1;
                    self.kernel.switch_to_bbr(self.now);
                    self.control.report(CongestionOutcome::Replaced(b"cubic".to_vec()));
                }
                SocketChange::RestoreCongestionControl(name) => {
                    assert_eq!(name, b"cubic");
                    self.switches.back += 1;
                    self.kernel.switch_to_cubic();
                    self.control.report(CongestionOutcome::Restored);
                }
                SocketChange::RaiseSendBuffer => self.send_buffer = RAISED_SEND_BUFFER,
            }
        }
    }
}
