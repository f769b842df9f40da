//! A session: both sides of the protocol in one type.
//!
//! This module composes a session of its parts and has the methods that both roles share. Its
//! submodules are the parts:
//!
//! - `paths` holds the open paths, and which of them is active,
//! - `sender` queues, numbers and keeps the packets to send,
//! - `receiver` delivers received records in order, and acknowledges them,
//! - `side`, `client` and `relay` hold and do what only one of the two roles does,
//! - `events` queues the events for the caller;
//!
//! and what the parts do together:
//!
//! - `admission` decides whether a packet is queued,
//! - `input` parses received bytes,
//! - `transmit` writes the bytes to send,
//! - `timers` handles timeouts,
//! - `liveness` acts on the health of the paths,
//! - `freeze` keeps inner TCP alive during an outage,
//! - `takeover` passes the remaining state to the next session.

mod admission;
mod client;
mod events;
mod freeze;
mod input;
mod liveness;
mod paths;
mod receiver;
mod relay;
mod sender;
mod side;
mod takeover;
mod timers;
mod transmit;

use std::sync::Arc;
use std::time::Instant;

pub use events::Event;
use events::Events;
use paths::Paths;
use receiver::Receiver;
use sender::{Admission, Admitted, Sender};
pub use sender::{DropReason, Enqueue};
use side::{Client, Relay, Side};
pub use takeover::Unacknowledged;
pub use transmit::Budget;

use crate::packet::{InnerPacket, PacketHeaders};
use crate::path::{Path, PathState};
use crate::queue::Record;
use crate::{CloseCode, Limits, MAX_PACKET, PathId, PushConfig, SessionId, Stats};

/// One session of a client or of a relay.
///
/// The caller passes in the time and received bytes. After any call it may have to [poll
/// events](Self::poll_event), [transmit](Self::poll_transmit) on each path, and set its timer
/// [again](Self::poll_timeout).
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    limits: Arc<Limits>,
    side: Side,
    /// The epoch, a random number of the session object at the relay; 0 in a client until the first
    /// WELCOME.
    epoch: u64,
    /// The number of the client's latest activation of a path; at the relay, the highest number
    /// received.
    switch: u64,
    paths: Paths,
    sender: Sender,
    receiver: Receiver,
    events: Events,
    stats: Stats,
}

impl Session {
    /// Creates a client's session. `id` has to be random and new for each start of the agent.
    #[must_use]
    pub fn client(id: SessionId, limits: impl Into<Arc<Limits>>) -> Self {
        Self::new(Side::Client(Client::default()), id, 0, limits.into())
    }

    /// Creates a relay's session. `epoch` has to be random, not zero, and new for each session
    /// object. Sessions may share their limits.
    #[must_use]
    pub fn server(id: SessionId, epoch: u64, limits: impl Into<Arc<Limits>>, config: PushConfig) -> Self {
        Self::new(Side::Relay(Relay::new(config)), id, epoch, limits.into())
    }

    fn new(side: Side, id: SessionId, epoch: u64, limits: Arc<Limits>) -> Self {
        Self {
            id,
            side,
            epoch,
            switch: 0,
            paths: Paths::default(),
            sender: Sender::new(id, &limits),
            receiver: Receiver::default(),
            events: Events::default(),
            stats: Stats::default(),
            limits,
        }
    }

    /// Queues CLOSE on a path, which is removed once [`Self::poll_transmit`] has written the frame.
    /// Until then its input is still processed. If the path takes no more bytes, it is removed
    /// after 5 seconds.
    pub fn close_path(&mut self, now: Instant, path: PathId, code: CloseCode) {
        if let Some(index) = self.paths.find(path) {
            self.paths[index].close(now, code, PathState::Closing);
            self.paths.deactivate(path);
        }
    }

    /// Removes a path whose transport has failed. The session keeps its unacknowledged records.
    pub fn path_lost(&mut self, path: PathId) {
        self.paths.remove(path);
    }

    /// Queues a packet from the TUN for transmission. Without an active path the packet waits for
    /// one.
    pub fn enqueue<'a>(&mut self, now: Instant, packet: impl Into<InnerPacket<'a>>) -> Enqueue {
        let packet = packet.into();
        match self.admit(now, &packet) {
            Ok(Admitted { range, class }) => {
                let bytes = self.sender.buffers.copy(packet.bytes);
                self.sender.push(Record::new(bytes, packet.offload, now, range, class), &mut self.stats)
            }
            Err(reason) => Enqueue::Dropped(reason),
        }
    }

    /// Queues the packet at the start of `buffer`, whose headers were located there, like
    /// [`enqueue`](Self::enqueue).
    ///
    /// A long packet is not copied: `buffer` is replaced with another buffer, at least as long as
    /// it was, with unspecified content.
    pub fn enqueue_in_place(
        &mut self,
        now: Instant,
        buffer: &mut Vec<u8>,
        headers: PacketHeaders,
    ) -> Enqueue {
        match self.admit(now, &InnerPacket::in_buffer(buffer, headers)) {
            Ok(Admitted { range, class }) => {
                let adopted = self.sender.buffers.adopt(buffer, headers.len());
                self.sender.push(Record::new(adopted, headers.offload(), now, range, class), &mut self.stats)
            }
            Err(reason) => Enqueue::Dropped(reason),
        }
    }

    fn admit(&mut self, now: Instant, packet: &InnerPacket<'_>) -> Admission {
        if packet.bytes.is_empty() || packet.len() > MAX_PACKET {
            self.stats.dropped_bad_length += 1;
            return Err(DropReason::BadLength);
        }
        self.update_outage(now);
        self.sender.admit(now, packet, &self.limits, &mut self.stats)
    }

    /// Returns whether the caller should continue to read packets from the TUN.
    ///
    /// While the active path sends packets almost without delay, the session asks for few in
    /// advance. On a slower path, packets should wait in the session's queue as long as they fit,
    /// because a keystroke overtakes a bulk transfer there. Without an active path, or with an
    /// unresponsive one, packets are accepted and the session drops those beyond its limits,
    /// because the TUN must never block an application for a whole outage.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.paths.is_cut_off() || self.sender.has_room(&self.limits)
    }

    /// Returns whether flows take turns, so that little should be queued in the transports below
    /// the session ([`Limits::fair`]).
    #[must_use]
    pub fn is_fair(&self) -> bool {
        self.limits.fair
    }

    /// Returns the next event. Only the latest event is queued of those that report a state (the
    /// configuration, the active path, the health of a path): it replaces an earlier one that the
    /// caller has not polled.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Returns the number of queued events. A caller that cannot poll them now must stop reading
    /// from the paths.
    #[must_use]
    pub fn pending_events(&self) -> usize {
        self.events.len()
    }

    /// Returns the session's counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Returns the open paths, in no order.
    pub fn paths(&self) -> impl Iterator<Item = PathId> + '_ {
        self.paths.iter().map(|path| path.id)
    }

    /// Returns the session's id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Returns the path on which packets are sent, if any.
    #[must_use]
    pub fn active_path(&self) -> Option<PathId> {
        self.paths.active_id()
    }

    /// Returns the relay's configuration, once it is known.
    #[must_use]
    pub fn config(&self) -> Option<&PushConfig> {
        self.side.config()
    }

    /// Returns the relay's epoch; 0 while it is unknown.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the bytes of packets sent and not acknowledged.
    #[must_use]
    pub fn unacked_bytes(&self) -> usize {
        self.sender.replay.bytes()
    }

    /// Returns the bytes of packets not sent yet.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.sender.queue.bytes()
    }

    /// Removes a path and reports it to the caller.
    fn close_and_report(&mut self, path: PathId, code: CloseCode) {
        self.paths.remove(path);
        self.events.push(Event::PathClosed { path, code });
    }

    /// Closes the other paths for which `doomed` returns true, and reports them to the caller.
    /// Returns the new index of the path at `index`.
    fn close_others(&mut self, index: usize, code: CloseCode, doomed: impl Fn(&Path) -> bool) -> usize {
        let (index, closed) = self.paths.remove_others(index, doomed);
        closed.into_iter().for_each(|path| self.events.push(Event::PathClosed { path, code }));
        index
    }

    /// Moves transmission to `path`. If it is already active, its stream continues unchanged.
    fn switch_to(&mut self, path: PathId) {
        if !self.paths.is_active(path) {
            let previous = self.paths.activate(path);
            let (replayed, dropped) = self.sender.rewind(&self.stats);
            self.stats.switches += 1;
            self.events.push(Event::PathActivated { path, previous, replayed, dropped });
        }
    }
}

#[cfg(test)]
mod tests;
