//! The driver's task: the work of one poll, and the events after which the task is polled again.
//!
//! No wake-up is lost. A poll ends only when every source has returned `Pending`, and so will wake
//! the task, or when there may be more work, in which case the task wakes itself.
//!
//! There are two exceptions. The packet source is not polled while the session has no room for
//! packets. Room arises only within a poll, by a transmission or an acknowledgement, and is checked
//! again after each transmission. Paths are not polled while events wait for the owner; room in the
//! owner's channel wakes the task.

mod commands;
mod paths;
mod source;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mobile_proto::{Event, PathId, Session, Unacknowledged};
use paths::SampleScope;
use source::SourceState;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use super::event_queue::EventQueue;
use super::path::Transport;
use super::{Command, DriverEvent, PacketIo};
use crate::tls::HandshakeFailure;

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

/// The time within which a driver stops, whether or not its peer has received the CLOSE.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

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
            self.sample_transports(now, SampleScope::Wanted);
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

    /// Returns the outcome for the owner if the driver has finished shutting down.
    fn take_end(&mut self, now: Instant) -> Option<Outcome> {
        let stopping = self.stopping.take_if(|it| self.paths.is_empty() || it.deadline <= now)?;
        Some(Outcome::Stopped(stopping.replies))
    }

    fn report_path_error(&mut self, now: Instant, path: PathId, cause: HandshakeFailure) {
        self.collect_events(now);
        self.events.push(DriverEvent::PathError { path, cause: Box::new(cause) });
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
