//! Sends events from a driver to its owner through a bounded channel, with an unbounded queue in
//! front of it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc::{OwnedPermit, Sender, error::SendError, error::TrySendError};

use super::DriverEvent;

/// The capacity of the channel: more events than one round of a driver's poll causes, so that the
/// driver of an owner that keeps up never has to pause reading its paths.
pub(super) const CAPACITY: usize = 64;

type Permit = OwnedPermit<DriverEvent>;

/// A pending reservation of room in the channel, which fails when the owner has dropped the
/// receiver.
type Reservation = Pin<Box<dyn Future<Output = Result<Permit, SendError<()>>> + Send>>;

/// The sending half of the channel of events and the unbounded queue in front of it, for use in a
/// poll function.
pub(super) struct EventQueue {
    sender: Sender<DriverEvent>,
    /// The reservation of room in the channel, which waits while the channel is full; `None` if no
    /// event waits.
    reservation: Option<Reservation>,
    /// The events that are not yet in the channel, in order.
    queued: VecDeque<DriverEvent>,
}

impl EventQueue {
    /// Creates an empty queue in front of `sender`.
    pub(super) fn new(sender: Sender<DriverEvent>) -> Self {
        Self { sender, reservation: None, queued: VecDeque::new() }
    }

    /// Appends an event, whether or not the channel is full.
    pub(super) fn push(&mut self, event: DriverEvent) {
        self.queued.push_back(event);
    }

    /// Moves the queued events to the channel. Returns `Pending` while the channel is full; the
    /// task is woken when there is room.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.queued.is_empty() {
            let permit = ready!(self.poll_permit(cx));
            // Without a receiver the event is discarded; the owner will drop its handles next.
            if let (Some(event), Some(permit)) = (self.queued.pop_front(), permit) {
                permit.send(event);
            }
        }
        Poll::Ready(())
    }

    /// Sends the queued events and then `last`, however long the owner takes to receive them.
    pub(super) async fn finish(self, last: DriverEvent) {
        for event in self.queued.into_iter().chain([last]) {
            let _ = self.sender.send(event).await;
        }
    }

    /// Reserves room for one event; returns `None` if the owner has dropped the receiver.
    fn poll_permit(&mut self, cx: &mut Context<'_>) -> Poll<Option<Permit>> {
        let reservation = match &mut self.reservation {
            Some(reservation) => reservation,
            None => match self.sender.clone().try_reserve_owned() {
                Ok(permit) => return Poll::Ready(Some(permit)),
                Err(TrySendError::Closed(_)) => return Poll::Ready(None),
                Err(TrySendError::Full(sender)) => self.reservation.insert(Box::pin(sender.reserve_owned())),
            },
        };
        let permit = ready!(reservation.as_mut().poll(cx));
        self.reservation = None;
        Poll::Ready(permit.ok())
    }
}
