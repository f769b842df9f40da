//! The evidence: what was tried while a path is doubted, and how much of it a verdict takes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{MIN_PING_INTERVAL, TransportSample};

/// Trials that have to go unanswered. Where a fifth of all round trips fail, eight of eight do in
/// three of a million cases.
const REQUIRED_TRIALS: u32 = 8;
/// On a path known to lose next to nothing, where the kernel's window may hold back the rest.
const REQUIRED_TRIALS_CLEAN: u32 = 5;
/// Where that ends, in repeated segments. It takes sixteen without one to get below it: at 20 %
/// that happens once in forty times, and five of five trials fail in 0.6 % of them.
const LOW_LOSS: f64 = 0.01;
/// On a path known to lose more than a tenth: with 20 % lost in each direction 36 % of all round
/// trips fail, and eleven of eleven in one of a hundred thousand cases.
const REQUIRED_TRIALS_LOSSY: u32 = 11;
const HIGH_LOSS: f64 = 0.1;

/// Repeats that say nothing of the path: the tail probe and the first timeout may be of the very
/// stall that is judged.
const OWN_RETRANSMISSIONS: f64 = 2.0;

/// Segments of one burst, which one acknowledgement answers, that count as one more trial. The
/// kernel takes in up to 45 at once, but a window of them was sent in several bursts.
const SEGMENTS_PER_TRIAL: u32 = 8;

/// With the kernel in back-off nothing new gets out: then few segments (retransmissions) over a
/// long time must do. For how long, depends on the share of segments repeated lately: three of
/// three lost is no accident where few are, and where many are the kernel needs the time to try
/// often enough (200 ms, doubled each time: four tries in 3 s, six in 10 s, eight in 30 s).
const MIN_TRIALS_IN_BACKOFF: u32 = 3;
const PATIENCES: [(f64, Duration); 2] =
    [(0.03, Duration::from_secs(3)), (HIGH_LOSS, Duration::from_secs(10))];
const MAX_PATIENCE: Duration = Duration::from_secs(30);
/// Without any evidence at all (a transport that tells nothing any more), this many patiences.
const BLIND_PATIENCES: u32 = 4;

/// Samples kept of one doubt: more than the longest wait for an answer has intervals.
const MAX_MARKS: usize = 64;

/// A time of doubt.
#[derive(Debug)]
pub(super) struct LivenessProbe {
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
    recent_loss: RecentLoss,
}

/// What else a verdict is made from.
pub(super) struct ProbeContext<'a> {
    /// A sample was taken just now.
    pub(super) fresh: bool,
    /// For how long there was no progress.
    pub(super) stalled_for: Duration,
    /// What the RTT asks for, where only time can tell.
    pub(super) patience: Duration,
    /// What was repeated until the last progress.
    pub(super) recent_loss: &'a RecentLoss,
}

/// What was sent and repeated lately, faded.
#[derive(Clone, Debug, Default)]
pub(super) struct RecentLoss {
    sent: f64,
    retransmitted: f64,
    /// Of the kernel's counters, what is in already.
    counted: (u32, u32),
}

impl LivenessProbe {
    pub(super) fn new(now: Instant, pings_left: u32, next: Instant) -> Self {
        let (marks, base) = (VecDeque::new(), None);
        Self {
            since: now,
            base,
            marks,
            trials: 0,
            segs_out: 0,
            pings_left,
            next,
            recent_loss: RecentLoss::default(),
        }
    }

    /// The first sample. What is in the network was sent before it, over some time; what the
    /// kernel thinks lost is no evidence: it may have been, long before the path died.
    pub(super) fn start(&mut self, now: Instant, sample: &TransportSample, recent_loss: &RecentLoss) {
        self.recent_loss = recent_loss.clone();
        self.recent_loss.update(sample);
        self.base = Some(sample.delivered);
        self.segs_out = sample.segs_out;
        self.trials = sample.in_flight.min(2 + sample.in_flight / SEGMENTS_PER_TRIAL);
        self.marks.push_back((now, self.trials));
    }

    /// A later one: what was sent since counts. Segments sent together are answered together, so
    /// they are hardly more than one trial.
    pub(super) fn on_sample(&mut self, now: Instant, segs_out: u32) {
        let sent = segs_out.wrapping_sub(self.segs_out);
        let early = self.marks.back().is_some_and(|(at, _)| now < *at + MIN_PING_INTERVAL / 2);
        if sent > 0 && !early && self.marks.len() < MAX_MARKS {
            self.segs_out = segs_out;
            self.trials = self.trials.saturating_add(sent.min(1 + sent / SEGMENTS_PER_TRIAL));
            self.marks.push_back((now, self.trials));
        }
    }

    /// Whether the path is dead, by all evidence. `wait` is how long a trial must be out to count.
    pub(super) fn is_conclusive(
        &mut self,
        now: Instant,
        trial_timeout: Duration,
        context: &ProbeContext<'_>,
    ) -> bool {
        // What an old sample knows may have been answered since.
        let unanswered = if context.fresh { self.unanswered(now, trial_timeout) } else { 0 };
        let needed = if context.recent_loss.is_clean() {
            REQUIRED_TRIALS_CLEAN
        } else {
            self.recent_loss.required_trials()
        };
        let patience = self.recent_loss.patience().max(context.patience);
        unanswered >= needed
            || (context.stalled_for >= patience && unanswered >= MIN_TRIALS_IN_BACKOFF)
            // Counted from the doubt: this process may have slept before.
            || now.saturating_duration_since(self.since) >= patience.saturating_mul(BLIND_PATIENCES)
    }

    /// How many trials went unanswered for longer than `wait`.
    fn unanswered(&mut self, now: Instant, trial_timeout: Duration) -> u32 {
        let old = |mark: &(Instant, u32)| now.saturating_duration_since(mark.0) >= trial_timeout;
        // Of the marks that are old enough the newest counts, and the older ones never will again.
        while self.marks.get(1).is_some_and(old) {
            self.marks.pop_front();
        }
        self.marks.front().filter(|mark| old(mark)).map_or(0, |mark| mark.1)
    }
}

impl RecentLoss {
    /// The counters have moved on; old news fades.
    pub(super) fn update(&mut self, sample: &TransportSample) {
        let (sent, retransmitted) = self.counted;
        self.sent += f64::from(sample.segs_out.wrapping_sub(sent));
        self.retransmitted += f64::from(sample.retransmitted.wrapping_sub(retransmitted));
        self.counted = (sample.segs_out, sample.retransmitted);
        if self.sent > 200.0 {
            let fade = 100.0 / self.sent;
            (self.sent, self.retransmitted) = (100.0, self.retransmitted * fade);
        }
    }

    fn is_clean(&self) -> bool {
        self.retransmitted + 0.15 < self.sent * LOW_LOSS
    }

    fn required_trials(&self) -> u32 {
        if self.retransmitted <= self.sent * HIGH_LOSS + OWN_RETRANSMISSIONS {
            REQUIRED_TRIALS
        } else {
            REQUIRED_TRIALS_LOSSY
        }
    }

    fn patience(&self) -> Duration {
        let enough =
            |(share, _): &&(f64, Duration)| self.retransmitted <= self.sent * share + OWN_RETRANSMISSIONS;
        PATIENCES.iter().find(enough).map_or(MAX_PATIENCE, |(_, patience)| *patience)
    }
}
