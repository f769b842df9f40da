//! A running session: the task that drives it, and the state the relay reports about it. The
//! registry handles its events.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobile_proto::{CloseCode, Hello, PathId, PushConfig, Session, SessionId, Stats, Unacknowledged};
use mobile_transport::driver::{self, DriverEvent, Handle, SessionSnapshot, TlsStream};
use tokio::sync::{Mutex, mpsc};

use super::client_io::ClientIo;
use crate::metrics::{DropReason, Metrics};

/// A running session, with the handle of its driver, which is the task that runs it.
pub(crate) struct ActiveSession {
    id: SessionId,
    started: Instant,
    handle: Handle,
    metrics: Arc<Metrics>,
    reported: Mutex<ReportedState>,
}

/// The session state that was last reported to the metrics, and the client's address on each path.
#[derive(Default)]
struct ReportedState {
    stats: Stats,
    peers: HashMap<PathId, SocketAddr>,
    paths: usize,
    pathless_since: Option<Instant>,
    ended: bool,
}

impl ActiveSession {
    /// Starts a driver (a task that runs the session), and returns the running session and its
    /// events.
    pub(crate) fn start(
        session: Session,
        io: ClientIo,
        metrics: &Arc<Metrics>,
    ) -> (Arc<Self>, mpsc::Receiver<DriverEvent>) {
        let id = session.id();
        let (handle, events) = driver::spawn(session, io);
        metrics.sessions.inc();
        let active = Self {
            id,
            started: Instant::now(),
            handle,
            metrics: Arc::clone(metrics),
            reported: Mutex::default(),
        };
        (Arc::new(active), events)
    }

    /// Returns the session's id, which the client chose.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Returns the time since the session started.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Adds a new connection as a path to the session; `leftover` has the bytes received after
    /// HELLO.
    pub(crate) async fn accept(&self, hello: Hello, leftover: Vec<u8>, stream: TlsStream, peer: SocketAddr) {
        self.reported.lock().await.peers.insert(hello.path, peer);
        self.handle.accept_path(hello, leftover, stream);
        self.refresh().await;
    }

    /// Pushes a new configuration to the client.
    pub(crate) fn push(&self, config: PushConfig) {
        self.handle.set_config(config);
    }

    /// Takes a snapshot of the session and updates the metrics; returns `None` when the session has
    /// stopped.
    pub(crate) async fn refresh(&self) -> Option<SessionSnapshot> {
        // Hold the lock while asking the driver, so that snapshots are handled in order.
        let mut reported = self.reported.lock().await;
        let snapshot = self.handle.snapshot().await?;
        if reported.ended {
            return None;
        }
        let metrics = &self.metrics;
        let (old, new) = (&reported.stats, &snapshot.stats);
        metrics.replayed.inc_by(new.replayed_packets.saturating_sub(old.replayed_packets));
        metrics.duplicates.inc_by(new.duplicates.saturating_sub(old.duplicates));
        metrics.lost.inc_by((new.lost + new.given_up).saturating_sub(old.lost + old.given_up));
        // The first active path is not a handover.
        metrics.handovers.inc_by(new.switches.max(1).saturating_sub(old.switches.max(1)));
        metrics.dropped(DropReason::Segments, new.dropped_segments.saturating_sub(old.dropped_segments));
        metrics.session_drops.inc_by(session_drops(new).saturating_sub(session_drops(old)));
        for (counted, of) in [
            (
                &metrics.compressed_to_clients,
                (|stats| [stats.tx_compressible_bytes, stats.tx_compressed_bytes]) as Sizes,
            ),
            (&metrics.compressed_from_clients, |stats| {
                [stats.rx_compressible_bytes, stats.rx_compressed_bytes]
            }),
        ] {
            let ([before, made_before], [now, made_now]) = (of(old), of(new));
            counted.count(now.saturating_sub(before), made_now.saturating_sub(made_before));
        }
        reported.stats = snapshot.stats.clone();
        self.count_paths(&mut reported, snapshot.paths.len());
        if !snapshot.paths.is_empty() {
            reported.pathless_since = None;
        } else if reported.pathless_since.is_none() {
            reported.pathless_since = Some(Instant::now());
        }
        Some(snapshot)
    }

    /// Forgets the peer address of a path that has ended.
    pub(crate) async fn forget_path(&self, path: PathId) {
        let open =
            self.refresh().await.is_some_and(|snapshot| snapshot.paths.iter().any(|(id, _)| *id == path));
        // The client may have reopened the same path in the meantime.
        if !open {
            self.reported.lock().await.peers.remove(&path);
        }
    }

    /// Returns the client's address, as this host sees it, on each path.
    pub(crate) async fn peers(&self) -> HashMap<PathId, SocketAddr> {
        self.reported.lock().await.peers.clone()
    }

    /// Returns how long the session has had no path; zero if it had one at the last
    /// [`Self::refresh`].
    pub(crate) async fn pathless_for(&self) -> Duration {
        self.reported.lock().await.pathless_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Ends this session because another one replaces it, and returns the packets that the client
    /// has not acknowledged.
    pub(crate) async fn take_over(&self) -> Unacknowledged {
        self.refresh().await;
        let waiting = self.handle.take_over().await;
        self.mark_ended().await;
        waiting
    }

    /// Ends this session and tells the client the reason.
    pub(crate) async fn shut_down(&self, code: CloseCode) {
        self.refresh().await;
        self.handle.shutdown(code).await;
        self.mark_ended().await;
    }

    /// Removes the ended session and its paths from the gauges of the metrics; calling it again
    /// changes nothing.
    pub(crate) async fn mark_ended(&self) {
        let mut reported = self.reported.lock().await;
        if !std::mem::replace(&mut reported.ended, true) {
            self.count_paths(&mut reported, 0);
            self.metrics.sessions.dec();
        }
    }

    fn count_paths(&self, reported: &mut ReportedState, now: usize) {
        let count = |paths: usize| i64::try_from(paths).unwrap_or(i64::MAX);
        self.metrics.paths.add(count(now) - count(reported.paths));
        reported.paths = now;
    }
}

/// A function that selects the bytes before and after compression, in one direction, from a
/// session's statistics.
type Sizes = fn(&Stats) -> [u64; 2];

fn session_drops(stats: &Stats) -> u64 {
    stats.dropped_queue_full
        + stats.dropped_displaced
        + stats.dropped_delayed
        + stats.dropped_duplicate
        + stats.dropped_aged
        + stats.dropped_bad_length
}
