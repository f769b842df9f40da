//! One path's transport: what is being written, and its orderly end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use mobile_proto::{PathId, TransportSample};
use tokio::io::{AsyncBufRead, AsyncWrite};

use super::TlsStream;
use crate::{tcp_info, transport};

/// How long a closed path may take to hand over its CLOSE. To drop the socket at once could destroy it: with
/// unread bytes waiting the kernel sends a reset, which overtakes data. A few round trips of a slow link.
const LINGER: Duration = Duration::from_secs(1);

/// Plaintext taken from the session at a time: on a path that is full, one TLS record; on one that takes all it is
/// given, four, which are one system call. What is taken can no longer be overtaken by a better choice.
const MIN_BATCH: usize = 16 * 1024;
const MAX_BATCH: usize = 4 * MIN_BATCH;

/// What stands below the session's queue, in the kernel and in a batch, is to be no more than this each: nothing overtakes
/// it. So a keystroke waits for 5 ms at the most on average, as in the queue itself (the target of RFC 8289); and the
/// kernel, which wakes us when half of it is sent, waits for no process for longer than 2 ms.
const DEPTH: Duration = Duration::from_millis(4);
/// But two full-sized packets, whatever the rate.
const MIN_DEPTH: usize = 3 * 1024;
/// Above, that is 64 Mbit/s, batches are as large as writing well asks for.
const MAX_DEPTH: usize = transport::NOTSENT_LOWAT as usize;
/// A path's rate is asked for this often.
const DEPTH_INTERVAL: Duration = Duration::from_millis(20);

/// A path's transport.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) id: PathId,
    stream: TlsStream,
    /// Plaintext taken from the session; bytes before `written` are in rustls.
    pub(super) out: Vec<u8>,
    written: usize,
    unflushed: bool,
    batch: usize,
    /// How much may stand below the queue, as of when.
    depth: usize,
    measured: Option<Instant>,
    closing: Option<Closing>,
}

/// The session is done with the path: write what is left, say so, wait for the other side to hang up.
#[derive(Debug)]
struct Closing {
    deadline: Instant,
    shut: bool,
}

impl Transport {
    pub(super) fn new(id: PathId, stream: TlsStream) -> Self {
        Self {
            id,
            stream,
            out: Vec::new(),
            written: 0,
            unflushed: false,
            batch: MIN_BATCH,
            depth: MAX_DEPTH,
            measured: None,
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

    /// How much to put into `out` next.
    pub(super) fn batch(&self) -> usize {
        if self.depth < MAX_DEPTH { self.batch.min(self.depth) } else { self.batch }
    }

    /// Adapts how much stands below the session's queue to the path's rate.
    pub(super) fn adapt(&mut self, now: Instant) {
        if self.measured.is_some_and(|at| now.saturating_duration_since(at) < DEPTH_INTERVAL) {
            return;
        }
        self.measured = Some(now);
        let tcp = self.stream.get_ref().0;
        let Some(rate) = tcp_info::pacing_rate(tcp) else { return };
        let depth = depth_at(rate);
        // A few per cent more or less are not worth a system call.
        if depth.abs_diff(self.depth) > self.depth / 8 {
            // Nothing is lost if the kernel refuses, but a few milliseconds.
            let _ = transport::set_unsent(tcp, depth as u32);
            self.depth = depth;
        }
    }

    /// Writes and flushes `out`. When ready, nothing of it is left in this process.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = self.poll_write_out(cx);
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
    pub(super) fn sample(&self) -> Option<TransportSample> {
        tcp_info::sample(self.stream.get_ref().0)
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
    pub(super) fn poll_shut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(closing) = self.closing.as_mut().filter(|closing| !closing.shut) {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            closing.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// How many bytes make up [`DEPTH`], between the bounds.
fn depth_at(bytes_per_second: u64) -> usize {
    let bytes = u128::from(bytes_per_second) * DEPTH.as_micros() / 1_000_000;
    usize::try_from(bytes).unwrap_or(MAX_DEPTH).clamp(MIN_DEPTH, MAX_DEPTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_stands_below_the_queue_of_a_slow_path() {
        assert_eq!(depth_at(10_000_000 / 8), 5000);
        assert_eq!(depth_at(100_000 / 8), MIN_DEPTH);
        assert_eq!(depth_at(1_000_000_000 / 8), MAX_DEPTH);
        assert_eq!(depth_at(u64::MAX), MAX_DEPTH);
    }
}
