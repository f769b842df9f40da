//! Sends events from a driver to its owner, through a bounded channel and a queue in front of it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc::{OwnedPermit, Sender, error::SendError, error::TrySendError};

use super::DriverEvent;

/// The number of events that wait for an owner at a time: more than one round causes, so an owner
/// that keeps up never stops a path.
pub(super) const CAPACITY: usize = 64;

type Permit = OwnedPermit<DriverEvent>;

/// The wait for a place, which fails when the owner no longer listens.
type Reservation = Pin<Box<dyn Future<Output = Result<Permit, SendError<()>>> + Send>>;

/// The sending half of the channel, for a poll function.
pub(super) struct EventQueue {
    sender: Sender<DriverEvent>,
    /// The reservation of a place while the channel is full.
    reservation: Option<Reservation>,
    /// The events that have no place yet, in order.
    queued: VecDeque<DriverEvent>,
}

impl EventQueue {
    /// Creates an outlet to this channel.
    pub(super) fn new(sender: Sender<DriverEvent>) -> Self {
        Self { sender, reservation: None, queued: VecDeque::new() }
    }

    /// Queues an event, whether or not there is a place.
    pub(super) fn push(&mut self, event: DriverEvent) {
        self.queued.push_back(event);
    }

    /// Sends the queued events; pending while the channel is full, in which case a free place wakes
    /// the task.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.queued.is_empty() {
            let permit = ready!(self.poll_permit(cx));
            // An owner that no longer listens will drop its handles next.
            if let (Some(event), Some(permit)) = (self.queued.pop_front(), permit) {
                permit.send(event);
            }
        }
        Poll::Ready(())
    }

    /// Sends the queued events and then `last`, however long the owner takes.
    pub(super) async fn finish(self, last: DriverEvent) {
        for event in self.queued.into_iter().chain([last]) {
            let _ = self.sender.send(event).await;
        }
    }

    /// Returns a place in the channel; `None` if the owner no longer listens.
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
