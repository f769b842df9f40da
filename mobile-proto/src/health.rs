//! Whether a path is dead, slow or well, judged by evidence.
//!
//! A path is judged by what becomes of our own direction: segments that the peer's kernel has
//! acknowledged, or bytes of the peer that answer something. (That bytes arrive from the peer says
//! nothing of the way there.) When an answer is overdue the path is *doubted*: small segments are
//! sent, so that there is something to answer. When several segments, each long enough out, have
//! all gone unanswered, it is *suspect*: loss may swallow some of them, but not all.
//!
//! What the kernel knows comes in as a [`TransportSample`]. Without samples only silence counts.

mod doubt;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::Limits;
use doubt::{Case, Doubt, Lately};

/// Before an RTT is known, this stands for it: the initial retransmission timeout of RFC 6298.
const INITIAL_RTT: Duration = Duration::from_secs(1);

/// What scheduling and timers on both sides add to an answer, in the ordinary case.
const MARGIN: Duration = Duration::from_millis(5);

/// A new path's RTT is believed to vary by twice itself, and so the kernel's timeout is three of
/// them, or 200 ms more than one. An answer is overdue after two, or this much more than one.
const DEVIATION: Duration = Duration::from_millis(50);

/// The kernel counts the time since the last acknowledgement in ticks, of up to 4 ms, rounded.
const TICK: Duration = Duration::from_millis(8);

/// Small segments that are sent for evidence: with what is out already, enough for any verdict.
pub(crate) const PINGS: u32 = 10;
/// A relay sends fewer: it cannot act on its verdict, and the answers to more would fill the window
/// of a client whose own direction is dead, so that its own trials do not get out.
pub(crate) const RELAY_PINGS: u32 = 3;

/// A program that says nothing although its kernel acknowledges everything is given this long.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(3);

/// The least time between two segments sent for evidence. Together with the wait for answers this
/// keeps a verdict on a path of 20 ms below 150 ms, at 200 samples a second for that time.
const MIN_INTERVAL: Duration = Duration::from_millis(5);
/// Later, while only the kernel's retransmissions can tell something new.
const SLOW_INTERVAL: Duration = Duration::from_millis(100);
/// A suspect path is looked at for a sign of life.
const SUSPECT_INTERVAL: Duration = Duration::from_secs(1);

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
pub(crate) struct Outlook<'a> {
    pub(crate) limits: &'a Limits,
    /// Something that was sent, or waits to be, has to be answered.
    pub(crate) unanswered: bool,
    /// HELLO has to be answered.
    pub(crate) connecting: bool,
    /// Segments may be judged: the path is ready, or carries data early.
    pub(crate) judged: bool,
    /// How many may be sent in one doubt.
    pub(crate) pings: u32,
    /// The RTT as measured by PING, for a path without samples.
    pub(crate) srtt: Option<Duration>,
}

/// What follows from the passing of time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The path is doubted from now on.
    pub(crate) doubted: bool,
    /// It is suspect from now on; for so long there was no progress.
    pub(crate) suspect: Option<Duration>,
    /// A PING is to be sent.
    pub(crate) ping: bool,
}

/// The health of one path.
#[derive(Debug, Default)]
pub(crate) struct Health {
    latest: Option<(Instant, TransportSample)>,
    /// Since when something is unanswered and nothing that we sent made progress.
    stalled: Option<Instant>,
    /// Since when something is unanswered and not one byte was heard.
    silent: Option<Instant>,
    /// Not to be looked at before, while it is not doubted.
    next_check: Option<Instant>,
    doubt: Option<Doubt>,
    suspicion: Option<Suspicion>,
    /// Segments sent and repeated lately, up to the last progress.
    lately: Lately,
}

/// What a suspicion rests on, and so what ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suspicion {
    /// Unanswered segments: any progress ends it.
    Evidence,
    /// Not a byte was heard, whatever the kernel says: any byte ends it.
    Silence,
}

impl Health {
    /// Something is unanswered from now on.
    pub(crate) fn begin(&mut self, now: Instant) {
        (self.stalled, self.silent) = (Some(now), Some(now));
    }

    /// Bytes of the peer came. True if that ends a suspicion.
    pub(crate) fn heard(&mut self, now: Instant) -> bool {
        self.silent = Some(now);
        if self.latest.is_none() {
            self.stalled = Some(now);
        }
        self.suspicion.take_if(|suspicion| *suspicion == Suspicion::Silence).is_some()
    }

    /// Something that was sent got its answer. True if that ends a suspicion.
    pub(crate) fn progress(&mut self, now: Instant) -> bool {
        (self.stalled, self.silent) = (Some(now), Some(now));
        self.doubt = None;
        self.next_check = None;
        self.suspicion.take().is_some()
    }

    /// The peer says that nothing arrives there. True if the path is doubted from now on, and a
    /// PING is to be sent.
    pub(crate) fn nudge(&mut self, now: Instant) -> bool {
        if self.doubt.is_some() || self.suspicion.is_some() || self.latest.is_none() {
            return false;
        }
        self.stalled = Some(now);
        self.doubt = Some(Doubt::new(now, PINGS - 1, now + self.interval()));
        true
    }

    /// Takes what the transport knows. True if that ends a suspicion.
    pub(crate) fn sample(&mut self, now: Instant, sample: TransportSample) -> bool {
        let before = self.latest.as_ref().map(|(_, before)| before.delivered);
        let last_ack = now.checked_sub(sample.last_ack).unwrap_or(now);
        let stalled = self.stalled.unwrap_or(now);
        let mut progress = None;
        let interval = self.interval();
        match &mut self.doubt {
            Some(doubt) => match doubt.base {
                Some(base) if base != sample.delivered || sample.unacked == 0 => progress = Some(now),
                Some(_) => doubt.mark(now, sample.segs_out),
                // Nudged: what was sent for it shows here, or was answered already.
                None if sample.unacked > 0 => doubt.begin(now, &sample, &self.lately),
                None if now >= doubt.since + interval => progress = Some(now),
                None => {}
            },
            None if sample.unacked == 0 => progress = Some(now),
            // What arrived since the last sample may have done so before the time in question.
            None if before.is_some_and(|before| before != sample.delivered) && last_ack > stalled + TICK => {
                progress = Some(last_ack);
            }
            None => {}
        }
        // Not what is repeated because the path is dead.
        if progress.is_some() || (self.doubt.is_none() && now < stalled + self.round_trip()) {
            self.lately.add(&sample);
        }
        self.latest = Some((now, sample));
        let Some(at) = progress else { return false };
        self.stalled = Some(at);
        self.doubt = None;
        self.suspicion.take_if(|suspicion| *suspicion == Suspicion::Evidence).is_some()
    }

    /// Whether a sample would help now.
    pub(crate) fn wants_sample(&self, now: Instant, outlook: Outlook<'_>) -> bool {
        self.latest.is_some() && self.look_at(outlook).is_some_and(|at| at <= now)
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn deadline(&self, outlook: Outlook<'_>) -> Option<Instant> {
        self.look_at(outlook).into_iter().chain(self.silence_ends(outlook)).min()
    }

    /// Time has passed; a sample, if one was wanted, has just been taken.
    pub(crate) fn tick(&mut self, now: Instant, outlook: Outlook<'_>) -> Verdict {
        if !outlook.unanswered {
            self.doubt = None;
            return Verdict::default();
        }
        let mut verdict = Verdict::default();
        let look = self.look_at(outlook).is_some_and(|at| at <= now);
        if look && self.doubt.is_none() {
            // A transport that was asked just now and tells nothing any more: from here on only silence counts.
            self.latest.take_if(|(at, _)| *at < now);
        }
        if self.silence_ends(outlook).is_some_and(|at| at <= now) {
            self.suspicion = Some(Suspicion::Silence);
            verdict.suspect = Some(since(self.silent, now));
        }
        if look {
            self.look(now, outlook, &mut verdict);
        }
        verdict
    }

    /// Whether the path is suspect.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspicion.is_some()
    }

    /// Since when something is unanswered and nothing that we sent made progress.
    pub(crate) fn stalled(&self) -> Option<Instant> {
        self.stalled
    }

    /// The newest sample.
    pub(crate) fn latest(&self) -> Option<&TransportSample> {
        self.latest.as_ref().map(|(_, sample)| sample)
    }

    fn look(&mut self, now: Instant, outlook: Outlook<'_>, verdict: &mut Verdict) {
        let limits = outlook.limits;
        let Some((at, latest)) = &self.latest else { return };
        let fresh = *at >= now;
        let (interval, wait) = (self.interval(), self.wait());
        let pause = self.pause(limits);
        if self.doubt.is_none() && fresh && latest.unacked > 0 && self.suspicion.is_none() {
            verdict.doubted = true;
            let mut doubt = Doubt::new(now, outlook.pings, now);
            doubt.begin(now, latest, &self.lately);
            self.doubt = Some(doubt);
        }
        let stalled = since(self.stalled, now);
        let Some(doubt) = &mut self.doubt else {
            self.next_check = Some(now + pause);
            return;
        };
        if self.suspicion.is_none() {
            let patience = srtt_of(&self.latest).saturating_mul(limits.silence_rtts);
            let case = Case { fresh, stalled, patience, lately: &self.lately };
            if doubt.convicts(now, wait, &case) {
                self.suspicion = Some(Suspicion::Evidence);
                verdict.suspect = Some(stalled);
            } else if doubt.pings_left > 0 {
                doubt.pings_left -= 1;
                verdict.ping = true;
            }
        }
        let hurry = interval.saturating_mul(PINGS + 2).saturating_add(wait);
        doubt.next = now
            + match self.suspicion {
                Some(_) => SUSPECT_INTERVAL,
                None if since(Some(doubt.since), now) <= hurry => interval,
                None => SLOW_INTERVAL.max(interval),
            };
    }

    /// When the kernel is to be asked what became of our segments.
    fn look_at(&self, outlook: Outlook<'_>) -> Option<Instant> {
        if !outlook.unanswered || !outlook.judged || self.latest.is_none() {
            return None;
        }
        match &self.doubt {
            Some(doubt) => Some(doubt.next),
            None => self.next_check.max(self.stalled?.checked_add(self.pause(outlook.limits))),
        }
    }

    /// When silence alone is enough.
    fn silence_ends(&self, outlook: Outlook<'_>) -> Option<Instant> {
        if self.suspicion.is_some() || !outlook.unanswered {
            return None;
        }
        let floor = match self.latest() {
            Some(_) if outlook.connecting => outlook.limits.silence_floor,
            // The peer's kernel has everything, so the program behind it must say something.
            Some(latest) if latest.unacked == 0 => PROGRAM_PATIENCE,
            Some(_) => return None,
            None => outlook.limits.silence_floor,
        };
        let measured = self.latest().map(|latest| latest.srtt).or(outlook.srtt);
        let srtt = measured.unwrap_or(INITIAL_RTT);
        self.silent?.checked_add(srtt.saturating_mul(outlook.limits.silence_rtts).max(floor))
    }

    /// How long to go without a look at a path that is not doubted.
    fn pause(&self, limits: &Limits) -> Duration {
        if self.suspicion.is_some() { SUSPECT_INTERVAL } else { self.overdue(limits) }
    }

    /// How long the answer to something just sent may take, at most, if all is well: the peer may
    /// keep an acknowledgement back for a while.
    fn overdue(&self, limits: &Limits) -> Duration {
        let srtt = srtt_of(&self.latest);
        // Before the kernel's timeout, after which it lets nothing new out.
        let longest = srtt.saturating_add(srtt.max(DEVIATION));
        self.round_trip().min(longest).saturating_add(limits.ack_delay).saturating_add(MARGIN)
    }

    /// How long a segment must be out to count as unanswered: in doubt as well as ever the peer
    /// may keep an acknowledgement back.
    fn wait(&self) -> Duration {
        self.round_trip().saturating_add(MARGIN * 4)
    }

    /// The longest that a round trip takes, as RFC 6298 estimates it.
    fn round_trip(&self) -> Duration {
        let rttvar = self.latest().map_or(Duration::ZERO, |latest| latest.rttvar);
        srtt_of(&self.latest).saturating_add(rttvar.saturating_mul(4))
    }

    fn interval(&self) -> Duration {
        (srtt_of(&self.latest) / 4).max(MIN_INTERVAL)
    }
}

fn srtt_of(latest: &Option<(Instant, TransportSample)>) -> Duration {
    latest.as_ref().map_or(INITIAL_RTT, |(_, latest)| latest.srtt)
}

fn since(start: Option<Instant>, now: Instant) -> Duration {
    start.map_or(Duration::ZERO, |start| now.saturating_duration_since(start))
}
