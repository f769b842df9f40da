//! Liveness of a path: whether the path is dead, slow or well.
//!
//! A path is judged by the answers to the data sent on it: segments that the peer's kernel has
//! acknowledged, or bytes of the peer that answer something. (Bytes that merely arrive from the
//! peer say nothing about the opposite direction.) When an answer is overdue the path is *probing*:
//! small segments are sent, so that there is something to answer. When several segments, each sent
//! long enough ago, have all gone unanswered, the path is *unresponsive*: loss may swallow some of
//! them, but not all.
//!
//! The kernel's TCP statistics are passed in as a [`TransportSample`]. Without samples a path is
//! judged only by its silence.

#[cfg(test)]
mod model;
mod probe;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::Limits;
use probe::{LivenessProbe, ProbeContext, RecentLoss};

/// The RTT assumed before one is measured: the initial retransmission timeout of RFC 6298.
const INITIAL_RTT: Duration = Duration::from_secs(1);

/// Time that scheduling and timers on both sides ordinarily add to an answer.
const SCHEDULING_MARGIN: Duration = Duration::from_millis(5);

/// Maximum extra time beyond one RTT before an answer is overdue, for RTTs shorter than this; for
/// longer ones, the maximum is one more RTT. A path with a steady RTT gets less.
///
/// The kernel assumes that a new path's RTT varies by half of it, so its retransmission timeout is
/// three RTTs, or one RTT plus 200 ms. With this maximum an answer is overdue earlier than that.
const INITIAL_DEVIATION: Duration = Duration::from_millis(50);

/// Maximum error of [`TransportSample::last_ack`], which the kernel counts in rounded ticks of up
/// to 4 ms.
const LAST_ACK_ERROR: Duration = Duration::from_millis(8);

/// Maximum number of PINGs that a client sends while a path is probing. With the segments in flight
/// they are enough to judge any path unresponsive.
pub(crate) const MAX_PINGS: u32 = 10;
/// Maximum number of PINGs that a relay sends while a path is probing. Only the client can leave an
/// unresponsive path. If the direction from the client is dead, the answers to more PINGs would
/// fill the client's send window, so that its own PINGs are not sent.
pub(crate) const RELAY_MAX_PINGS: u32 = 3;

/// Time of silence after which a path is unresponsive although the peer's kernel acknowledges all
/// segments, because the peer's program seems to be stuck.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(3);

/// Minimum time between two PINGs while a path is probing. With the wait for answers, a dead path
/// with an RTT of 20 ms is detected within 150 ms, at 200 transport samples a second during that
/// time.
const MIN_PING_INTERVAL: Duration = Duration::from_millis(5);
/// Time between two checks of a path that has been probing for longer, when only the kernel's
/// retransmissions can still be answered.
const SLOW_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two checks of an unresponsive path for a sign of life.
const UNRESPONSIVE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// TCP statistics of the transport below a path at one moment; on Linux, from TCP_INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportSample {
    /// Total segments that the peer's kernel has acknowledged, selectively or not.
    pub delivered: u32,
    /// Segments believed to be in the network: sent, not acknowledged and not considered lost.
    pub in_flight: u32,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Total segments with data sent, including retransmissions.
    pub segs_out: u32,
    /// Total number of segments retransmitted.
    pub retransmitted: u32,
    /// Time since the last acknowledgement arrived, whether it acknowledged new data or not.
    pub last_ack: Duration,
    /// The smoothed round-trip time.
    pub srtt: Duration,
    /// The variation of the round-trip time.
    pub rttvar: Duration,
}

/// State of the path that the session passes in to evaluate its health.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathContext<'a> {
    pub(crate) limits: &'a Limits,
    /// Whether something that was sent, or is queued to be sent, still has to be answered.
    pub(crate) unanswered: bool,
    /// Whether HELLO still has to be answered.
    pub(crate) connecting: bool,
    /// Whether the path is judged by transport samples: it is ready, or carries data before
    /// WELCOME.
    pub(crate) judged: bool,
    /// Maximum number of PINGs in one period of probing.
    pub(crate) max_pings: u32,
    /// The RTT measured by PING, used if the transport provides no samples.
    pub(crate) srtt: Option<Duration>,
}

/// Changes of a path's health after time has passed, and the actions that they require.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthUpdate {
    /// Whether the path has just begun probing.
    pub(crate) probing: bool,
    /// The time without progress, if the path has just become unresponsive.
    pub(crate) unresponsive: Option<Duration>,
    /// Whether a PING has to be sent.
    pub(crate) send_ping: bool,
}

/// The health of one path.
#[derive(Debug, Default)]
pub(crate) struct Health {
    latest_sample: Option<(Instant, TransportSample)>,
    /// The start of the current time without progress, in which data sent is unanswered and no
    /// answer has arrived.
    stalled_since: Option<Instant>,
    /// The start of the current silence, in which data sent is unanswered and not one byte was
    /// received.
    silent_since: Option<Instant>,
    /// The earliest time of the next check while the path is not probing.
    next_check: Option<Instant>,
    /// The current period of probing; boxed, because few paths probe at a time.
    probe: Option<Box<LivenessProbe>>,
    unresponsive: Option<Unresponsive>,
    /// The share of retransmissions up to the last progress.
    recent_loss: RecentLoss,
}

/// The reason why a path is unresponsive, which determines what ends that state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unresponsive {
    /// Segments went unanswered: any answer ends the state.
    Unacknowledged,
    /// Not a byte was received, whatever the transport samples show: any byte ends the state.
    Silent,
}

impl Health {
    /// Records that from now on something sent has to be answered.
    pub(crate) fn start_waiting(&mut self, now: Instant) {
        (self.stalled_since, self.silent_since) = (Some(now), Some(now));
    }

    /// Records that bytes of the peer arrived. Returns whether an unresponsive path has recovered
    /// by this.
    pub(crate) fn on_bytes_received(&mut self, now: Instant) -> bool {
        self.silent_since = Some(now);
        if self.latest_sample.is_none() {
            self.stalled_since = Some(now);
        }
        self.unresponsive.take_if(|reason| *reason == Unresponsive::Silent).is_some()
    }

    /// Records that the peer has answered something that was sent. Returns whether an unresponsive
    /// path has recovered by this.
    pub(crate) fn on_progress(&mut self, now: Instant) -> bool {
        (self.stalled_since, self.silent_since) = (Some(now), Some(now));
        self.probe = None;
        self.next_check = None;
        self.unresponsive.take().is_some()
    }

    /// Starts to probe the path because the peer reports that no answers arrive there. Returns
    /// whether probing has started, in which case the caller has to send a PING; false if the path
    /// is already probing or unresponsive, or has no transport sample.
    pub(crate) fn start_probing(&mut self, now: Instant) -> bool {
        if self.probe.is_some() || self.unresponsive.is_some() || self.latest_sample.is_none() {
            return false;
        }
        self.stalled_since = Some(now);
        self.probe = Some(Box::new(LivenessProbe::new(now, MAX_PINGS - 1, now + self.probe_interval())));
        true
    }

    /// Updates the health from a new sample of the transport. Returns whether an unresponsive path
    /// has recovered by this.
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
                // Probing was started by the peer's report: the PING sent for it shows here or was
                // already answered.
                None if sample.unacked > 0 => probe.start(now, &sample, &self.recent_loss),
                None if now >= probe.since + probe_interval => progress = Some(now),
                None => {}
            },
            None if sample.unacked == 0 => progress = Some(now),
            // Segments that arrived since the last sample may have done so before the time in
            // question.
            None if before.is_some_and(|before| before != sample.delivered)
                && last_ack > stalled_since + LAST_ACK_ERROR =>
            {
                progress = Some(last_ack);
            }
            None => {}
        }
        // Retransmissions that happen because the path is dead do not count.
        if progress.is_some() || (self.probe.is_none() && now < stalled_since + self.max_round_trip()) {
            self.recent_loss.update(&sample);
        }
        self.latest_sample = Some((now, sample));
        let Some(at) = progress else { return false };
        self.stalled_since = Some(at);
        self.probe = None;
        self.unresponsive.take_if(|reason| *reason == Unresponsive::Unacknowledged).is_some()
    }

    /// Returns whether the caller has to read the TCP statistics of the path's transport now.
    pub(crate) fn wants_sample(&self, now: Instant, context: PathContext<'_>) -> bool {
        self.latest_sample.is_some() && self.evaluate_at(context).is_some_and(|at| at <= now)
    }

    /// Returns when [`Self::on_timeout`] has to be called.
    pub(crate) fn deadline(&self, context: PathContext<'_>) -> Option<Instant> {
        self.evaluate_at(context).into_iter().chain(self.silence_deadline(context)).min()
    }

    /// Judges the path by the time that has passed. The caller has just passed in a sample, if one
    /// was wanted and the transport provides samples.
    pub(crate) fn on_timeout(&mut self, now: Instant, context: PathContext<'_>) -> HealthUpdate {
        if !context.unanswered {
            self.probe = None;
            return HealthUpdate::default();
        }
        let mut update = HealthUpdate::default();
        let evaluate = self.evaluate_at(context).is_some_and(|at| at <= now);
        if evaluate && self.probe.is_none() {
            // The transport was asked just now and provided no sample: from here on only silence
            // counts.
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

    /// Returns whether the path is unresponsive.
    pub(crate) fn is_unresponsive(&self) -> bool {
        self.unresponsive.is_some()
    }

    /// Returns the start of the current time without progress.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// Returns the newest transport sample.
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
            self.probe = Some(Box::new(probe));
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

    /// Returns when the path has to be judged by a new transport sample.
    fn evaluate_at(&self, context: PathContext<'_>) -> Option<Instant> {
        if !context.unanswered || !context.judged || self.latest_sample.is_none() {
            return None;
        }
        match &self.probe {
            Some(probe) => Some(probe.next),
            None => self.next_check.max(self.stalled_since?.checked_add(self.check_interval(context.limits))),
        }
    }

    /// Returns when the path becomes unresponsive by its silence alone; `None` if silence does not
    /// count at present.
    fn silence_deadline(&self, context: PathContext<'_>) -> Option<Instant> {
        if self.unresponsive.is_some() || !context.unanswered {
            return None;
        }
        let floor = match self.latest_sample() {
            Some(_) if context.connecting => context.limits.silence_floor,
            // The peer's kernel has everything, so the program behind it must send something.
            Some(latest) if latest.unacked == 0 => PROGRAM_TIMEOUT,
            Some(_) => return None,
            None => context.limits.silence_floor,
        };
        let measured = self.latest_sample().map(|sample| sample.srtt).or(context.srtt);
        let srtt = measured.unwrap_or(INITIAL_RTT);
        self.silent_since?.checked_add(srtt.saturating_mul(context.limits.silence_rtts).max(floor))
    }

    /// Returns the time between two checks of a path that is not probing.
    fn check_interval(&self, limits: &Limits) -> Duration {
        if self.unresponsive.is_some() { UNRESPONSIVE_CHECK_INTERVAL } else { self.answer_timeout(limits) }
    }

    /// Returns the time after which an answer is overdue on a healthy path, with room for an
    /// acknowledgement that the peer delays.
    fn answer_timeout(&self, limits: &Limits) -> Duration {
        let srtt = srtt_of(&self.latest_sample);
        // This is before the kernel's timeout, after which it sends nothing new.
        let longest = srtt.saturating_add(srtt.max(INITIAL_DEVIATION));
        self.max_round_trip().min(longest).saturating_add(limits.ack_delay).saturating_add(SCHEDULING_MARGIN)
    }

    /// Returns how long ago a segment must have been sent to count as unanswered, with room for an
    /// acknowledgement that the peer's kernel delays.
    fn trial_timeout(&self) -> Duration {
        self.max_round_trip().saturating_add(SCHEDULING_MARGIN * 4)
    }

    /// Returns the maximum round-trip time as RFC 6298 estimates it.
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
