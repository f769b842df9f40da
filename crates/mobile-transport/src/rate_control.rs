//! Decides how much one path may send, and when it needs another congestion control, from the
//! kernel's statistics of its TCP connection.
//!
//! [`RateControl`] is a state machine without a socket or a clock. The driver asks when the next
//! statistics are wanted ([`SampleDue`]), passes them to [`RateControl::observe`], executes the
//! [`SocketChange`]s that it returns, and reports an [`CongestionOutcome`] back. After each write
//! to the socket it reports whether the socket accepted all of it. In return,
//! [`RateControl::budget`] says how much the path may take from the session.
//!
//! - `congestion` decides whether the network limits the path, and which congestion control and
//!   send buffer it needs,
//! - `send_limit` measures the path's rate and limits the data that waits below the session,
//! - `cross_traffic` detects that a queue at the bottleneck is due to cross traffic, to which the
//!   send limit would yield the bottleneck.

mod congestion;
mod cross_traffic;
mod sample;
mod send_limit;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use cross_traffic::CrossTraffic;
use mobile_proto::Budget;
pub(crate) use sample::{Bbr, CongestionWindow, TcpSample};
use send_limit::SendLimit;

/// The number of bytes taken from the session at a time, between a minimum and a maximum: one TLS
/// record if the last write filled the socket, up to four (one system call) while the socket
/// accepts every write at once.
///
/// The number is small, because more urgent packets can no longer overtake data that was taken from
/// the session.
const MIN_BATCH: usize = 16 * 1024;
const MAX_BATCH: usize = 4 * MIN_BATCH;

/// The interval at which the kernel's statistics of a fast path are read; the statistics of a slow
/// path are read before every write.
const FAST_SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// Controls the rate of one path.
#[derive(Debug)]
pub(crate) struct RateControl {
    /// The number of bytes to take from the session at a time.
    batch: usize,
    /// Whether the socket refused some of the output since the last sample.
    write_blocked: bool,
    /// The limit on the data that has left the session's queue and is not yet acknowledged; `None`
    /// if only the kernel limits it.
    limit: Option<SendLimit>,
    congestion: CongestionState,
    cross_traffic: CrossTraffic,
    /// Whether a larger send buffer was asked for.
    send_buffer_raised: bool,
    /// The time of the last sample; `None` before the first.
    sampled_at: Option<Instant>,
    /// The time until which only control frames are taken from the session, because enough data is
    /// in flight; `None` if packets may be taken too.
    paused_until: Option<Instant>,
}

/// The congestion control that the kernel was told to use on a path.
#[derive(Debug)]
enum CongestionState {
    /// The initial congestion control, until the path turns out to be bandwidth-limited.
    ///
    /// After a detection of cross traffic, the path keeps the initial congestion control at least
    /// until the given time.
    Initial(Option<Instant>),
    /// The congestion control bbr, because the path is bandwidth-limited. If the kernel refuses
    /// bbr, the path keeps its initial congestion control in this state.
    Bbr {
        /// The congestion control to restore when cross traffic is detected; `None` if there is
        /// none, because the path used bbr from the start or the kernel refused a change.
        previous: Option<CongestionControl>,
    },
    /// The congestion control bbr, if the kernel accepts it; the outcome is not reported yet.
    Switching,
}

/// The name of a congestion control, as the kernel returns it.
pub(crate) type CongestionControl = Vec<u8>;

/// A change of a path's socket that [`RateControl`] asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SocketChange {
    /// Use the congestion control bbr, because the path is bandwidth-limited.
    UseBbr,
    /// Restore this congestion control, because competing traffic was detected.
    RestoreCongestionControl(CongestionControl),
    /// Raise the send buffer, because the path has much data in flight without a queue.
    RaiseSendBuffer,
}

/// The outcome of a [`SocketChange`] that changes the congestion control.
#[derive(Debug)]
pub(crate) enum CongestionOutcome {
    /// The path uses bbr, and used the given congestion control before.
    Replaced(CongestionControl),
    /// The path uses the congestion control that it had before bbr.
    Restored,
    /// The path keeps its congestion control, because the kernel refused the change or the path
    /// used bbr already.
    Unchanged,
}

/// The time at which the next statistics of a path are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SampleDue {
    /// Before each write.
    BeforeWrite,
    /// Before the first write at this time or later.
    At(Instant),
    /// No statistics are wanted any longer.
    Never,
}

impl SampleDue {
    /// Returns whether statistics are wanted before a write at the time `now`.
    pub(crate) fn is_due(self, now: Instant) -> bool {
        match self {
            Self::BeforeWrite => true,
            Self::At(due) => due <= now,
            Self::Never => false,
        }
    }
}

/// The outcome of writing a path's output to its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteOutcome {
    /// The socket accepted all of the output.
    Complete,
    /// The socket refused some of the output.
    Blocked,
}

impl RateControl {
    /// Creates the rate control of a path of which little data may wait below the session's queue.
    ///
    /// `max_backlog`: the number of unsent bytes in the kernel at which a path counts as fast and
    /// is not limited.
    pub(crate) fn limited(max_backlog: usize) -> Self {
        Self::new(Some(SendLimit::new(max_backlog)))
    }

    /// Creates the rate control of a path that only the kernel limits.
    pub(crate) fn unlimited() -> Self {
        Self::new(None)
    }

    fn new(limit: Option<SendLimit>) -> Self {
        Self {
            batch: MIN_BATCH,
            write_blocked: false,
            limit,
            congestion: CongestionState::Initial(None),
            cross_traffic: CrossTraffic::new(),
            send_buffer_raised: false,
            sampled_at: None,
            paused_until: None,
        }
    }

    /// Returns when the next sample is wanted. Call this before the session is polled for packets
    /// of the path.
    pub(crate) fn sample_due(&self) -> SampleDue {
        if self.limit.is_none() && !matches!(self.congestion, CongestionState::Initial(_)) {
            return SampleDue::Never;
        }
        let is_fast = self.limit.as_ref().is_none_or(|limit| limit.batch().is_none());
        let interval_end = self.sampled_at.filter(|_| is_fast).map(|at| at + FAST_SAMPLE_INTERVAL);
        interval_end.max(self.paused_until).map_or(SampleDue::BeforeWrite, SampleDue::At)
    }

    /// Updates the send limit from a sample; returns the changes that the path's socket needs.
    pub(crate) fn observe(
        &mut self,
        now: Instant,
        sample: &TcpSample,
    ) -> impl Iterator<Item = SocketChange> + use<> {
        let write_blocked = self.begin_sample(now);
        let (use_bbr, raise) = (self.use_bbr(now, sample), self.raise_send_buffer(sample));
        let restore = self.update_limit(now, sample, write_blocked);
        [use_bbr, raise, restore].into_iter().flatten()
    }

    /// Reports that the kernel provides no statistics. The path is not limited until it does.
    pub(crate) fn sample_unavailable(&mut self, now: Instant) {
        self.begin_sample(now);
    }

    /// Reports the outcome of a command of the last [`observe`](Self::observe). Call this before
    /// the next `observe`.
    pub(crate) fn report(&mut self, outcome: CongestionOutcome) {
        match outcome {
            CongestionOutcome::Replaced(previous) => {
                self.congestion = CongestionState::Bbr { previous: Some(previous) };
            }
            // The command has set the state for this outcome.
            CongestionOutcome::Restored => {}
            CongestionOutcome::Unchanged => {
                self.congestion = CongestionState::Bbr { previous: None };
                // Cross traffic matters only if there is a congestion control to restore.
                self.cross_traffic = CrossTraffic::new();
            }
        }
    }

    /// Reports the outcome of writing the path's output.
    pub(crate) fn on_write(&mut self, outcome: WriteOutcome) {
        match outcome {
            WriteOutcome::Complete => self.batch = MAX_BATCH.min(self.batch * 2),
            WriteOutcome::Blocked => {
                self.write_blocked = true;
                self.batch = MIN_BATCH;
            }
        }
    }

    /// Returns how much the path may take from the session now: no packets while the path has
    /// enough data in flight.
    pub(crate) fn budget(&self) -> Budget {
        let limit = self.limit.as_ref();
        let batch = limit.and_then(SendLimit::batch).map_or(self.batch, |batch| self.batch.min(batch));
        Budget {
            bytes: if self.paused_until.is_some() { 0 } else { batch },
            growing: self.cross_traffic.is_suspected() || limit.is_some_and(SendLimit::is_growing),
        }
    }

    /// Returns when to check again whether the path may send more packets; `None` if the path is
    /// not paused.
    pub(crate) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Ends the pause of the path; returns whether the socket refused some of the output since the
    /// last sample.
    fn begin_sample(&mut self, now: Instant) -> bool {
        self.sampled_at = Some(now);
        self.paused_until = None;
        std::mem::take(&mut self.write_blocked)
    }

    fn use_bbr(&mut self, now: Instant, sample: &TcpSample) -> Option<SocketChange> {
        let CongestionState::Initial(until) = self.congestion else { return None };
        if until.is_some_and(|until| now < until) || !congestion::is_bandwidth_limited(sample) {
            return None;
        }
        self.congestion = CongestionState::Switching;
        Some(SocketChange::UseBbr)
    }

    fn raise_send_buffer(&mut self, sample: &TcpSample) -> Option<SocketChange> {
        if self.send_buffer_raised || !congestion::needs_larger_send_buffer(sample) {
            return None;
        }
        self.send_buffer_raised = true;
        Some(SocketChange::RaiseSendBuffer)
    }

    /// Updates the send limit, pauses the path if it has enough data in flight, and looks for cross
    /// traffic.
    fn update_limit(
        &mut self,
        now: Instant,
        sample: &TcpSample,
        write_blocked: bool,
    ) -> Option<SocketChange> {
        let limit = self.limit.as_mut()?;
        let wait = limit.update(now, *sample, write_blocked);
        self.paused_until = wait.and_then(|wait| now.checked_add(wait));
        let previous = match &self.congestion {
            CongestionState::Initial(_) | CongestionState::Bbr { previous: None } => return None,
            CongestionState::Bbr { previous } => previous.as_ref(),
            CongestionState::Switching => None,
        };
        let limit = wait.and_then(|_| limit.in_flight_limit(sample));
        let release = self.cross_traffic.observe(now, sample, limit)?;
        let command = SocketChange::RestoreCongestionControl(previous?.clone());
        self.congestion = CongestionState::Initial(now.checked_add(release));
        Some(command)
    }
}
