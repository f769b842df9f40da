//! Limits how much data of a path may wait below the session's queue (in the kernel and in the
//! bottleneck's FIFO), where more urgent packets cannot overtake it.
//!
//! The kernel's congestion control keeps more in flight than a path needs: bbr two bandwidth-delay
//! products, loss-based algorithms as much as the bottleneck's FIFO holds. On a slow path a
//! keystroke would wait behind all of this data. So a slow path gets just enough data to keep it
//! busy.

use std::time::{Duration, Instant};

use super::congestion;
use super::sample::TcpSample;

/// The time that sending a backlog may take. There are two backlogs: the unsent bytes in the
/// kernel, and the bytes of one write.
///
/// With both backlogs and the target delay of the session's queue (5 ms), a keystroke waits a third
/// of an ordinary round trip.
const BACKLOG_TIME: Duration = Duration::from_millis(4);

/// The minimum size in bytes of each backlog (the unsent bytes in the kernel, and one write): two
/// full-sized packets, whatever the rate.
const MIN_BACKLOG: usize = 3 * 1024;

/// The minimum number of bytes allowed in flight beyond the bandwidth-delay product: three packets,
/// so that a delayed ACK, which covers two, does not idle the path.
const MIN_SLACK: u64 = 4500;

/// The number of segments of bbr's congestion window that bulk data leaves free.
///
/// Interactive packets can then be sent at once, even in the 0.2 s of every ten seconds in which
/// bbr reduces its window to four segments (PROBE_RTT).
const RESERVED_SEGMENTS: u64 = 2;

/// The minimum duration of one sample of a path's rate, in which some packets are acknowledged even
/// on a slow path. A sample lasts a round trip if that is longer.
const SAMPLE_TIME: Duration = Duration::from_millis(50);

/// The number of rate samples to remember, which together span one second. The highest of them is
/// taken as the path's rate.
///
/// A second covers bbr's search for the minimum round trip (0.2 s) and the time for which this
/// process may be preempted.
const SAMPLES: usize = 20;

/// The number of rate samples without growth after which a saturated path (with more data to send
/// than it accepts) counts as full, that is, as sending at its capacity, even if the kernel is
/// still in start-up.
///
/// The kernel's phase is no sign, because bbr never leaves its start-up when the senders of the
/// inner connections pace themselves.
const FLAT_SAMPLES: usize = 3;

/// The period, in rate samples, at which a full path is probed for more capacity: several times in
/// the second for which a rate is remembered.
const PROBE_SAMPLES: usize = 8;

/// The number of rate samples, saturated (with more data to send than the path accepts), after
/// which a low rate of bbr is no longer attributed to a start-up of bbr.
///
/// bbr regains the rate of a path within two seconds of sending. A longer deficit has another
/// cause, such as too few acknowledgements in a sample on a very slow path.
const RAMP_UP_SAMPLES: usize = 40;

/// The minimum number of bytes that may be written at a time: an acknowledgement of an inner
/// connection, and the beginning of a packet, which is then written whole.
const MIN_WRITE: usize = 64;

/// The minimum pause before a path that has enough data in flight may send again: the resolution of
/// tokio's timer.
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// The maximum pause of a path that has enough data in flight, because acknowledgements may arrive
/// earlier than the rate suggests.
const MAX_PAUSE: Duration = Duration::from_millis(10);

/// Measures the rate of one path and derives how many bytes the path may send.
#[derive(Debug)]
pub(super) struct SendLimit {
    /// The size in bytes of a backlog at which the path counts as fast and is not limited.
    max_backlog: usize,
    backlog: usize,
    /// The number of bytes that may be written before the path has enough data in flight.
    writable: usize,
    /// The start of the current rate sample: its time, and the total of acknowledged bytes at that
    /// time.
    sample_start: Option<(Instant, u64)>,
    /// Whether, during the current rate sample, there was more data to send than the path or the
    /// kernel accepted.
    saturated: bool,
    /// The remembered samples, of which the oldest is replaced once there are [`SAMPLES`]; empty on
    /// an idle path, so that it takes no memory.
    samples: Vec<RateSample>,
    next_sample: usize,
    /// The number of rate samples since the rate last grew by an eighth. Until the path is full,
    /// only samples count in which there was more data to send than the path accepted.
    flat_samples: usize,
    /// The number of rate samples with more data to send than the path accepted, in which bbr's
    /// estimate was less than half of the remembered rate; `None` if its estimate is now higher.
    ramping_up: Option<usize>,
    /// The limit on the outstanding bytes that the last update computed; `None` if only the kernel
    /// limits them.
    in_flight_cap: Option<u64>,
}

/// The measurements of one period of a path.
#[derive(Debug, Clone, Copy)]
struct RateSample {
    /// The acknowledged bytes per second.
    rate: u64,
    /// The kernel's `rttvar` (variation of the round trip) at the end of the period.
    variation: Duration,
}

/// The current limit on the bytes in flight of a path, as the detection of cross traffic needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlightLimit {
    /// The queueing delay that the limit permits: the time to send the bytes that are allowed in
    /// flight beyond the bandwidth-delay product.
    pub(super) queue_delay: Duration,
    /// The time for which a measured rate is remembered after the path has become slower.
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
            samples: Vec::new(),
            next_sample: 0,
            flat_samples: 0,
            ramping_up: None,
            in_flight_cap: None,
        }
    }

    /// Returns how many bytes of packets to write at a time, before rounding up to whole packets;
    /// `None` on a fast path, which is not limited.
    pub(super) fn batch(&self) -> Option<usize> {
        self.backlog().map(|backlog| backlog.min(self.writable))
    }

    /// Returns the maximum number of unsent bytes in the kernel, which is also the maximum number
    /// of bytes of one write; `None` on a fast path, which is not limited.
    fn backlog(&self) -> Option<usize> {
        (self.backlog < self.max_backlog).then_some(self.backlog)
    }

    /// Returns whether the throughput of the path is expected to rise soon.
    ///
    /// Either the path's rate is not known yet, or bbr starts again from a far lower rate, as
    /// happens when a loss follows ten round trips with little to send. In both cases the session
    /// drops no packet for its delay in the queue, because the senders are not to blame for the
    /// delay.
    pub(super) fn is_growing(&self) -> bool {
        self.flat_samples < FLAT_SAMPLES || self.ramping_up.is_some_and(|slots| slots <= RAMP_UP_SAMPLES)
    }

    /// Returns the current limit on the bytes in flight; `None` if only the kernel limits them.
    pub(super) fn in_flight_limit(&self, path: &TcpSample) -> Option<InFlightLimit> {
        let drain_time = Duration::from_secs_f64(self.in_flight_cap? as f64 / self.rate().max(1) as f64);
        let queue = drain_time.saturating_sub(path.base_rtt().unwrap_or_default());
        Some(InFlightLimit { queue_delay: queue, rate_memory: sample_time(path) * SAMPLES as u32 })
    }

    /// Updates the measured rate and the limits. Returns how long to pause if the path has enough
    /// data in flight or in the kernel; otherwise `None`.
    ///
    /// `write_blocked`: whether the socket refused some of the data since the last update.
    pub(super) fn update(&mut self, now: Instant, path: TcpSample, write_blocked: bool) -> Option<Duration> {
        self.measure(now, &path);
        self.in_flight_cap = None;
        let rate = self.rate();
        // Before the first measurement the kernel's pacing rate is the only estimate. The kernel
        // also notices first that a path is fast.
        let starting = path.is_starting() && self.flat_samples < FLAT_SAMPLES;
        let sending_rate = if rate == 0 || starting { path.pacing_rate.max(rate) } else { rate };
        self.backlog = bytes_in(sending_rate, BACKLOG_TIME).clamp(MIN_BACKLOG, self.max_backlog);
        // A fast path is not paused, but still counts as saturated if data waits below the session,
        // so that the path can turn out to be slow. The data may wait in the kernel or in the
        // bottleneck's FIFO, which paced senders fill without ever blocking a write.
        self.saturated |=
            write_blocked || path.unsent >= MIN_BACKLOG as u64 || congestion::fills_bottleneck_queue(&path);
        let backlog = self.backlog()? as u64;
        // Pause until half of the backlog is left, so that there is room for a write.
        let unsent = if path.unsent < backlog { 0 } else { path.unsent - backlog / 2 };
        // Write at least half a batch at a time, because each write is a TLS record.
        let cap = if rate == 0 { u64::MAX } else { self.max_outstanding(&path, rate, backlog) };
        let beyond = (path.outstanding + backlog / 2).saturating_sub(cap);
        let window = if starting { u64::MAX } else { usable_cwnd(&path) };
        let over = path.outstanding.saturating_sub(window).max(unsent);
        self.saturated |= over.max(beyond) > 0;
        // Do not limit the path while the kernel searches for its capacity. If the rate of the last
        // round trip held data back, the kernel would take that rate for the capacity and keep it
        // for seconds.
        let (cap, beyond) = if starting { (u64::MAX, 0) } else { (cap, beyond) };
        self.in_flight_cap = (cap < u64::MAX).then_some(cap);
        let writable = cap.min(window).saturating_sub(path.outstanding);
        self.writable = usize::try_from(writable).unwrap_or(usize::MAX).max(MIN_WRITE);
        let wait = over.max(beyond) as f64 / sending_rate.max(1) as f64;
        (wait > 0.0)
            .then(|| Duration::try_from_secs_f64(wait).unwrap_or(MAX_PAUSE).clamp(MIN_PAUSE, MAX_PAUSE))
    }

    /// Returns how many bytes, sent or unsent, the kernel may hold unacknowledged at the measured
    /// rate; `u64::MAX` for a path without bbr.
    fn max_outstanding(&self, path: &TcpSample, rate: u64, backlog: u64) -> u64 {
        let Some(rtt) = path.bbr.and_then(|bbr| bbr.min_rtt) else { return u64::MAX };
        // The bandwidth-delay product, and enough to keep the path busy until the timer fires.
        // Typical variation of the round trip is not our own queue, though it may be for a moment.
        // Lost segments count as in flight until they are repaired.
        let variation = self.variation().unwrap_or(path.rttvar);
        let margin = if self.is_probing() || path.recovering { rtt / 4 } else { Duration::ZERO };
        bytes_in(rate, rtt + variation * 2 + margin) as u64 + backlog.max(MIN_SLACK)
    }

    fn measure(&mut self, now: Instant, path: &TcpSample) {
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
        // A sample that was not saturated only gives a lower bound of the capacity.
        if self.saturated || rate > self.rate() {
            self.remember(RateSample { rate, variation: path.rttvar });
        }
        let ramping_up = path.bbr.is_some_and(|bbr| bbr.rate < self.rate() / 2);
        self.ramping_up = ramping_up.then(|| self.ramping_up.unwrap_or(0) + usize::from(self.saturated));
        self.sample_start = Some((now, path.acked_bytes));
        self.saturated = false;
    }

    /// Returns whether to send more than the measured rate, to find out whether the path carries
    /// more.
    ///
    /// The excess waits in the FIFO of the bottleneck if the path does not carry more.
    fn is_probing(&self) -> bool {
        self.flat_samples < FLAT_SAMPLES || self.flat_samples.is_multiple_of(PROBE_SAMPLES)
    }

    fn remember(&mut self, sample: RateSample) {
        match self.samples.get_mut(self.next_sample) {
            Some(oldest) => *oldest = sample,
            None => self.samples.push(sample),
        }
        self.next_sample = (self.next_sample + 1) % SAMPLES;
    }

    /// Returns the median of the remembered variations of the round trip; `None` before the first
    /// rate sample.
    fn variation(&self) -> Option<Duration> {
        let mut sorted = [Duration::ZERO; SAMPLES];
        let known = self.samples.len();
        for (sorted, sample) in sorted.iter_mut().zip(&self.samples) {
            *sorted = sample.variation;
        }
        sorted[..known].sort_unstable();
        sorted[..known].get(known / 2).copied()
    }

    fn rate(&self) -> u64 {
        self.samples.iter().map(|sample| sample.rate).max().unwrap_or(0)
    }
}

fn sample_time(path: &TcpSample) -> Duration {
    SAMPLE_TIME.max(path.base_rtt().unwrap_or_default())
}

/// Returns how many bytes of bbr's congestion window bulk data may use.
///
/// Returns `u64::MAX` for loss-based congestion control, which grows its window only while that is
/// full, and for bbr during loss recovery, when its window is already reduced to the bytes in
/// flight.
fn usable_cwnd(path: &TcpSample) -> u64 {
    let limited = path.bbr.is_some() && !path.recovering;
    if limited { path.window.segments.saturating_sub(RESERVED_SEGMENTS) * path.window.mss } else { u64::MAX }
}

fn bytes_in(bytes_per_second: u64, time: Duration) -> usize {
    let bytes = u128::from(bytes_per_second) * time.as_micros() / 1_000_000;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
