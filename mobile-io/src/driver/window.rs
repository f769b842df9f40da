//! How much may stand below the session's queue: what is there is overtaken by nothing. The kernel's own congestion control
//! asks for more than a path needs (bbr for two bandwidth-delay products, those that go by loss for whatever its FIFO holds),
//! and on a slow path a keystroke would wait behind all of it. So a slow path is given what keeps it busy, and little more.

use std::time::{Duration, Instant};

use crate::tcp_info::Outgoing;

/// What waits unsent in the kernel, and what is taken for a write, are to be no more than this each: together with the
/// queue's own target (5 ms) a keystroke loses a third of an ordinary round trip.
const DEPTH: Duration = Duration::from_millis(4);

/// But two full-sized packets, whatever the rate.
const MIN_DEPTH: usize = 3 * 1024;

/// More than a packet is left for the path to be busy with while we wait for an acknowledgement: one tells of two.
const MIN_SLACK: u64 = 2400;

/// The rate is measured over this long, or a round trip: some packets of even a slow path.
const SLOT: Duration = Duration::from_millis(50);

/// The best of so many counts: a second, in which the kernel looks for the shortest round trip (0.2 s, bbr) and a process
/// may lose the processor.
const SLOTS: usize = 20;

/// A path that had enough to send, and was no faster for so many slots, is full, whatever the kernel thinks: bbr starts for ever
/// below senders that pace themselves.
const FLAT_SLOTS: usize = 3;

/// A full path is asked for more in one slot of so many: several times in the second that the rate is remembered.
const PROBE_SLOTS: usize = 8;

/// A held path is asked again after this long at the least, which is the timer's grain.
const MIN_HOLD: Duration = Duration::from_millis(1);
/// And at the most: acknowledgements may have made room earlier than the rate lets expect.
const MAX_HOLD: Duration = Duration::from_millis(10);

/// The measured rate of one path, and what follows from it.
#[derive(Debug)]
pub(super) struct Window {
    /// Above this depth, nothing is limited: the path is a fast one.
    max_depth: usize,
    depth: usize,
    /// Where the present slot began: when, and with how much acknowledged.
    began: Option<(Instant, u64)>,
    /// It had as much to send as it may, in this slot.
    busy: bool,
    rates: [u64; SLOTS],
    next: usize,
    /// Busy slots in which the rate grew by less than an eighth, since it last did.
    flat: usize,
    /// The kernel sends at less than half the rate that the path had lately.
    below: bool,
}

impl Window {
    pub(super) fn new(max_depth: usize) -> Self {
        Self {
            max_depth,
            depth: max_depth,
            began: None,
            busy: false,
            rates: [0; SLOTS],
            next: 0,
            flat: 0,
            below: false,
        }
    }

    /// How many bytes of it are to wait at each place; `None` on a fast path.
    pub(super) fn depth(&self) -> Option<usize> {
        (self.depth < self.max_depth).then_some(self.depth)
    }

    /// Whether the path is about to carry more than it does: it shows its rate only now, or the kernel starts again far below, as
    /// bbr does when a loss follows ten round trips with little to send. Then a queue that stands is not its senders' fault.
    pub(super) fn grows(&self) -> bool {
        self.flat < FLAT_SLOTS || self.below
    }

    /// For how long nothing more is to be sent, if anything is to wait.
    pub(super) fn hold(&mut self, now: Instant, path: Outgoing) -> Option<Duration> {
        self.measure(now, &path);
        let rate = self.rate();
        self.below = path.bbr.is_some_and(|bbr| bbr.rate < rate / 2);
        // The kernel's own idea is all there is before the first measurement, and it notices first that a path is fast.
        let starting = path.starting() && self.flat < FLAT_SLOTS;
        let paced = if rate == 0 || starting { path.pacing_rate.max(rate) } else { rate };
        self.depth = bytes_in(paced, DEPTH).clamp(MIN_DEPTH, self.max_depth);
        // A fast path has been waited for if something waits in it, and may so be found to be slow.
        self.busy |= path.unsent >= MIN_DEPTH as u64;
        let depth = self.depth()? as u64;
        // Down to half, so that there is something to write then.
        let unsent = if path.unsent < depth { 0 } else { path.unsent - depth / 2 };
        let min_rtt = path.bbr.and_then(|bbr| bbr.min_rtt).filter(|_| rate > 0);
        let beyond = min_rtt.map_or(0, |rtt| {
            // What the path holds when its FIFO is empty, and what keeps it busy until the timer wakes us. What varies without us
            // is not a queue of ours; behind a loss, what came is not all acknowledged.
            let more = if self.probes() || path.recovering { rtt / 4 } else { Duration::ZERO };
            let holds = rtt + path.rttvar * 2 + more;
            path.outstanding.saturating_sub(bytes_in(rate, holds) as u64 + (depth / 2).max(MIN_SLACK))
        });
        self.busy |= unsent.max(beyond) > 0;
        // Not while the kernel finds out what the path carries: what is held back by the rate of the last round trip looks
        // to it like all that the path has, and with that it would go on for seconds.
        let beyond = if starting { 0 } else { beyond };
        let wait = unsent.max(beyond) as f64 / paced.max(1) as f64;
        (wait > 0.0).then(|| Duration::try_from_secs_f64(wait).unwrap_or(MAX_HOLD).clamp(MIN_HOLD, MAX_HOLD))
    }

    fn measure(&mut self, now: Instant, path: &Outgoing) {
        let (began, acked) = *self.began.get_or_insert((now, path.acked));
        let lasted = now.saturating_duration_since(began);
        if lasted < SLOT.max(path.bbr.map_or(path.min_rtt, |bbr| bbr.min_rtt).unwrap_or_default()) {
            return;
        }
        let bytes = path.acked.saturating_sub(acked) as f64;
        let rate = (bytes / lasted.as_secs_f64()) as u64;
        if rate > self.rate() * 9 / 8 {
            self.flat = 0;
        } else if self.busy {
            self.flat += 1;
        }
        // One that had nothing to send says only what the path does at least.
        if self.busy || rate > self.rate() {
            self.rates[self.next] = rate;
            self.next = (self.next + 1) % SLOTS;
        }
        self.began = Some((now, path.acked));
        self.busy = false;
    }

    /// Is more to be sent than the path is known to carry, so that more comes out if there is more to have? What it did not carry
    /// waits in its FIFO.
    fn probes(&self) -> bool {
        self.flat < FLAT_SLOTS || self.flat.is_multiple_of(PROBE_SLOTS)
    }

    fn rate(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }
}

fn bytes_in(bytes_per_second: u64, time: Duration) -> usize {
    let bytes = u128::from(bytes_per_second) * time.as_micros() / 1_000_000;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
