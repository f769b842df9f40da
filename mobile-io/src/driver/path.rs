//! One path's transport: what is being written, and its orderly end.

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

/// How long a closed path may take to hand over its CLOSE. To drop the socket at once could destroy it: with
/// unread bytes waiting the kernel sends a reset, which overtakes data. A few round trips of a slow link.
const LINGER: Duration = Duration::from_secs(1);

/// Plaintext taken from the session at a time: on a path that is full, one TLS record; on one that takes all it is
/// given, four, which are one system call. What is taken can no longer be overtaken by a better choice.
const MIN_BATCH: usize = 16 * 1024;
const MAX_BATCH: usize = 4 * MIN_BATCH;

/// A path whose unsent share (see [`Window`]) would be above this has no limits of ours: that is at 64 Mbit/s.
const MAX_BACKLOG: usize = transport::NOTSENT_LOWAT as usize;

/// A fast path is asked only so often whether it still is one; a slow one each time that it takes something.
const FAST_SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

thread_local! {
    /// A buffer for `out` of whichever transport has something to write: thousands of idle ones hold none.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A path's transport.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) id: PathId,
    stream: TlsStream,
    /// Plaintext taken from the session; bytes before `written` are in rustls.
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    batch: usize,
    /// The kernel did not take all that there was, since it was last asked.
    write_blocked: bool,
    /// None: as much stands below as the kernel takes.
    limit: Option<SendLimit>,
    congestion: CongestionState,
    cross_traffic: CrossTraffic,
    /// It has shown that it takes much, and the kernel was told to give it room.
    send_buffer_raised: bool,
    /// When the kernel was asked for it.
    sampled_at: Option<Instant>,
    /// Until then no records are taken.
    paused_until: Option<Instant>,
    closing: Option<Closing>,
}

/// What the kernel was told to go by.
#[derive(Debug)]
enum CongestionState {
    /// What it begins with, until the path shows bounds; not before this, if it was found to be shared.
    Initial(Option<Instant>),
    /// The rate: the path has shown that it has bounds.
    Bbr {
        /// What it went by before, if it could be changed.
        previous: Option<CongestionControl>,
    },
}

/// The session is done with the path: write what is left, say so, wait for the other side to hang up.
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

    /// Decrypted bytes that have arrived; [`consume`](Self::consume) them. Empty: the other side hung up.
    pub(super) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.stream).poll_fill_buf(cx)
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        Pin::new(&mut self.stream).consume(bytes);
    }

    /// Where to put what is to be written next.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = SPARE.take();
        }
        &mut self.out
    }

    /// Is nothing left to write? Then its buffer is another's to use.
    pub(super) fn is_drained(&mut self) -> bool {
        if self.out.is_empty() && self.out.capacity() > 0 {
            SPARE.set(std::mem::take(&mut self.out));
        }
        self.out.is_empty()
    }

    /// How much to put into `out` next.
    pub(super) fn batch(&self) -> usize {
        if self.paused_until.is_some() {
            return 0;
        }
        let limited_batch = self.limit.as_ref().and_then(SendLimit::batch);
        limited_batch.map_or(self.batch, |batch| self.batch.min(batch))
    }

    /// Finds out whether the path has as much as it is to have for now; then only control frames are to be taken.
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
        // A kernel that does not tell is not waited for.
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

    /// Is the path about to carry more than it does?
    pub(super) fn is_growing(&self) -> bool {
        self.cross_traffic.is_suspected() || self.limit.as_ref().is_some_and(SendLimit::is_growing)
    }

    /// When it is to be asked again whether it may have more.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Writes and flushes `out`. When ready, nothing of it is left in this process.
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

    /// What the kernel knows of the connection.
    pub(super) fn liveness_sample(&self) -> Option<TransportSample> {
        tcp_info::liveness_sample(self.stream.get_ref().0.tcp())
    }

    /// Begins the orderly end.
    pub(super) fn close(&mut self, now: Instant) {
        self.closing.get_or_insert(Closing { deadline: now + LINGER, shut: false });
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// When the orderly end is given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.closing.as_ref().map(|closing| closing.deadline)
    }

    /// Once everything is drained: ends our direction of a closing path.
    pub(super) fn poll_shutdown_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(closing) = self.closing.as_mut().filter(|closing| !closing.shut) {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            closing.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}
