//! The transports of a driver's paths: reading, writing, and dropping those that have failed.

use std::task::{Context, Poll};
use std::time::Instant;

use mobile_proto::{PathId, ProtocolError};

use super::{DELIVERIES_PER_ROUND, Driver, READS_PER_ROUND, WRITES_PER_ROUND};
use crate::driver::PacketIo;
use crate::tls::{HandshakeFailure, classify};

/// The paths whose statistics are passed to the session.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum SampleScope {
    /// Every path.
    All,
    /// The paths for which the session needs statistics now.
    Wanted,
}

impl<I: PacketIo> Driver<I> {
    /// Passes the kernel's TCP statistics of paths to the session.
    pub(super) fn sample_transports(&mut self, now: Instant, scope: SampleScope) {
        for transport in self.paths.iter().filter(|transport| !transport.is_closing()) {
            if (scope == SampleScope::All || self.session.wants_sample(now, transport.id))
                && let Some(sample) = transport.liveness_sample()
            {
                self.session.transport_sample(now, transport.id, sample);
            }
        }
    }

    /// Reads every path; returns whether there may be more to read.
    pub(super) fn read_paths(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut more = false;
        // Iterate backwards, because a failed path is removed.
        for index in (0..self.paths.len()).rev() {
            if self.reads_paused {
                break;
            }
            match self.read_path(cx, now, index) {
                Ok(bound) => more |= bound,
                Err(cause) => self.drop_path(now, index, cause),
            }
        }
        more
    }

    /// Reads one path; returns whether there may be more to read.
    fn read_path(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        index: usize,
    ) -> Result<bool, HandshakeFailure> {
        let mut delivered = 0;
        for _ in 0..READS_PER_ROUND {
            let Self { session, io, paths, .. } = self;
            let transport = &mut paths[index];
            let (path, closing) = (transport.id, transport.is_closing());
            let bytes = match transport.poll_bytes(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(bytes) => bytes.map_err(|error| classify(&error))?,
            };
            if bytes.is_empty() {
                return Err(HandshakeFailure::Network("the peer closed the connection".into()));
            }
            let length = bytes.len();
            // The session has closed this path, and another path may have the same ID by now.
            let outcome = if closing {
                Ok(())
            } else {
                session.handle_input(now, path, bytes, &mut |packet| {
                    delivered += 1;
                    io.send(packet);
                })
            };
            transport.consume(length);
            match outcome {
                Err(error) => self.close_for_violation(now, path, &error),
                // Report a CLOSE among these bytes before reading the end of the stream behind it.
                Ok(()) if self.forward_events(cx, now) => {}
                Ok(()) => return Ok(false),
            }
            if delivered >= DELIVERIES_PER_ROUND {
                break;
            }
        }
        Ok(true)
    }

    /// Writes to every path; returns whether there may be more to write.
    pub(super) fn transmit_paths(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut more = false;
        for index in (0..self.paths.len()).rev() {
            match self.transmit_path(cx, now, index) {
                Ok(bound) => more |= bound,
                Err(error) => {
                    let cause = self.read_close_reason(cx, now, index).unwrap_or_else(|| classify(&error));
                    self.drop_path(now, index, cause);
                }
            }
        }
        more
    }

    /// Writes to one path; returns whether there may be more to write.
    fn transmit_path(&mut self, cx: &mut Context<'_>, now: Instant, index: usize) -> std::io::Result<bool> {
        let Self { session, paths, .. } = self;
        let transport = &mut paths[index];
        for _ in 0..WRITES_PER_ROUND {
            // While the last batch is being written, leave the queue in the session, where packets
            // can be reordered.
            if transport.poll_drain(cx)?.is_pending() {
                return Ok(false);
            }
            if session.wants_transmit(transport.id) {
                if session.active_path() == Some(transport.id) {
                    transport.update_rate_control(now);
                }
                let budget = transport.budget();
                session.poll_transmit(now, transport.id, transport.out(), budget);
            }
            if transport.is_drained() {
                // Whether the shutdown is pending or complete, there is nothing more to write.
                let _ = transport.poll_shutdown_write(cx)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the peer's reason for closing a path that can no longer be written to; returns `None`
    /// if the peer sent no reason.
    ///
    /// The TLS alert with which a relay refuses a key may still be readable after the connection
    /// was reset.
    fn read_close_reason(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        index: usize,
    ) -> Option<HandshakeFailure> {
        loop {
            match self.read_path(cx, now, index) {
                Ok(true) => {}
                Ok(false) | Err(HandshakeFailure::Network(_)) => return None,
                Err(cause) => return Some(cause),
            }
        }
    }

    /// Drops a dead transport, and reports the failure unless the transport was already closing.
    fn drop_path(&mut self, now: Instant, index: usize, cause: HandshakeFailure) {
        // The session may have closed the path already, with the event still queued.
        self.collect_events(now);
        let transport = self.paths.swap_remove(index);
        self.session.path_lost(transport.id);
        if !transport.is_closing() {
            self.report_path_error(now, transport.id, cause);
        }
    }

    /// Closes a path whose peer violated the protocol. The session sends a CLOSE for it, and
    /// continues on its other paths.
    pub(super) fn close_for_violation(&mut self, now: Instant, path: PathId, error: &ProtocolError) {
        self.close_transport(now, path);
        self.report_path_error(now, path, HandshakeFailure::Protocol(error.to_string()));
    }

    /// Drops closing transports whose peer has not disconnected in time.
    pub(super) fn drop_expired(&mut self, now: Instant) {
        for index in (0..self.paths.len()).rev() {
            if self.paths[index].deadline().is_some_and(|deadline| deadline <= now) {
                self.drop_path(
                    now,
                    index,
                    HandshakeFailure::Network("the peer did not close the connection in time".into()),
                );
            }
        }
    }
}
