//! The transport of one path: its pending output, its send limit and its orderly shutdown.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use mobile_proto::{PathId, TransportSample};
use tokio::io::{AsyncBufRead, AsyncWrite};

use super::TlsStream;
use super::congestion;
use super::cross_traffic::CrossTraffic;
use super::send_limit::SendLimit;
use crate::tcp_info;
use crate::transport::{self, CongestionControl};

/// The time that a closed path has to deliver its CLOSE: a few round trips of a slow link.
///
/// Dropping the socket at once could destroy the CLOSE. With unread bytes in the socket the kernel
/// sends a reset, upon which the peer discards data it has not read.
const LINGER: Duration = Duration::from_secs(1);

/// The plaintext taken from the session at a time: one TLS record on a path that is full, four (one
/// system call) on a path that accepts all it is given.
///
/// Data taken from the session can no longer be overtaken by more urgent packets.
const MIN_BATCH: usize = 16 * 1024;
const MAX_BATCH: usize = 4 * MIN_BATCH;

/// The backlog above which [`SendLimit`] does not limit a path: at 64 Mbit/s.
const MAX_BACKLOG: usize = transport::NOTSENT_LOWAT as usize;

/// The interval at which the kernel's statistics of a fast path are read; those of a slow path are
/// read before every write.
const FAST_SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

thread_local! {
    /// The spare output buffer of this thread.
    ///
    /// A transport holds a buffer only while it has output, so thousands of idle ones hold none.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The transport of one path.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) id: PathId,
    stream: TlsStream,
    /// The plaintext taken from the session; rustls has the first `written` bytes.
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    batch: usize,
    /// Whether the socket refused some of the output since the last sample.
    write_blocked: bool,
    /// The limit on the data below the session's queue; `None` if only the kernel limits it.
    limit: Option<SendLimit>,
    congestion: CongestionState,
    cross_traffic: CrossTraffic,
    /// Whether the kernel was asked for a larger send buffer.
    send_buffer_raised: bool,
    /// The time of the last sample of the kernel's statistics.
    sampled_at: Option<Instant>,
    /// The time until which only control frames are taken from the session.
    paused_until: Option<Instant>,
    closing: Option<Closing>,
}

/// The congestion control that the kernel was told to use.
#[derive(Debug)]
enum CongestionState {
    /// The initial congestion control, until the path turns out to be bandwidth-limited.
    ///
    /// After cross traffic was detected, the path keeps it at least until the given time.
    Initial(Option<Instant>),
    /// The congestion control bbr, because the path is bandwidth-limited.
    Bbr {
        /// The congestion control to restore; `None` if bbr must stay.
        previous: Option<CongestionControl>,
    },
}

/// The orderly shutdown of a path that the session has closed: write the rest, end our direction,
/// and wait for the peer to disconnect.
#[derive(Debug)]
struct Closing {
    deadline: Instant,
    shut: bool,
}

impl Transport {
    pub(super) fn new(id: PathId, stream: TlsStream, fair: bool) -> Self {
        Self {
            id,
            stream,
            out: Vec::new(),
            written: 0,
            unflushed: false,
            batch: MIN_BATCH,
            write_blocked: false,
            limit: fair.then(|| SendLimit::new(MAX_BACKLOG)),
            congestion: CongestionState::Initial(None),
            cross_traffic: CrossTraffic::new(),
            send_buffer_raised: false,
            sampled_at: None,
            paused_until: None,
            closing: None,
        }
    }

    /// Returns received plaintext, to be released with [`consume`](Self::consume); empty at the end
    /// of the stream.
    pub(super) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.stream).poll_fill_buf(cx)
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        Pin::new(&mut self.stream).consume(bytes);
    }

    /// Returns the buffer to which the next output is appended.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = SPARE.take();
        }
        &mut self.out
    }

    /// Returns whether all output is written; if so, gives the buffer back to the thread.
    pub(super) fn is_drained(&mut self) -> bool {
        if self.out.is_empty() && self.out.capacity() > 0 {
            SPARE.set(std::mem::take(&mut self.out));
        }
        self.out.is_empty()
    }

    /// Returns how many bytes of packets to append to `out` next.
    pub(super) fn batch(&self) -> usize {
        if self.paused_until.is_some() {
            return 0;
        }
        let limited_batch = self.limit.as_ref().and_then(SendLimit::batch);
        limited_batch.map_or(self.batch, |batch| self.batch.min(batch))
    }

    /// Updates the congestion control, the send buffer and the send limit from the kernel's
    /// statistics.
    ///
    /// If the path has enough in flight, sets `paused_until`; until then only control frames may be
    /// taken from the session.
    pub(super) fn update_send_limit(&mut self, now: Instant) {
        if self.limit.is_none() && matches!(self.congestion, CongestionState::Bbr { .. }) {
            return;
        }
        let recently = |at: Instant| now.saturating_duration_since(at) < FAST_SAMPLE_INTERVAL;
        let is_fast = self.limit.as_ref().is_none_or(|limit| limit.batch().is_none());
        if self.paused_until.is_some_and(|until| now < until)
            || (is_fast && self.sampled_at.is_some_and(recently))
        {
            return;
        }
        self.sampled_at = Some(now);
        let write_blocked = std::mem::take(&mut self.write_blocked);
        let tcp = self.stream.get_ref().0.tcp();
        // Without statistics the path is not limited.
        self.paused_until = None;
        let Some(state) = tcp_info::send_state(tcp) else { return };
        if let CongestionState::Initial(until) = self.congestion
            && until.is_none_or(|until| until <= now)
            && congestion::is_bandwidth_limited(&state)
        {
            tracing::debug!(path = %self.id, ?state, "the path has bounds: its congestion control goes by rate");
            self.congestion = CongestionState::Bbr { previous: transport::switch_to_bbr(tcp) };
        }
        if !self.send_buffer_raised && congestion::needs_larger_send_buffer(&state) {
            self.send_buffer_raised = true;
            tracing::debug!(path = %self.id, ?state, "the path takes much: it may have more on its way");
            transport::raise_send_buffer(tcp);
        }
        let Some(limit) = &mut self.limit else { return };
        let wait = limit.update(now, state, write_blocked);
        self.paused_until = wait.and_then(|wait| now.checked_add(wait));
        if let CongestionState::Bbr { previous: Some(previous) } = &self.congestion
            && let Some(release) =
                self.cross_traffic.observe(now, &state, wait.and_then(|_| limit.in_flight_limit(&state)))
        {
            tracing::debug!(path = %self.id, ?state, "cross traffic: the congestion control goes as it began");
            self.congestion = if transport::restore_congestion_control(tcp, previous) {
                CongestionState::Initial(now.checked_add(release))
            } else {
                CongestionState::Bbr { previous: None }
            };
        }
    }

    /// Returns whether the path is expected to carry more soon than it does.
    pub(super) fn is_growing(&self) -> bool {
        self.cross_traffic.is_suspected() || self.limit.as_ref().is_some_and(SendLimit::is_growing)
    }

    /// Returns when to check again whether the path may send more.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Writes and flushes `out`. Once ready, rustls holds none of it either.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = self.poll_write_out(cx);
        self.write_blocked |= drained.is_pending();
        self.batch = if drained.is_pending() { MIN_BATCH } else { MAX_BATCH.min(self.batch * 2) };
        drained
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.unflushed = true;
        }
        self.out.clear();
        self.written = 0;
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Returns the kernel's statistics for the session's liveness check.
    pub(super) fn liveness_sample(&self) -> Option<TransportSample> {
        tcp_info::liveness_sample(self.stream.get_ref().0.tcp())
    }

    /// Starts the orderly shutdown.
    pub(super) fn close(&mut self, now: Instant) {
        self.closing.get_or_insert(Closing { deadline: now + LINGER, shut: false });
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Returns when the orderly shutdown is abandoned.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.closing.as_ref().map(|closing| closing.deadline)
    }

    /// Ends our direction of a closing path, once all output is written.
    pub(super) fn poll_shutdown_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(closing) = self.closing.as_mut().filter(|closing| !closing.shut) {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            closing.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}
