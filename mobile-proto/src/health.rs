//! Whether a path is dead, slow or well, judged by evidence.
//!
//! A path is judged by what becomes of our own direction: segments that the peer's kernel has
//! acknowledged, or bytes of the peer that answer something. (That bytes arrive from the peer says
//! nothing of the way there.) When an answer is overdue the path is *doubted*: small segments are
//! sent, so that there is something to answer. When several segments, each long enough out, have
//! all gone unanswered, it is *suspect*: loss may swallow some of them, but not all.
//!
//! What the kernel knows comes in as a [`TransportSample`]. Without samples only silence counts.

#[cfg(test)]
mod model;
mod probe;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::Limits;
use probe::{LivenessProbe, ProbeContext, RecentLoss};

/// Before an RTT is known, this stands for it: the initial retransmission timeout of RFC 6298.
const INITIAL_RTT: Duration = Duration::from_secs(1);

/// What scheduling and timers on both sides add to an answer, in the ordinary case.
const SCHEDULING_MARGIN: Duration = Duration::from_millis(5);

/// A new path's RTT is believed to vary by twice itself, and so the kernel's timeout is three of
/// them, or 200 ms more than one. An answer is overdue after two, or this much more than one.
const INITIAL_DEVIATION: Duration = Duration::from_millis(50);

/// The kernel counts the time since the last acknowledgement in ticks, of up to 4 ms, rounded.
const LAST_ACK_ERROR: Duration = Duration::from_millis(8);

/// Small segments that are sent for evidence: with what is out already, enough for any verdict.
pub(crate) const MAX_PINGS: u32 = 10;
/// A relay sends fewer: it cannot act on its verdict, and the answers to more would fill the window
/// of a client whose own direction is dead, so that its own trials do not get out.
pub(crate) const RELAY_MAX_PINGS: u32 = 3;

/// A program that says nothing although its kernel acknowledges everything is given this long.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(3);

/// The least time between two segments sent for evidence. Together with the wait for answers this
/// keeps a verdict on a path of 20 ms below 150 ms, at 200 samples a second for that time.
const MIN_PING_INTERVAL: Duration = Duration::from_millis(5);
/// Later, while only the kernel's retransmissions can tell something new.
const SLOW_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// A suspect path is looked at for a sign of life.
const UNRESPONSIVE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What the transport below a path knows, at one moment: on Linux, of TCP_INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportSample {
    /// Segments that the peer's kernel has acknowledged, selectively or not, in all.
    pub delivered: u32,
    /// Segments believed to be in the network: sent, not acknowledged, not thought lost.
    pub in_flight: u32,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Segments with data sent in all, repeated ones included.
    pub segs_out: u32,
    /// Segments repeated in all.
    pub retransmitted: u32,
    /// How long ago the last acknowledgement came, a new one or not.
    pub last_ack: Duration,
    /// The smoothed round-trip time.
    pub srtt: Duration,
    /// How much it varies.
    pub rttvar: Duration,
}

/// What the session knows of a path when it asks for a verdict.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathContext<'a> {
    pub(crate) limits: &'a Limits,
    /// Something that was sent, or waits to be, has to be answered.
    pub(crate) unanswered: bool,
    /// HELLO has to be answered.
    pub(crate) connecting: bool,
    /// Segments may be judged: the path is ready, or carries data early.
    pub(crate) judged: bool,
    /// How many may be sent in one doubt.
    pub(crate) max_pings: u32,
    /// The RTT as measured by PING, for a path without samples.
    pub(crate) srtt: Option<Duration>,
}

/// What follows from the passing of time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthUpdate {
    /// The path is doubted from now on.
    pub(crate) probing: bool,
    /// It is suspect from now on; for so long there was no progress.
    pub(crate) unresponsive: Option<Duration>,
    /// A PING is to be sent.
    pub(crate) send_ping: bool,
}

/// The health of one path.
#[derive(Debug, Default)]
pub(crate) struct Health {
    latest_sample: Option<(Instant, TransportSample)>,
    /// Since when something is unanswered and nothing that we sent made progress.
    stalled_since: Option<Instant>,
    /// Since when something is unanswered and not one byte was heard.
    silent_since: Option<Instant>,
    /// Not to be looked at before, while it is not doubted.
    next_check: Option<Instant>,
    probe: Option<LivenessProbe>,
    unresponsive: Option<Unresponsive>,
    /// Segments sent and repeated lately, up to the last progress.
    recent_loss: RecentLoss,
}

/// What a suspicion rests on, and so what ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unresponsive {
    /// Unanswered segments: any progress ends it.
    Unacknowledged,
    /// Not a byte was heard, whatever the kernel says: any byte ends it.
    Silent,
}

impl Health {
    /// Something is unanswered from now on.
    pub(crate) fn start_waiting(&mut self, now: Instant) {
        (self.stalled_since, self.silent_since) = (Some(now), Some(now));
    }

    /// Bytes of the peer came. True if that ends a suspicion.
    pub(crate) fn on_bytes_received(&mut self, now: Instant) -> bool {
        self.silent_since = Some(now);
        if self.latest_sample.is_none() {
            self.stalled_since = Some(now);
        }
        self.unresponsive.take_if(|reason| *reason == Unresponsive::Silent).is_some()
    }

    /// Something that was sent got its answer. True if that ends a suspicion.
    pub(crate) fn on_progress(&mut self, now: Instant) -> bool {
        (self.stalled_since, self.silent_since) = (Some(now), Some(now));
        self.probe = None;
        self.next_check = None;
        self.unresponsive.take().is_some()
    }

    /// The peer says that nothing arrives there. True if the path is doubted from now on, and a
    /// PING is to be sent.
    pub(crate) fn start_probing(&mut self, now: Instant) -> bool {
        if self.probe.is_some() || self.unresponsive.is_some() || self.latest_sample.is_none() {
            return false;
        }
        self.stalled_since = Some(now);
        self.probe = Some(LivenessProbe::new(now, MAX_PINGS - 1, now + self.probe_interval()));
        true
    }

    /// Takes what the transport knows. True if that ends a suspicion.
    pub(crate) fn on_sample(&mut self, now: Instant, sample: TransportSample) -> bool {
        let before = self.latest_sample.as_ref().map(|(_, before)| before.delivered);
        let last_ack = now.checked_sub(sample.last_ack).unwrap_or(now);
        let stalled_since = self.stalled_since.unwrap_or(now);
        let mut progress = None;
        let probe_interval = self.probe_interval();
        match &mut self.probe {
            Some(probe) => match probe.base {
                Some(base) if base != sample.delivered || sample.unacked == 0 => progress = Some(now),
                Some(_) => probe.on_sample(now, sample.segs_out),
                // Nudged: what was sent for it shows here, or was answered already.
                None if sample.unacked > 0 => probe.start(now, &sample, &self.recent_loss),
                None if now >= probe.since + probe_interval => progress = Some(now),
                None => {}
            },
            None if sample.unacked == 0 => progress = Some(now),
            // What arrived since the last sample may have done so before the time in question.
            None if before.is_some_and(|before| before != sample.delivered)
                && last_ack > stalled_since + LAST_ACK_ERROR =>
            {
                progress = Some(last_ack);
            }
            None => {}
        }
        // Not what is repeated because the path is dead.
        if progress.is_some() || (self.probe.is_none() && now < stalled_since + self.max_round_trip()) {
            self.recent_loss.update(&sample);
        }
        self.latest_sample = Some((now, sample));
        let Some(at) = progress else { return false };
        self.stalled_since = Some(at);
        self.probe = None;
        self.unresponsive.take_if(|reason| *reason == Unresponsive::Unacknowledged).is_some()
    }

    /// Whether a sample would help now.
    pub(crate) fn wants_sample(&self, now: Instant, context: PathContext<'_>) -> bool {
        self.latest_sample.is_some() && self.evaluate_at(context).is_some_and(|at| at <= now)
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn deadline(&self, context: PathContext<'_>) -> Option<Instant> {
        self.evaluate_at(context).into_iter().chain(self.silence_deadline(context)).min()
    }

    /// Time has passed; a sample, if one was wanted, has just been taken.
    pub(crate) fn on_timeout(&mut self, now: Instant, context: PathContext<'_>) -> HealthUpdate {
        if !context.unanswered {
            self.probe = None;
            return HealthUpdate::default();
        }
        let mut update = HealthUpdate::default();
        let evaluate = self.evaluate_at(context).is_some_and(|at| at <= now);
        if evaluate && self.probe.is_none() {
            // A transport that was asked just now and tells nothing any more: from here on only silence counts.
            self.latest_sample.take_if(|(at, _)| *at < now);
        }
        if self.silence_deadline(context).is_some_and(|at| at <= now) {
            self.unresponsive = Some(Unresponsive::Silent);
            update.unresponsive = Some(elapsed_since(self.silent_since, now));
        }
        if evaluate {
            self.evaluate(now, context, &mut update);
        }
        update
    }

    /// Whether the path is suspect.
    pub(crate) fn is_unresponsive(&self) -> bool {
        self.unresponsive.is_some()
    }

    /// Since when something is unanswered and nothing that we sent made progress.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// The newest sample.
    pub(crate) fn latest_sample(&self) -> Option<&TransportSample> {
        self.latest_sample.as_ref().map(|(_, sample)| sample)
    }

    fn evaluate(&mut self, now: Instant, context: PathContext<'_>, update: &mut HealthUpdate) {
        let limits = context.limits;
        let Some((at, latest)) = &self.latest_sample else { return };
        let fresh = *at >= now;
        let (probe_interval, trial_timeout) = (self.probe_interval(), self.trial_timeout());
        let check_interval = self.check_interval(limits);
        if self.probe.is_none() && fresh && latest.unacked > 0 && self.unresponsive.is_none() {
            update.probing = true;
            let mut probe = LivenessProbe::new(now, context.max_pings, now);
            probe.start(now, latest, &self.recent_loss);
            self.probe = Some(probe);
        }
        let stalled_for = elapsed_since(self.stalled_since, now);
        let Some(probe) = &mut self.probe else {
            self.next_check = Some(now + check_interval);
            return;
        };
        if self.unresponsive.is_none() {
            let patience = srtt_of(&self.latest_sample).saturating_mul(limits.silence_rtts);
            let context = ProbeContext { fresh, stalled_for, patience, recent_loss: &self.recent_loss };
            if probe.is_conclusive(now, trial_timeout, &context) {
                self.unresponsive = Some(Unresponsive::Unacknowledged);
                update.unresponsive = Some(stalled_for);
            } else if probe.pings_left > 0 {
                probe.pings_left -= 1;
                update.send_ping = true;
            }
        }
        let hurry = probe_interval.saturating_mul(MAX_PINGS + 2).saturating_add(trial_timeout);
        probe.next = now
            + match self.unresponsive {
                Some(_) => UNRESPONSIVE_CHECK_INTERVAL,
                None if elapsed_since(Some(probe.since), now) <= hurry => probe_interval,
                None => SLOW_CHECK_INTERVAL.max(probe_interval),
            };
    }

    /// When the kernel is to be asked what became of our segments.
    fn evaluate_at(&self, context: PathContext<'_>) -> Option<Instant> {
        if !context.unanswered || !context.judged || self.latest_sample.is_none() {
            return None;
        }
        match &self.probe {
            Some(probe) => Some(probe.next),
            None => self.next_check.max(self.stalled_since?.checked_add(self.check_interval(context.limits))),
        }
    }

    /// When silence alone is enough.
    fn silence_deadline(&self, context: PathContext<'_>) -> Option<Instant> {
        if self.unresponsive.is_some() || !context.unanswered {
            return None;
        }
        let floor = match self.latest_sample() {
            Some(_) if context.connecting => context.limits.silence_floor,
            // The peer's kernel has everything, so the program behind it must say something.
            Some(latest) if latest.unacked == 0 => PROGRAM_TIMEOUT,
            Some(_) => return None,
            None => context.limits.silence_floor,
        };
        let measured = self.latest_sample().map(|sample| sample.srtt).or(context.srtt);
        let srtt = measured.unwrap_or(INITIAL_RTT);
        self.silent_since?.checked_add(srtt.saturating_mul(context.limits.silence_rtts).max(floor))
    }

    /// How long to go without a look at a path that is not doubted.
    fn check_interval(&self, limits: &Limits) -> Duration {
        if self.unresponsive.is_some() { UNRESPONSIVE_CHECK_INTERVAL } else { self.answer_timeout(limits) }
    }

    /// How long the answer to something just sent may take, at most, if all is well: the peer may
    /// keep an acknowledgement back for a while.
    fn answer_timeout(&self, limits: &Limits) -> Duration {
        let srtt = srtt_of(&self.latest_sample);
        // Before the kernel's timeout, after which it lets nothing new out.
        let longest = srtt.saturating_add(srtt.max(INITIAL_DEVIATION));
        self.max_round_trip().min(longest).saturating_add(limits.ack_delay).saturating_add(SCHEDULING_MARGIN)
    }

    /// How long a segment must be out to count as unanswered: in doubt as well as ever the peer
    /// may keep an acknowledgement back.
    fn trial_timeout(&self) -> Duration {
        self.max_round_trip().saturating_add(SCHEDULING_MARGIN * 4)
    }

    /// The longest that a round trip takes, as RFC 6298 estimates it.
    fn max_round_trip(&self) -> Duration {
        let rttvar = self.latest_sample().map_or(Duration::ZERO, |sample| sample.rttvar);
        srtt_of(&self.latest_sample).saturating_add(rttvar.saturating_mul(4))
    }

    fn probe_interval(&self) -> Duration {
        (srtt_of(&self.latest_sample) / 4).max(MIN_PING_INTERVAL)
    }
}

fn srtt_of(latest: &Option<(Instant, TransportSample)>) -> Duration {
    latest.as_ref().map_or(INITIAL_RTT, |(_, sample)| sample.srtt)
}

fn elapsed_since(start: Option<Instant>, now: Instant) -> Duration {
    start.map_or(Duration::ZERO, |start| now.saturating_duration_since(start))
}
