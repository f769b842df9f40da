//! The commands of the driver's owner.

use std::task::{Context, Poll};
use std::time::Instant;

use mobile_proto::{CloseCode, PathId};
use tokio::sync::oneshot;

use super::paths::SampleScope;
use super::{Driver, Outcome, SHUTDOWN_TIMEOUT, Stopping};
use crate::driver::path::Transport;
use crate::driver::{AcceptedPath, Command, PacketIo, SessionSnapshot, TlsStream};
use crate::rate_control::RateControl;
use crate::tls::HandshakeFailure;
use crate::transport;

/// The number of unsent bytes in the kernel at which a path counts as fast and is not limited: the
/// bytes that a path of 64 Mbit/s sends in the 4 ms that a backlog may take.
const MAX_BACKLOG: usize = transport::NOTSENT_LOWAT as usize;

impl<I: PacketIo> Driver<I> {
    /// Executes the owner's queued commands; returns the outcome if one of them ends the driver.
    pub(super) fn handle_commands(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Outcome> {
        while let Poll::Ready(command) = self.commands.poll_recv(cx) {
            match command {
                Some(Command::Open(path, stream)) => {
                    self.session.open_path(now, path);
                    self.add_transport(now, path, *stream);
                }
                Some(Command::Accept(accepted)) => self.accept(now, *accepted),
                Some(Command::Activate(path, keep)) => self.session.activate(now, path, &keep),
                Some(Command::Probe) => self.session.probe(now),
                Some(Command::Close(path, code)) => self.close(now, path, code),
                Some(Command::SetConfig(config)) => self.session.set_config(*config),
                Some(Command::Confirm(stored)) => self.session.confirm(stored),
                Some(Command::Snapshot(reply)) => {
                    // The caller may have stopped waiting.
                    let _ = reply.send(self.snapshot(now));
                }
                Some(Command::TakeOver(reply)) => return Some(Outcome::TakenOver(reply)),
                Some(Command::Shutdown(code, reply)) => self.stop(now, code, Some(reply)),
                None => {
                    // The last handle is gone, so no command will follow. A closed channel is
                    // always ready; leave the loop to check it once per poll.
                    self.stop(now, CloseCode::Shutdown, None);
                    break;
                }
            }
        }
        None
    }

    fn accept(&mut self, now: Instant, accepted: AcceptedPath) {
        let AcceptedPath { hello, leftover, stream } = accepted;
        if let Err(error) = self.session.accept_path(now, &hello) {
            self.report_path_error(now, hello.path, HandshakeFailure::Protocol(error.to_string()));
            return;
        }
        self.add_transport(now, hello.path, stream);
        if !leftover.is_empty() {
            let Self { session, io, .. } = self;
            if let Err(error) =
                session.handle_input(now, hello.path, &leftover, &mut |packet| io.send(packet))
            {
                self.close_for_violation(now, hello.path, &error);
            }
        }
    }

    /// Adds the transport of a path, replacing an older transport with the same path ID.
    ///
    /// Moves the events that the session has queued to the event queue first, because they concern
    /// the older transport.
    fn add_transport(&mut self, now: Instant, path: PathId, stream: TlsStream) {
        self.collect_events(now);
        self.paths.retain(|transport| transport.id != path);
        // Reserve one element, not four: nearly every session has one or two paths, and a relay has
        // thousands of sessions.
        self.paths.reserve_exact(1);
        let rate_control =
            if self.session.is_fair() { RateControl::limited(MAX_BACKLOG) } else { RateControl::unlimited() };
        self.paths.push(Transport::new(path, stream, rate_control));
    }

    fn close(&mut self, now: Instant, path: PathId, code: CloseCode) {
        self.session.close_path(now, path, code);
        self.close_transport(now, path);
    }

    pub(super) fn close_transport(&mut self, now: Instant, path: PathId) {
        for transport in self.paths.iter_mut().filter(|transport| transport.id == path) {
            transport.close(now);
        }
    }

    fn stop(&mut self, now: Instant, code: CloseCode, reply: Option<oneshot::Sender<()>>) {
        let first = self.stopping.is_none();
        let stopping = self
            .stopping
            .get_or_insert_with(|| Stopping { deadline: now + SHUTDOWN_TIMEOUT, replies: Vec::new() });
        stopping.replies.extend(reply);
        if first {
            let open: Vec<_> = self.paths.iter().map(|transport| transport.id).collect();
            for path in open {
                self.close(now, path, code);
            }
        }
    }

    fn snapshot(&mut self, now: Instant) -> SessionSnapshot {
        self.sample_transports(now, SampleScope::All);
        let stats_of = |path| Some((path, self.session.path_stats(path)?));
        SessionSnapshot {
            stats: self.session.stats().clone(),
            paths: self.session.paths().filter_map(stats_of).collect(),
            active: self.session.active_path(),
            queued_bytes: self.session.queued_bytes(),
            unacked_bytes: self.session.unacked_bytes(),
            epoch: self.session.epoch(),
            config: self.session.config().cloned(),
        }
    }
}
