//! The lifecycle of a client's session: its beginning, and its events until it ends.

use std::sync::Arc;

use mobile_proto::{Event, Hello, Session, Unacknowledged};
use mobile_transport::coalescing::CoalescingWriter;
use mobile_transport::driver::DriverEvent;
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::Registry;
use super::client_entry::ClientEntry;
use crate::server::client_io::ClientIo;
use crate::server::session::ActiveSession;
use crate::server::source_filter::SourceFilter;

/// The largest number of events of a session that are handled in one batch; while more wait, the
/// session's driver (its task) reads from no path.
const MAX_EVENTS_PER_BATCH: usize = 64;

impl Registry {
    /// Begins a session of a client, which takes over the packets `waiting`.
    pub(super) fn begin_session(
        self: &Arc<Self>,
        entry: &Arc<ClientEntry>,
        hello: &Hello,
        waiting: Unacknowledged,
    ) -> Arc<ActiveSession> {
        // 0 means "no known epoch" in a HELLO.
        let epoch = rand::random_range(1..=u64::MAX);
        let push = self.settings().push_to(&entry.lease);
        let limits = Arc::clone(&self.limits);
        let mut session = Session::server(hello.session, epoch, limits, push);
        session.requeue(waiting);
        let io = ClientIo {
            queue: Arc::clone(&entry.queue),
            demux: Arc::clone(&self.demux),
            filter: SourceFilter::new(
                entry.lease,
                self.pools,
                Arc::clone(&self.shared_policy),
                Arc::clone(&entry.reach),
            ),
            coalescing: CoalescingWriter::new(self.device.coalesces_datagrams()),
            device: Arc::clone(&self.device),
            metrics: Arc::clone(&self.metrics),
        };
        let (active, events) = ActiveSession::start(session, io, &self.metrics);
        self.demux.add(&entry.lease, &entry.queue);
        tokio::spawn(Arc::clone(self).handle_events(Arc::clone(entry), Arc::clone(&active), events));
        active
    }

    /// Delivers no more packets to a client, and discards those that wait.
    pub(super) fn unroute(&self, entry: &ClientEntry) {
        self.demux.remove(&entry.lease, &entry.queue);
        entry.queue.clear();
    }

    /// Handles the events of a session until its driver, the task that runs the session, stops.
    async fn handle_events(
        self: Arc<Self>,
        entry: Arc<ClientEntry>,
        active: Arc<ActiveSession>,
        mut events: mpsc::Receiver<DriverEvent>,
    ) {
        let (client, session) = (entry.name.as_str(), active.id());
        let mut batch = Vec::new();
        // Take all waiting events, and refresh the session once for all of them. A client that
        // switches paths continuously cannot pile up work: its paths are read no faster than this
        // loop runs.
        while events.recv_many(&mut batch, MAX_EVENTS_PER_BATCH).await > 0 {
            for event in batch.drain(..) {
                match event {
                    DriverEvent::Session(Event::PathActivated { path, previous, replayed, dropped }) => {
                        if entry.may_log() {
                            let previous = previous.map(|path| path.0);
                            info!(client, %session, %path, previous, replayed, dropped, "path active");
                        }
                    }
                    DriverEvent::Session(Event::PathClosed { path, code }) => {
                        if entry.may_log() {
                            info!(client, %session, %path, "path closed: {code}");
                        }
                        active.forget_path(path).await;
                    }
                    DriverEvent::PathError { path, cause } => {
                        if entry.may_log() {
                            info!(client, %session, %path, "path lost: {cause}");
                        }
                        active.forget_path(path).await;
                    }
                    DriverEvent::Session(Event::Confirmed(announced)) => self.confirmed(&entry, &announced),
                    DriverEvent::Session(event) => debug!(client, %session, ?event, "session event"),
                    // The driver sends nothing more, so the channel ends too.
                    DriverEvent::Stopped => {}
                }
            }
            active.refresh().await;
        }
        let mut slot = entry.slot.lock().await;
        if slot.active.as_ref().is_some_and(|current| Arc::ptr_eq(current, &active)) {
            slot.active = None;
            self.unroute(&entry);
        }
        active.mark_ended().await;
    }
}
