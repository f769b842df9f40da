//! Counts the unanswered trials while a path is probing, and decides whether they are enough to
//! make the path unresponsive.
//!
//! A *trial* is a segment, or a burst of segments, that was sent and should have been answered.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{MIN_PING_INTERVAL, TransportSample};

/// Number of trials that have to go unanswered before a path is unresponsive. Where a fifth of all
/// round trips fail, eight of eight trials fail by chance in three of a million cases.
const REQUIRED_TRIALS: u32 = 8;
/// Number of required trials on a path that loses almost nothing, where the kernel's congestion
/// window may hold back further trials.
const REQUIRED_TRIALS_CLEAN: u32 = 5;
/// Share of retransmitted segments below which a path loses almost nothing. A path counts as such
/// after sixteen segments without a retransmission. At 20 % loss that happens by chance in one of
/// forty cases, and in 0.6 % of these, five of five trials fail.
const LOW_LOSS: f64 = 0.01;
/// Number of unanswered trials that are required to judge a path unresponsive if it loses more than
/// a tenth of all segments. With 20 % lost in each direction, 36 % of all round trips fail; eleven
/// in a row fail by chance in one of a hundred thousand cases.
const REQUIRED_TRIALS_LOSSY: u32 = 11;
const HIGH_LOSS: f64 = 0.1;

/// Number of retransmissions that are not counted as loss, because the tail probe and the first
/// timeout may belong to the very stall that is judged.
const OWN_RETRANSMISSIONS: f64 = 2.0;

/// Number of segments of a burst that count as one more trial, because one acknowledgement may
/// answer all of them. The kernel sends bursts of up to 45 segments, so a large window consists of
/// several bursts.
const SEGMENTS_PER_TRIAL: u32 = 8;

/// Number of trials that are enough after a long time without progress, called *patience*. With the
/// kernel in back-off no new data is sent, so a few retransmissions must do.
///
/// The patience depends on the share of segments retransmitted recently. Where few are, three of
/// three lost is no accident. Where many are, the kernel needs time for enough tries (after 200 ms,
/// doubled each time: four tries in 3 s, six in 10 s, eight in 30 s).
const MIN_TRIALS_IN_BACKOFF: u32 = 3;
/// The patience (see [`MIN_TRIALS_IN_BACKOFF`]) up to each share of retransmitted segments, as
/// (share, time without progress).
const PATIENCES: [(f64, Duration); 2] =
    [(0.03, Duration::from_secs(3)), (HIGH_LOSS, Duration::from_secs(10))];
/// The patience where the share of retransmitted segments is above all of [`PATIENCES`].
const MAX_PATIENCE: Duration = Duration::from_secs(30);
/// Number of patiences (see [`MIN_TRIALS_IN_BACKOFF`]) after which a probing path is unresponsive
/// whatever its trials, for instance because no new transport samples arrive.
const BLIND_PATIENCES: u32 = 4;

/// Maximum number of entries of [`LivenessProbe::marks`]: more than the number of probe intervals
/// in the longest wait for an answer.
const MAX_MARKS: usize = 64;

/// One period of probing, with the trials counted in it.
#[derive(Debug)]
pub(super) struct LivenessProbe {
    pub(super) since: Instant,
    /// The value of [`TransportSample::delivered`] in the first sample of the period; `None` before
    /// that sample.
    pub(super) base: Option<u32>,
    /// The total number of trials made up to each of several times, the oldest time first.
    marks: VecDeque<(Instant, u32)>,
    /// The total of trials, and the transport's count of segments sent, at the last mark.
    trials: u32,
    segs_out: u32,
    pub(super) pings_left: u32,
    /// The time of the next check.
    pub(super) next: Instant,
    /// Recent loss including what the kernel has retransmitted before probing. Unlike
    /// [`ProbeContext::recent_loss`], the value is up to date, but a retransmission or two may be
    /// due to the path's death.
    recent_loss: RecentLoss,
}

/// The state of the path that, besides the trials, decides whether the path is unresponsive.
pub(super) struct ProbeContext<'a> {
    /// Whether a transport sample was read just now.
    pub(super) fresh: bool,
    /// The time for which data sent has gone unanswered.
    pub(super) stalled_for: Duration,
    /// The minimum patience (see [`MIN_TRIALS_IN_BACKOFF`]), which depends on the RTT of the path.
    pub(super) patience: Duration,
    /// The recent loss as of the last answer.
    pub(super) recent_loss: &'a RecentLoss,
}

/// Counts of the segments sent and retransmitted recently; older segments weigh less.
#[derive(Clone, Debug, Default)]
pub(super) struct RecentLoss {
    sent: f64,
    retransmitted: f64,
    /// The transport's counters (segments sent, segments retransmitted) at the last update.
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

    /// Records the first transport sample of the period. Segments in the network count as trials,
    /// although they were sent before the period. Segments that the kernel considers lost do not:
    /// they may have been lost long before the path died.
    pub(super) fn start(&mut self, now: Instant, sample: &TransportSample, recent_loss: &RecentLoss) {
        self.recent_loss = recent_loss.clone();
        self.recent_loss.update(sample);
        self.base = Some(sample.delivered);
        self.segs_out = sample.segs_out;
        self.trials = sample.in_flight.min(2 + sample.in_flight / SEGMENTS_PER_TRIAL);
        self.marks.push_back((now, self.trials));
    }

    /// Records a transport sample after the probe's first one. Each segment sent since the previous
    /// sample is a trial, that is, a chance for the peer to answer. A burst counts as one trial and
    /// one more for every [`SEGMENTS_PER_TRIAL`] segments, because one loss or one answer may
    /// concern the whole burst.
    pub(super) fn on_sample(&mut self, now: Instant, segs_out: u32) {
        let sent = segs_out.wrapping_sub(self.segs_out);
        let early = self.marks.back().is_some_and(|(at, _)| now < *at + MIN_PING_INTERVAL / 2);
        if sent > 0 && !early && self.marks.len() < MAX_MARKS {
            self.segs_out = segs_out;
            self.trials = self.trials.saturating_add(sent.min(1 + sent / SEGMENTS_PER_TRIAL));
            self.marks.push_back((now, self.trials));
        }
    }

    /// Returns whether enough trials are unanswered, or probing has lasted for so long, that the
    /// path is judged dead. A trial counts as unanswered `trial_timeout` after it was made.
    pub(super) fn is_conclusive(
        &mut self,
        now: Instant,
        trial_timeout: Duration,
        context: &ProbeContext<'_>,
    ) -> bool {
        // The trials of an old sample may have been answered since.
        let unanswered = if context.fresh { self.unanswered(now, trial_timeout) } else { 0 };
        let needed = if context.recent_loss.is_clean() {
            REQUIRED_TRIALS_CLEAN
        } else {
            self.recent_loss.required_trials()
        };
        let patience = self.recent_loss.patience().max(context.patience);
        unanswered >= needed
            || (context.stalled_for >= patience && unanswered >= MIN_TRIALS_IN_BACKOFF)
            // Counted from the start of probing: this process may have been suspended before.
            || now.saturating_duration_since(self.since) >= patience.saturating_mul(BLIND_PATIENCES)
    }

    /// Returns how many trials went unanswered for longer than `trial_timeout`.
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
    /// Adds the segments that the transport has sent and retransmitted since the last call, and
    /// reduces the weight of older ones.
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
