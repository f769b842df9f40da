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

/// The time that a closed path has to deliver its CLOSE frame: a few round trips of a slow link.
///
/// Dropping the socket at once could destroy the CLOSE. With unread bytes in the socket the kernel
/// sends a reset, upon which the peer discards data it has not read.
const LINGER: Duration = Duration::from_secs(1);

/// The number of bytes taken from the session at a time, between a minimum and a maximum: one TLS
/// record if the last write filled the socket, up to four (one system call) while the socket
/// accepts every write at once.
///
/// The number is small, because more urgent packets can no longer overtake data that was taken from
/// the session.
const MIN_BATCH: usize = 16 * 1024;
const MAX_BATCH: usize = 4 * MIN_BATCH;

/// The number of unsent bytes in the kernel at which [`SendLimit`] counts a path as fast and does
/// not limit it: the bytes that a path of 64 Mbit/s sends in the 4 ms that a backlog may take.
const MAX_BACKLOG: usize = transport::NOTSENT_LOWAT as usize;

/// The interval at which the kernel's statistics of a fast path are read; the statistics of a slow
/// path are read before every write.
const FAST_SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

thread_local! {
    /// The output buffer that no transport on this thread uses at the moment.
    ///
    /// A transport holds a buffer only while it has output, so thousands of idle ones hold none.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The transport of one path.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) id: PathId,
    stream: TlsStream,
    /// The plaintext taken from the session, of which rustls has accepted the first `written`
    /// bytes.
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    batch: usize,
    /// Whether the socket refused some of the output since the kernel's statistics were last read.
    write_blocked: bool,
    /// The limit on the data that has left the session's queue and is not yet acknowledged; `None`
    /// if only the kernel limits it.
    limit: Option<SendLimit>,
    congestion: CongestionState,
    cross_traffic: CrossTraffic,
    /// Whether the kernel was asked for a larger send buffer.
    send_buffer_raised: bool,
    /// The time at which the kernel's statistics were last read; `None` before that.
    sampled_at: Option<Instant>,
    /// The time until which only control frames are taken from the session, because enough data is
    /// in flight; `None` if packets may be taken too.
    paused_until: Option<Instant>,
    closing: Option<Closing>,
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
}

/// The orderly shutdown of a path that the session has closed: write the rest of the output, end
/// our direction of the stream, and wait for the peer to disconnect.
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

    /// Returns received plaintext, empty at the end of the stream. The caller then reports with
    /// [`consume`](Self::consume) how much of it was used.
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

    /// Returns whether all output is written; if so, makes its buffer the spare one of this thread.
    pub(super) fn is_drained(&mut self) -> bool {
        if self.out.is_empty() && self.out.capacity() > 0 {
            SPARE.set(std::mem::take(&mut self.out));
        }
        self.out.is_empty()
    }

    /// Returns how many bytes of packets to append to `out` next; 0 while the path has enough data
    /// in flight.
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
    /// If the path has enough data in flight, sets `paused_until`; until then only control frames
    /// may be taken from the session.
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
            tracing::debug!(path = %self.id, ?state, "path is bandwidth-limited: switching congestion control to bbr");
            self.congestion = CongestionState::Bbr { previous: transport::switch_to_bbr(tcp) };
        }
        if !self.send_buffer_raised && congestion::needs_larger_send_buffer(&state) {
            self.send_buffer_raised = true;
            tracing::debug!(path = %self.id, ?state, "path has much data in flight without a queue: raising its send buffer");
            transport::raise_send_buffer(tcp);
        }
        let Some(limit) = &mut self.limit else { return };
        let wait = limit.update(now, state, write_blocked);
        self.paused_until = wait.and_then(|wait| now.checked_add(wait));
        if let CongestionState::Bbr { previous: Some(previous) } = &self.congestion
            && let Some(release) =
                self.cross_traffic.observe(now, &state, wait.and_then(|_| limit.in_flight_limit(&state)))
        {
            tracing::debug!(path = %self.id, ?state, "competing traffic detected: restoring the initial congestion control");
            self.congestion = if transport::restore_congestion_control(tcp, previous) {
                CongestionState::Initial(now.checked_add(release))
            } else {
                CongestionState::Bbr { previous: None }
            };
        }
    }

    /// Returns whether the throughput of the path is expected to rise soon.
    pub(super) fn is_growing(&self) -> bool {
        self.cross_traffic.is_suspected() || self.limit.as_ref().is_some_and(SendLimit::is_growing)
    }

    /// Returns when to check again whether the path may send more packets; `None` if the path is
    /// not paused.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Writes and flushes `out`. When this function returns `Ready`, rustls has also passed all of
    /// the output to the socket.
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

    /// Returns the kernel's statistics of the path's TCP connection, for the session's liveness
    /// check; `None` if the kernel does not provide them.
    pub(super) fn liveness_sample(&self) -> Option<TransportSample> {
        tcp_info::liveness_sample(self.stream.get_ref().0.tcp())
    }

    /// Starts the orderly shutdown of the path, which is abandoned after [`LINGER`].
    pub(super) fn close(&mut self, now: Instant) {
        self.closing.get_or_insert(Closing { deadline: now + LINGER, shut: false });
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Returns when the orderly shutdown is abandoned; `None` if it has not started.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.closing.as_ref().map(|closing| closing.deadline)
    }

    /// Sends the end of our direction of the stream if the path is closing. To be called when all
    /// output is written.
    pub(super) fn poll_shutdown_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(closing) = self.closing.as_mut().filter(|closing| !closing.shut) {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            closing.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}
