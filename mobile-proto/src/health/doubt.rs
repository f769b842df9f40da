//! The evidence: what was tried while a path is doubted, and how much of it a verdict takes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{MIN_INTERVAL, TransportSample};

/// Trials that have to go unanswered. Where a fifth of all round trips fail, eight of eight do in
/// three of a million cases.
const EVIDENCE: u32 = 8;
/// On a path known to lose next to nothing, where the kernel's window may hold back the rest.
const CLEAN_EVIDENCE: u32 = 5;
/// Where that ends, in repeated segments. It takes sixteen without one to get below it: at 20 %
/// that happens once in forty times, and five of five trials fail in 0.6 % of them.
const CLEAN: f64 = 0.01;
/// On a path known to lose more than a tenth: with 20 % lost in each direction 36 % of all round
/// trips fail, and eleven of eleven in one of a hundred thousand cases.
const LOSSY_EVIDENCE: u32 = 11;
const LOSSY: f64 = 0.1;

/// Repeats that say nothing of the path: the tail probe and the first timeout may be of the very
/// stall that is judged.
const OWN_REPEATS: f64 = 2.0;

/// Segments of one burst, which one acknowledgement answers, that count as one more trial. The
/// kernel takes in up to 45 at once, but a window of them was sent in several bursts.
const BURST: u32 = 8;

/// With the kernel in back-off nothing new gets out: then few segments (retransmissions) over a
/// long time must do. For how long, depends on the share of segments repeated lately: three of
/// three lost is no accident where few are, and where many are the kernel needs the time to try
/// often enough (200 ms, doubled each time: four tries in 3 s, six in 10 s, eight in 30 s).
const SLOW_EVIDENCE: u32 = 3;
const PATIENCES: [(f64, Duration); 2] = [(0.03, Duration::from_secs(3)), (LOSSY, Duration::from_secs(10))];
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);
/// Without any evidence at all (a transport that tells nothing any more), this many patiences.
const BLIND: u32 = 4;

/// Samples kept of one doubt: more than the longest wait for an answer has intervals.
const MAX_MARKS: usize = 64;

/// A time of doubt.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) since: Instant,
    /// What was delivered at its first sample.
    pub(super) base: Option<u32>,
    /// How many trials had been made at which time, in order.
    marks: VecDeque<(Instant, u32)>,
    /// The trials, and the segments sent, that the last mark knows.
    trials: u32,
    segs_out: u32,
    pub(super) pings_left: u32,
    /// When to look again.
    pub(super) next: Instant,
    /// With what the kernel has repeated before the doubt: unlike what came with the last progress
    /// this is up to date, but a repeat or two may be the dead path's.
    lately: Lately,
}

/// What else a verdict is made from.
pub(super) struct Case<'a> {
    /// A sample was taken just now.
    pub(super) fresh: bool,
    /// For how long there was no progress.
    pub(super) stalled: Duration,
    /// What the RTT asks for, where only time can tell.
    pub(super) patience: Duration,
    /// What was repeated until the last progress.
    pub(super) lately: &'a Lately,
}

/// What was sent and repeated lately, faded.
#[derive(Clone, Debug, Default)]
pub(super) struct Lately {
    sent: f64,
    repeated: f64,
    /// Of the kernel's counters, what is in already.
    seen: (u32, u32),
}

impl Doubt {
    pub(super) fn new(now: Instant, pings_left: u32, next: Instant) -> Self {
        let (marks, base) = (VecDeque::new(), None);
        Self { since: now, base, marks, trials: 0, segs_out: 0, pings_left, next, lately: Lately::default() }
    }

    /// The first sample. What is in the network was sent before it, over some time; what the
    /// kernel thinks lost is no evidence: it may have been, long before the path died.
    pub(super) fn begin(&mut self, now: Instant, sample: &TransportSample, lately: &Lately) {
        self.lately = lately.clone();
        self.lately.add(sample);
        self.base = Some(sample.delivered);
        self.segs_out = sample.segs_out;
        self.trials = sample.in_flight.min(2 + sample.in_flight / BURST);
        self.marks.push_back((now, self.trials));
    }

    /// A later one: what was sent since counts. Segments sent together are answered together, so
    /// they are hardly more than one trial.
    pub(super) fn mark(&mut self, now: Instant, segs_out: u32) {
        let sent = segs_out.wrapping_sub(self.segs_out);
        let early = self.marks.back().is_some_and(|(at, _)| now < *at + MIN_INTERVAL / 2);
        if sent > 0 && !early && self.marks.len() < MAX_MARKS {
            self.segs_out = segs_out;
            self.trials = self.trials.saturating_add(sent.min(1 + sent / BURST));
            self.marks.push_back((now, self.trials));
        }
    }

    /// Whether the path is dead, by all evidence. `wait` is how long a trial must be out to count.
    pub(super) fn convicts(&mut self, now: Instant, wait: Duration, case: &Case<'_>) -> bool {
        // What an old sample knows may have been answered since.
        let unanswered = if case.fresh { self.unanswered(now, wait) } else { 0 };
        let needed = if case.lately.is_clean() { CLEAN_EVIDENCE } else { self.lately.evidence() };
        let patience = self.lately.patience().max(case.patience);
        unanswered >= needed
            || (case.stalled >= patience && unanswered >= SLOW_EVIDENCE)
            // Counted from the doubt: this process may have slept before.
            || now.saturating_duration_since(self.since) >= patience.saturating_mul(BLIND)
    }

    /// How many trials went unanswered for longer than `wait`.
    fn unanswered(&mut self, now: Instant, wait: Duration) -> u32 {
        let old = |mark: &(Instant, u32)| now.saturating_duration_since(mark.0) >= wait;
        // Of the marks that are old enough the newest counts, and the older ones never will again.
        while self.marks.get(1).is_some_and(old) {
            self.marks.pop_front();
        }
        self.marks.front().filter(|mark| old(mark)).map_or(0, |mark| mark.1)
    }
}

impl Lately {
    /// The counters have moved on; old news fades.
    pub(super) fn add(&mut self, sample: &TransportSample) {
        let (sent, repeated) = self.seen;
        self.sent += f64::from(sample.segs_out.wrapping_sub(sent));
        self.repeated += f64::from(sample.retransmitted.wrapping_sub(repeated));
        self.seen = (sample.segs_out, sample.retransmitted);
        if self.sent > 200.0 {
            let fade = 100.0 / self.sent;
            (self.sent, self.repeated) = (100.0, self.repeated * fade);
        }
    }

    fn is_clean(&self) -> bool {
        self.repeated + 0.15 < self.sent * CLEAN
    }

    fn evidence(&self) -> u32 {
        if self.repeated <= self.sent * LOSSY + OWN_REPEATS { EVIDENCE } else { LOSSY_EVIDENCE }
    }

    fn patience(&self) -> Duration {
        let enough = |(share, _): &&(f64, Duration)| self.repeated <= self.sent * share + OWN_REPEATS;
        PATIENCES.iter().find(enough).map_or(LONGEST_PATIENCE, |(_, patience)| *patience)
    }
}
