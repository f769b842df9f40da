//! The driver's task: the work of one poll, and the events after which the task is polled again.
//!
//! No wake-up is lost. A poll ends only when every source has returned `Pending`, and so will wake
//! the task, or when there may be more work, in which case the task wakes itself.
//!
//! There are two exceptions. The packet source is not polled while the session has no room for
//! packets. Room arises only within a poll, by a transmission or an acknowledgement, and is checked
//! again after each transmission. Paths are not polled while events wait for the owner; room in the
//! owner's channel wakes the task.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mobile_proto::{CloseCode, Event, Hello, MAX_PACKET, PathId, ProtocolError, Session, Unacknowledged};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use super::event_queue::EventQueue;
use super::path::Transport;
use super::{Command, DriverEvent, PacketIo, SessionSnapshot, TlsStream};
use crate::tls::{HandshakeFailure, classify};

/// The maximum numbers of reads, deliveries, packets and writes for each path or packet source in
/// one round of a poll: enough to amortise the round, and little enough that no source waits long
/// for another.
///
/// Many reads, of one TLS record each, are allowed. The receiver of inner TCP acknowledges what a
/// round delivers, and the fewer rounds there are, the fewer acknowledgements travel
/// ([`Session::enqueue`] thins them out). Deliveries are limited too, because a program that
/// answers every datagram would overflow the device's queue (1,000 packets) during a round.
const READS_PER_ROUND: usize = 64;
const DELIVERIES_PER_ROUND: usize = 256;
const PACKETS_PER_ROUND: usize = 64;
const WRITES_PER_ROUND: usize = 4;

/// The maximum number of rounds in one poll, after which other tasks get their turn: at most 2 MiB,
/// or some milliseconds.
const ROUNDS_PER_POLL: usize = 2;

/// The delay before polling a failed packet source, such as a TUN device that is down, again.
const SOURCE_RETRY: Duration = Duration::from_secs(1);

/// The time within which a driver stops, whether or not its peer has received the CLOSE.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

thread_local! {
    /// The packet buffer that no driver on this thread uses at the moment.
    ///
    /// A driver holds the buffer only during a read, so thousands of idle ones hold none.
    static PACKET_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Returns the future that runs a driver until it stops.
pub(super) fn run<I: PacketIo>(
    session: Session,
    io: I,
    commands: mpsc::UnboundedReceiver<Command>,
    event_sender: mpsc::Sender<DriverEvent>,
) -> impl Future<Output = ()> {
    // The future has the driver in one place: made or taken apart inside of it, the session would
    // be stored up to three times, at 1.5 KiB each.
    let mut driver = Driver {
        session,
        io,
        commands,
        events: EventQueue::new(event_sender),
        reads_paused: false,
        paths: Vec::new(),
        source_retry_at: None,
        source_failing: false,
        stopping: None,
        sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
    };
    async move {
        let outcome = poll_fn(|cx| driver.poll(cx)).await;
        driver.end(outcome).finish(DriverEvent::Stopped).await;
    }
}

enum Outcome {
    TakenOver(oneshot::Sender<Unacknowledged>),
    Stopped(Vec<oneshot::Sender<()>>),
}

struct Driver<I> {
    session: Session,
    io: I,
    commands: mpsc::UnboundedReceiver<Command>,
    events: EventQueue,
    /// Whether the driver did not read its paths because events for the owner had to wait.
    reads_paused: bool,
    paths: Vec<Transport>,
    source_retry_at: Option<Instant>,
    source_failing: bool,
    stopping: Option<Stopping>,
    sleep: Pin<Box<Sleep>>,
}

struct Stopping {
    deadline: Instant,
    replies: Vec<oneshot::Sender<()>>,
}

/// The reason why the driver stopped reading packets from the source in this round.
#[derive(PartialEq)]
enum SourceState {
    /// The source has no packet and will wake the task.
    Pending,
    /// The session has no room for another packet.
    NoRoom,
    /// The driver has read the maximum number of packets for one round.
    BatchDone,
}

impl<I: PacketIo> Driver<I> {
    /// Drops the paths, tells the callers that waited for the end, and returns the events that the
    /// owner has not received.
    fn end(mut self, outcome: Outcome) -> EventQueue {
        self.collect_events(now());
        let Self { session, events, paths, commands, .. } = self;
        drop((paths, commands));
        match outcome {
            Outcome::TakenOver(reply) => {
                // If the caller has gone, the packets are discarded.
                let _ = reply.send(session.into_unacknowledged());
            }
            Outcome::Stopped(replies) => {
                for reply in replies {
                    let _ = reply.send(());
                }
            }
        }
        events
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        for _ in 0..ROUNDS_PER_POLL {
            let now = now();
            if let Some(end) = self.handle_commands(cx, now) {
                return Poll::Ready(end);
            }
            self.drop_expired(now);
            // Read before checking time-outs: received data may prove that a path is alive.
            let mut more = false;
            if self.forward_events(cx, now) {
                self.reads_paused = false;
                more = self.read_paths(cx, now);
            }
            self.io.flush();
            self.sample_transports(now, false);
            if self.session.poll_timeout().is_some_and(|due| due <= now) {
                self.session.handle_timeout(now);
            }
            let source = self.read_packets(cx, now);
            more |= self.transmit_paths(cx, now);
            let Self { session, io, .. } = self;
            session.poll_local(now, &mut |packet| io.send(packet));
            io.flush();
            more |=
                source == SourceState::BatchDone || (source == SourceState::NoRoom && self.wants_packets());
            more |= self.forward_events(cx, now) && std::mem::take(&mut self.reads_paused);
            if let Some(end) = self.take_end(now) {
                return Poll::Ready(end);
            }
            more |= self.poll_timer(cx, now);
            if !more {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Executes the owner's queued commands; returns the outcome if one of them ends the driver.
    fn handle_commands(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Outcome> {
        while let Poll::Ready(command) = self.commands.poll_recv(cx) {
            match command {
                Some(Command::Open(path, stream)) => {
                    self.session.open_path(now, path);
                    self.add_transport(now, path, *stream);
                }
                Some(Command::Accept(hello, leftover, stream)) => {
                    self.accept(now, &hello, &leftover, *stream);
                }
                Some(Command::Activate(path, keep)) => self.session.activate(now, path, &keep),
                Some(Command::Probe) => self.session.probe(now),
                Some(Command::Close(path, code)) => self.close(now, path, code),
                Some(Command::SetConfig(config)) => self.session.set_config(config),
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

    fn accept(&mut self, now: Instant, hello: &Hello, leftover: &[u8], stream: TlsStream) {
        if let Err(error) = self.session.accept_path(now, hello) {
            self.report_path_error(now, hello.path, HandshakeFailure::Protocol(error.to_string()));
            return;
        }
        self.add_transport(now, hello.path, stream);
        if !leftover.is_empty() {
            let Self { session, io, .. } = self;
            if let Err(error) = session.handle_input(now, hello.path, leftover, &mut |packet| io.send(packet))
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
        self.paths.push(Transport::new(path, stream, self.session.is_fair()));
    }

    fn close(&mut self, now: Instant, path: PathId, code: CloseCode) {
        self.session.close_path(now, path, code);
        self.close_transport(now, path);
    }

    fn close_transport(&mut self, now: Instant, path: PathId) {
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

    /// Returns the outcome for the owner if the driver has finished shutting down.
    fn take_end(&mut self, now: Instant) -> Option<Outcome> {
        let stopping = self.stopping.take_if(|it| self.paths.is_empty() || it.deadline <= now)?;
        Some(Outcome::Stopped(stopping.replies))
    }

    /// Passes the kernel's TCP statistics of paths to the session: of every path if `all` is true,
    /// otherwise of those for which the session needs them now.
    fn sample_transports(&mut self, now: Instant, all: bool) {
        for transport in self.paths.iter().filter(|transport| !transport.is_closing()) {
            if (all || self.session.wants_sample(now, transport.id))
                && let Some(sample) = transport.liveness_sample()
            {
                self.session.transport_sample(now, transport.id, sample);
            }
        }
    }

    fn snapshot(&mut self, now: Instant) -> SessionSnapshot {
        self.sample_transports(now, true);
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

    /// Reads every path; returns whether there may be more to read.
    fn read_paths(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
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

    /// Reads packets from the source into the session.
    fn read_packets(&mut self, cx: &mut Context<'_>, now: Instant) -> SourceState {
        if self.stopping.is_some() || self.source_retry_at.is_some_and(|retry| now < retry) {
            return SourceState::Pending;
        }
        self.source_retry_at = None;
        let mut buffer = PACKET_BUFFER.take();
        buffer.resize(MAX_PACKET, 0);
        let source = self.read_packets_into(cx, now, &mut buffer);
        PACKET_BUFFER.set(buffer);
        source
    }

    fn read_packets_into(&mut self, cx: &mut Context<'_>, now: Instant, buffer: &mut Vec<u8>) -> SourceState {
        for _ in 0..PACKETS_PER_ROUND {
            if !self.wants_packets() {
                return SourceState::NoRoom;
            }
            match self.io.poll_recv(cx, buffer) {
                Poll::Pending => return SourceState::Pending,
                Poll::Ready(Ok(headers)) => {
                    self.source_failing = false;
                    // The session counts the packets that it drops.
                    let _ = self.session.enqueue_in_place(now, buffer, headers);
                }
                Poll::Ready(Err(error)) => {
                    self.source_retry_at = Some(now + SOURCE_RETRY);
                    if !std::mem::replace(&mut self.source_failing, true) {
                        tracing::warn!(%error, "cannot read packets from the device; retrying every second");
                    }
                    return SourceState::Pending;
                }
            }
        }
        SourceState::BatchDone
    }

    /// Returns whether the session accepts packets from the source. Without an active path the
    /// session accepts every packet, and drops packets itself when its queue is full.
    fn wants_packets(&self) -> bool {
        self.session.has_room() || self.session.active_path().is_none()
    }

    /// Writes to every path; returns whether there may be more to write.
    fn transmit_paths(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
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
                    transport.update_send_limit(now);
                    session.set_growing(transport.is_growing());
                }
                let batch = transport.batch();
                session.poll_transmit(now, transport.id, transport.out(), batch);
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
        self.session.path_lost(now, transport.id);
        if !transport.is_closing() {
            self.report_path_error(now, transport.id, cause);
        }
    }

    /// Closes a path whose peer violated the protocol. The session sends a CLOSE for it, and
    /// continues on its other paths.
    fn close_for_violation(&mut self, now: Instant, path: PathId, error: &ProtocolError) {
        self.close_transport(now, path);
        self.report_path_error(now, path, HandshakeFailure::Protocol(error.to_string()));
    }

    /// Drops closing transports whose peer has not disconnected in time.
    fn drop_expired(&mut self, now: Instant) {
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

    fn report_path_error(&mut self, now: Instant, path: PathId, cause: HandshakeFailure) {
        self.collect_events(now);
        self.events.push(DriverEvent::PathError { path, cause });
    }

    /// Forwards the session's events to the owner. Returns false if events still wait for room in
    /// the owner's channel, in which case no path may be read.
    ///
    /// Events stay in the session as long as possible, where later ones may supersede them.
    fn forward_events(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        while self.events.poll_flush(cx).is_ready() {
            let Some(event) = self.session.poll_event() else { return true };
            self.forward_event(now, event);
        }
        self.reads_paused = true;
        false
    }

    /// Moves all of the session's events to the event queue, so that the event that is queued next
    /// is reported after them.
    fn collect_events(&mut self, now: Instant) {
        while let Some(event) = self.session.poll_event() {
            self.forward_event(now, event);
        }
    }

    fn forward_event(&mut self, now: Instant, event: Event) {
        if let Event::PathClosed { path, .. } = event {
            self.close_transport(now, path);
        }
        self.events.push(DriverEvent::Session(event));
    }

    /// Sets the timer to the earliest deadline; returns whether a deadline has already passed.
    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let wake = [
            self.session.poll_timeout(),
            self.source_retry_at.filter(|_| self.stopping.is_none()),
            self.stopping.as_ref().map(|stopping| stopping.deadline),
        ];
        let lingering = self.paths.iter().filter_map(Transport::deadline).min();
        let paused = self.paths.iter().filter_map(Transport::paused_until).filter(|&until| until > now).min();
        let Some(wake) = wake.into_iter().chain([lingering, paused]).flatten().min() else { return false };
        let wake = tokio::time::Instant::from_std(wake);
        // Firing early costs one idle poll, which is less than resetting the timer in every poll.
        if self.sleep.is_elapsed() || wake < self.sleep.deadline() {
            self.sleep.as_mut().reset(wake);
        }
        self.sleep.as_mut().poll(cx).is_ready()
    }
}

/// Returns the current time of tokio's clock, which tests can control.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
