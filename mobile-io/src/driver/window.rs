//! How much may stand below the session's queue: what is there is overtaken by nothing. The kernel's own congestion control
//! asks for more than a path needs (bbr for two bandwidth-delay products, those that go by loss for whatever its FIFO holds),
//! and on a slow path a keystroke would wait behind all of it. So a slow path is given what keeps it busy, and little more.

use std::time::{Duration, Instant};

use super::congestion;
use crate::tcp_info::Outgoing;

/// What waits unsent in the kernel, and what is taken for a write, are to be no more than this each: together with the
/// queue's own target (5 ms) a keystroke loses a third of an ordinary round trip.
const DEPTH: Duration = Duration::from_millis(4);

/// But two full-sized packets, whatever the rate.
const MIN_DEPTH: usize = 3 * 1024;

/// Three packets more than the path holds: it is busy with them while we wait for an acknowledgement, which tells of two.
const MIN_SLACK: u64 = 4500;

/// What is interactive is to find the kernel's window open when its turn comes, also in the 0.2 s of each ten in which bbr makes it four
/// segments (PROBE_RTT).
const SPARE_SEGMENTS: u64 = 2;

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

/// bbr finds a path's rate again within two seconds of sending. What is below for longer is so for another reason: on a very slow path,
/// few acknowledgements in a slot.
const BELOW_SLOTS: usize = 40;

/// So much is written at the least: an acknowledgement, and the beginning of a packet, which goes whole.
const MIN_ROOM: usize = 64;

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
    /// How much may be written before the path has as much on the way as it is to have.
    room: usize,
    /// Where the present slot began: when, and with how much acknowledged.
    began: Option<(Instant, u64)>,
    /// It had as much to send as it may, or as the kernel takes, in this slot.
    busy: bool,
    rates: [u64; SLOTS],
    /// How much the round trip varied at the end of each slot.
    variations: [Duration; SLOTS],
    next: usize,
    /// Slots in which the rate grew by less than an eighth, since it last did. Until the path is full, only busy ones count.
    flat: usize,
    /// The kernel is to send at less than half the rate that the path had lately; for so many busy slots by now.
    below: Option<usize>,
    /// The bytes last allowed in flight, where the bandwidth-delay product limits them.
    most: Option<u64>,
}

/// How closely a path is held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// The time to send what may be in flight beyond the bandwidth-delay product.
    pub(super) queue: Duration,
    /// For how long a rate that it had is remembered.
    pub(super) memory: Duration,
}

impl Window {
    pub(super) fn new(max_depth: usize) -> Self {
        Self {
            max_depth,
            depth: max_depth,
            room: max_depth,
            began: None,
            busy: false,
            rates: [0; SLOTS],
            variations: [Duration::MAX; SLOTS],
            next: 0,
            flat: 0,
            below: None,
            most: None,
        }
    }

    /// How many bytes are to be written at a time, of at least a packet; `None` on a fast path.
    pub(super) fn batch(&self) -> Option<usize> {
        self.depth().map(|depth| depth.min(self.room))
    }

    /// How many bytes of it are to wait at each place; `None` on a fast path.
    fn depth(&self) -> Option<usize> {
        (self.depth < self.max_depth).then_some(self.depth)
    }

    /// Whether the path is about to carry more than it does: it shows its rate only now, or the kernel starts again far below, as
    /// bbr does when a loss follows ten round trips with little to send. Then a queue that stands is not its senders' fault.
    pub(super) fn grows(&self) -> bool {
        self.flat < FLAT_SLOTS || self.below.is_some_and(|slots| slots <= BELOW_SLOTS)
    }

    /// How closely the path is held; `None`: no more is on its way than the kernel has there.
    pub(super) fn bounds(&self, path: &Outgoing) -> Option<Bounds> {
        let passes = Duration::from_secs_f64(self.most? as f64 / self.rate().max(1) as f64);
        let queue = passes.saturating_sub(path.shortest().unwrap_or_default());
        Some(Bounds { queue, memory: slot(path) * SLOTS as u32 })
    }

    /// For how long nothing more is to be sent, if anything is to wait. `refused`: since it was last asked, the kernel did not take all
    /// that there was.
    pub(super) fn hold(&mut self, now: Instant, path: Outgoing, refused: bool) -> Option<Duration> {
        self.measure(now, &path);
        self.most = None;
        let rate = self.rate();
        // The kernel's own idea is all there is before the first measurement, and it notices first that a path is fast.
        let starting = path.starting() && self.flat < FLAT_SLOTS;
        let paced = if rate == 0 || starting { path.pacing_rate.max(rate) } else { rate };
        self.depth = bytes_in(paced, DEPTH).clamp(MIN_DEPTH, self.max_depth);
        // A fast path has been waited for if something waits in it, and may so be found to be slow: in the kernel, or in the path's
        // FIFO, which senders that pace themselves fill without ever waiting for us.
        self.busy |= refused || path.unsent >= MIN_DEPTH as u64 || congestion::is_filled(&path);
        let depth = self.depth()? as u64;
        // Down to half, so that there is something to write then.
        let unsent = if path.unsent < depth { 0 } else { path.unsent - depth / 2 };
        // Half a batch at a time, for each is a TLS record.
        let most = if rate == 0 { u64::MAX } else { self.most(&path, rate, depth) };
        let beyond = (path.outstanding + depth / 2).saturating_sub(most);
        let window = if starting { u64::MAX } else { open_window(&path) };
        let over = path.outstanding.saturating_sub(window).max(unsent);
        self.busy |= over.max(beyond) > 0;
        // Not while the kernel finds out what the path carries: what is held back by the rate of the last round trip looks
        // to it like all that the path has, and with that it would go on for seconds.
        let (most, beyond) = if starting { (u64::MAX, 0) } else { (most, beyond) };
        self.most = (most < u64::MAX).then_some(most);
        let room = most.min(window).saturating_sub(path.outstanding);
        self.room = usize::try_from(room).unwrap_or(usize::MAX).max(MIN_ROOM);
        let wait = over.max(beyond) as f64 / paced.max(1) as f64;
        (wait > 0.0).then(|| Duration::try_from_secs_f64(wait).unwrap_or(MAX_HOLD).clamp(MIN_HOLD, MAX_HOLD))
    }

    /// How many bytes the path is to have at the most, sent or not, by its rate.
    fn most(&self, path: &Outgoing, rate: u64, depth: u64) -> u64 {
        let Some(rtt) = path.bbr.and_then(|bbr| bbr.min_rtt) else { return u64::MAX };
        // What the path holds when its FIFO is empty, and what keeps it busy until the timer wakes us. What varies most of the time
        // is not a queue of ours (for a moment, it may be); what was lost counts as on its way until it is repaired.
        let varies = self.variation().unwrap_or(path.rttvar);
        let more = if self.probes() || path.recovering { rtt / 4 } else { Duration::ZERO };
        bytes_in(rate, rtt + varies * 2 + more) as u64 + depth.max(MIN_SLACK)
    }

    fn measure(&mut self, now: Instant, path: &Outgoing) {
        let (began, acked) = *self.began.get_or_insert((now, path.acked));
        let lasted = now.saturating_duration_since(began);
        if lasted < slot(path) {
            return;
        }
        let bytes = path.acked.saturating_sub(acked) as f64;
        let rate = (bytes / lasted.as_secs_f64()) as u64;
        if rate > self.rate() * 9 / 8 {
            self.flat = 0;
        } else if self.busy || self.flat >= FLAT_SLOTS {
            self.flat += 1;
        }
        // One that had nothing to send says only what the path does at least.
        if self.busy || rate > self.rate() {
            self.rates[self.next] = rate;
            self.variations[self.next] = path.rttvar;
            self.next = (self.next + 1) % SLOTS;
        }
        let below = path.bbr.is_some_and(|bbr| bbr.rate < self.rate() / 2);
        self.below = below.then(|| self.below.unwrap_or(0) + usize::from(self.busy));
        self.began = Some((now, path.acked));
        self.busy = false;
    }

    /// Is more to be sent than the path is known to carry, so that more comes out if there is more to have? What it did not carry
    /// waits in its FIFO.
    fn probes(&self) -> bool {
        self.flat < FLAT_SLOTS || self.flat.is_multiple_of(PROBE_SLOTS)
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

fn slot(path: &Outgoing) -> Duration {
    SLOT.max(path.shortest().unwrap_or_default())
}

/// How many bytes leave room in bbr's window. (One that goes by loss grows only while it is full, and behind a loss bbr keeps it as
/// small as what is on its way.)
fn open_window(path: &Outgoing) -> u64 {
    let narrow = path.bbr.is_some() && !path.recovering;
    if narrow { path.window.saturating_sub(SPARE_SEGMENTS) * path.segment } else { u64::MAX }
}

fn bytes_in(bytes_per_second: u64, time: Duration) -> usize {
    let bytes = u128::from(bytes_per_second) * time.as_micros() / 1_000_000;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
