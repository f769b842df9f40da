//! How much may stand below the session's queue: what is there is overtaken by nothing. The kernel's own congestion control
//! asks for more than a path needs (bbr for two bandwidth-delay products, those that go by loss for whatever its FIFO holds),
//! and on a slow path a keystroke would wait behind all of it. So a slow path is given what keeps it busy, and little more.

use std::time::{Duration, Instant};

use super::congestion;
use crate::tcp_info::SendState;

/// What waits unsent in the kernel, and what is taken for a write, are to be no more than this each: together with the
/// queue's own target (5 ms) a keystroke loses a third of an ordinary round trip.
const BACKLOG_TIME: Duration = Duration::from_millis(4);

/// But two full-sized packets, whatever the rate.
const MIN_BACKLOG: usize = 3 * 1024;

/// Three packets more than the path holds: it is busy with them while we wait for an acknowledgement, which tells of two.
const MIN_SLACK: u64 = 4500;

/// What is interactive is to find the kernel's window open when its turn comes, also in the 0.2 s of each ten in which bbr makes it four
/// segments (PROBE_RTT).
const RESERVED_SEGMENTS: u64 = 2;

/// The rate is measured over this long, or a round trip: some packets of even a slow path.
const SAMPLE_TIME: Duration = Duration::from_millis(50);

/// The best of so many counts: a second, in which the kernel looks for the shortest round trip (0.2 s, bbr) and a process
/// may lose the processor.
const SAMPLES: usize = 20;

/// A path that had enough to send, and was no faster for so many slots, is full, whatever the kernel thinks: bbr starts for ever
/// below senders that pace themselves.
const FLAT_SAMPLES: usize = 3;

/// A full path is asked for more in one slot of so many: several times in the second that the rate is remembered.
const PROBE_SAMPLES: usize = 8;

/// bbr finds a path's rate again within two seconds of sending. What is below for longer is so for another reason: on a very slow path,
/// few acknowledgements in a slot.
const RAMP_UP_SAMPLES: usize = 40;

/// So much is written at the least: an acknowledgement, and the beginning of a packet, which goes whole.
const MIN_WRITE: usize = 64;

/// A held path is asked again after this long at the least, which is the timer's grain.
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// And at the most: acknowledgements may have made room earlier than the rate lets expect.
const MAX_PAUSE: Duration = Duration::from_millis(10);

/// The measured rate of one path, and what follows from it.
#[derive(Debug)]
pub(super) struct SendLimit {
    /// Above this depth, nothing is limited: the path is a fast one.
    max_backlog: usize,
    backlog: usize,
    /// How much may be written before the path has as much on the way as it is to have.
    writable: usize,
    /// Where the present slot began: when, and with how much acknowledged.
    sample_start: Option<(Instant, u64)>,
    /// It had as much to send as it may, or as the kernel takes, in this slot.
    saturated: bool,
    rates: [u64; SAMPLES],
    /// How much the round trip varied at the end of each slot.
    variations: [Duration; SAMPLES],
    next_sample: usize,
    /// Slots in which the rate grew by less than an eighth, since it last did. Until the path is full, only busy ones count.
    flat_samples: usize,
    /// The kernel is to send at less than half the rate that the path had lately; for so many busy slots by now.
    ramping_up: Option<usize>,
    /// The bytes last allowed in flight, where the bandwidth-delay product limits them.
    in_flight_cap: Option<u64>,
}

/// How closely a path is held.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlightLimit {
    /// The time to send what may be in flight beyond the bandwidth-delay product.
    pub(super) queue_delay: Duration,
    /// For how long a rate that it had is remembered.
    pub(super) rate_memory: Duration,
}

impl SendLimit {
    pub(super) fn new(max_backlog: usize) -> Self {
        Self {
            max_backlog,
            backlog: max_backlog,
            writable: max_backlog,
            sample_start: None,
            saturated: false,
            rates: [0; SAMPLES],
            variations: [Duration::MAX; SAMPLES],
            next_sample: 0,
            flat_samples: 0,
            ramping_up: None,
            in_flight_cap: None,
        }
    }

    /// How many bytes are to be written at a time, of at least a packet; `None` on a fast path.
    pub(super) fn batch(&self) -> Option<usize> {
        self.backlog().map(|backlog| backlog.min(self.writable))
    }

    /// How many bytes of it are to wait at each place; `None` on a fast path.
    fn backlog(&self) -> Option<usize> {
        (self.backlog < self.max_backlog).then_some(self.backlog)
    }

    /// Whether the path is about to carry more than it does: it shows its rate only now, or the kernel starts again far below, as
    /// bbr does when a loss follows ten round trips with little to send. Then a queue that stands is not its senders' fault.
    pub(super) fn is_growing(&self) -> bool {
        self.flat_samples < FLAT_SAMPLES || self.ramping_up.is_some_and(|slots| slots <= RAMP_UP_SAMPLES)
    }

    /// How closely the path is held; `None`: no more is on its way than the kernel has there.
    pub(super) fn in_flight_limit(&self, path: &SendState) -> Option<InFlightLimit> {
        let drain_time = Duration::from_secs_f64(self.in_flight_cap? as f64 / self.rate().max(1) as f64);
        let queue = drain_time.saturating_sub(path.base_rtt().unwrap_or_default());
        Some(InFlightLimit { queue_delay: queue, rate_memory: sample_time(path) * SAMPLES as u32 })
    }

    /// For how long nothing more is to be sent, if anything is to wait. `refused`: since it was last asked, the kernel did not take all
    /// that there was.
    pub(super) fn update(&mut self, now: Instant, path: SendState, write_blocked: bool) -> Option<Duration> {
        self.measure(now, &path);
        self.in_flight_cap = None;
        let rate = self.rate();
        // The kernel's own idea is all there is before the first measurement, and it notices first that a path is fast.
        let starting = path.is_starting() && self.flat_samples < FLAT_SAMPLES;
        let sending_rate = if rate == 0 || starting { path.pacing_rate.max(rate) } else { rate };
        self.backlog = bytes_in(sending_rate, BACKLOG_TIME).clamp(MIN_BACKLOG, self.max_backlog);
        // A fast path has been waited for if something waits in it, and may so be found to be slow: in the kernel, or in the path's
        // FIFO, which senders that pace themselves fill without ever waiting for us.
        self.saturated |=
            write_blocked || path.unsent >= MIN_BACKLOG as u64 || congestion::fills_bottleneck_queue(&path);
        let backlog = self.backlog()? as u64;
        // Down to half, so that there is something to write then.
        let unsent = if path.unsent < backlog { 0 } else { path.unsent - backlog / 2 };
        // Half a batch at a time, for each is a TLS record.
        let cap = if rate == 0 { u64::MAX } else { self.max_outstanding(&path, rate, backlog) };
        let beyond = (path.outstanding + backlog / 2).saturating_sub(cap);
        let window = if starting { u64::MAX } else { usable_cwnd(&path) };
        let over = path.outstanding.saturating_sub(window).max(unsent);
        self.saturated |= over.max(beyond) > 0;
        // Not while the kernel finds out what the path carries: what is held back by the rate of the last round trip looks
        // to it like all that the path has, and with that it would go on for seconds.
        let (cap, beyond) = if starting { (u64::MAX, 0) } else { (cap, beyond) };
        self.in_flight_cap = (cap < u64::MAX).then_some(cap);
        let writable = cap.min(window).saturating_sub(path.outstanding);
        self.writable = usize::try_from(writable).unwrap_or(usize::MAX).max(MIN_WRITE);
        let wait = over.max(beyond) as f64 / sending_rate.max(1) as f64;
        (wait > 0.0)
            .then(|| Duration::try_from_secs_f64(wait).unwrap_or(MAX_PAUSE).clamp(MIN_PAUSE, MAX_PAUSE))
    }

    /// How many bytes the path is to have at the most, sent or not, by its rate.
    fn max_outstanding(&self, path: &SendState, rate: u64, backlog: u64) -> u64 {
        let Some(rtt) = path.bbr.and_then(|bbr| bbr.min_rtt) else { return u64::MAX };
        // What the path holds when its FIFO is empty, and what keeps it busy until the timer wakes us. What varies most of the time
        // is not a queue of ours (for a moment, it may be); what was lost counts as on its way until it is repaired.
        let variation = self.variation().unwrap_or(path.rttvar);
        let margin = if self.is_probing() || path.recovering { rtt / 4 } else { Duration::ZERO };
        bytes_in(rate, rtt + variation * 2 + margin) as u64 + backlog.max(MIN_SLACK)
    }

    fn measure(&mut self, now: Instant, path: &SendState) {
        let (sample_start, acked_bytes) = *self.sample_start.get_or_insert((now, path.acked_bytes));
        let lasted = now.saturating_duration_since(sample_start);
        if lasted < sample_time(path) {
            return;
        }
        let bytes = path.acked_bytes.saturating_sub(acked_bytes) as f64;
        let rate = (bytes / lasted.as_secs_f64()) as u64;
        if rate > self.rate() * 9 / 8 {
            self.flat_samples = 0;
        } else if self.saturated || self.flat_samples >= FLAT_SAMPLES {
            self.flat_samples += 1;
        }
        // One that had nothing to send says only what the path does at least.
        if self.saturated || rate > self.rate() {
            self.rates[self.next_sample] = rate;
            self.variations[self.next_sample] = path.rttvar;
            self.next_sample = (self.next_sample + 1) % SAMPLES;
        }
        let ramping_up = path.bbr.is_some_and(|bbr| bbr.rate < self.rate() / 2);
        self.ramping_up = ramping_up.then(|| self.ramping_up.unwrap_or(0) + usize::from(self.saturated));
        self.sample_start = Some((now, path.acked_bytes));
        self.saturated = false;
    }

    /// Is more to be sent than the path is known to carry, so that more comes out if there is more to have? What it did not carry
    /// waits in its FIFO.
    fn is_probing(&self) -> bool {
        self.flat_samples < FLAT_SAMPLES || self.flat_samples.is_multiple_of(PROBE_SAMPLES)
    }

    /// The median of what is remembered.
    fn variation(&self) -> Option<Duration> {
        let mut sorted = self.variations;
        sorted.sort_unstable();
        let known = sorted.iter().filter(|variation| **variation < Duration::MAX).count();
        sorted[..known].get(known / 2).copied()
    }

    fn rate(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }
}

fn sample_time(path: &SendState) -> Duration {
    SAMPLE_TIME.max(path.base_rtt().unwrap_or_default())
}

/// How many bytes leave room in bbr's window. (One that goes by loss grows only while it is full, and behind a loss bbr keeps it as
/// small as what is on its way.)
fn usable_cwnd(path: &SendState) -> u64 {
    let limited = path.bbr.is_some() && !path.recovering;
    if limited { path.cwnd.saturating_sub(RESERVED_SEGMENTS) * path.mss } else { u64::MAX }
}

fn bytes_in(bytes_per_second: u64, time: Duration) -> usize {
    let bytes = u128::from(bytes_per_second) * time.as_micros() / 1_000_000;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
