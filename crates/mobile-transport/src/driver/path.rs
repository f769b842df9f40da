//! The transport of one path: its pending output, its rate control and its orderly shutdown.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use mobile_proto::{Budget, PathId, TransportSample};
use tokio::io::{AsyncBufRead, AsyncWrite};
use tokio::net::TcpStream;

use super::TlsStream;
use crate::rate_control::{CongestionOutcome, RateControl, SocketChange, TcpSample, WriteOutcome};
use crate::{tcp_info, transport};

/// The time that a closed path has to deliver its CLOSE frame: a few round trips of a slow link.
///
/// Dropping the socket at once could destroy the CLOSE. With unread bytes in the socket the kernel
/// sends a reset, upon which the peer discards data it has not read.
const LINGER: Duration = Duration::from_secs(1);

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
    rate_control: RateControl,
    closing: Option<Closing>,
}

/// The orderly shutdown of a path that the session has closed: write the rest of the output, end
/// our direction of the stream, and wait for the peer to disconnect.
#[derive(Debug)]
struct Closing {
    deadline: Instant,
    shut: bool,
}

impl Transport {
    pub(super) fn new(id: PathId, stream: TlsStream, rate_control: RateControl) -> Self {
        Self { id, stream, out: Vec::new(), written: 0, unflushed: false, rate_control, closing: None }
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

    /// Passes the kernel's statistics to the rate control if it wants them now, and executes the
    /// commands that it returns.
    pub(super) fn update_rate_control(&mut self, now: Instant) {
        if !self.rate_control.sample_due().is_due(now) {
            return;
        }
        let tcp = self.stream.get_ref().0.tcp();
        let Some(sample) = tcp_info::send_sample(tcp) else {
            self.rate_control.sample_unavailable(now);
            return;
        };
        for command in self.rate_control.observe(now, &sample) {
            if let Some(outcome) = execute(tcp, &command, self.id, &sample) {
                self.rate_control.report(outcome);
            }
        }
    }

    /// Returns how much the path may take from the session now.
    pub(super) fn budget(&self) -> Budget {
        self.rate_control.budget()
    }

    /// Returns when to check again whether the path may send more packets; `None` if the path is
    /// not paused.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.rate_control.paused_until()
    }

    /// Writes and flushes `out`. When this function returns `Ready`, rustls has also passed all of
    /// the output to the socket.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = self.poll_write_out(cx);
        let blocked = drained.is_pending();
        self.rate_control.on_write(if blocked { WriteOutcome::Blocked } else { WriteOutcome::Complete });
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

/// Executes a command of the rate control on the path's socket; returns the outcome of a change of
/// the congestion control.
fn execute(
    tcp: &TcpStream,
    command: &SocketChange,
    path: PathId,
    state: &TcpSample,
) -> Option<CongestionOutcome> {
    match command {
        SocketChange::UseBbr => {
            tracing::debug!(%path, ?state, "path is bandwidth-limited: switching congestion control to bbr");
            Some(transport::switch_to_bbr(tcp))
        }
        SocketChange::RestoreCongestionControl(previous) => {
            tracing::debug!(%path, ?state, "competing traffic detected: restoring the initial congestion control");
            Some(transport::restore_congestion_control(tcp, previous))
        }
        SocketChange::RaiseSendBuffer => {
            tracing::debug!(%path, ?state, "path has much data in flight without a queue: raising its send buffer");
            transport::raise_send_buffer(tcp);
            None
        }
    }
}
