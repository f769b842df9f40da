//! Sends events from a driver to its owner, through a bounded channel and a queue in front of it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc::{OwnedPermit, Sender, error::SendError, error::TrySendError};

use super::DriverEvent;

/// The number of events that wait for an owner at a time: more than one round causes, so an owner
/// that keeps up never stops a path.
pub(super) const CAPACITY: usize = 64;

type Place = OwnedPermit<DriverEvent>;

/// The wait for a place, which fails when the owner no longer listens.
type Waiting = Pin<Box<dyn Future<Output = Result<Place, SendError<()>>> + Send>>;

/// The sending half of the channel, for a poll function.
pub(super) struct Outlet {
    sender: Sender<DriverEvent>,
    /// The reservation of a place while the channel is full.
    place: Option<Waiting>,
    /// The events that have no place yet, in order.
    waiting: VecDeque<DriverEvent>,
}

impl Outlet {
    /// Creates an outlet to this channel.
    pub(super) fn new(sender: Sender<DriverEvent>) -> Self {
        Self { sender, place: None, waiting: VecDeque::new() }
    }

    /// Queues an event, whether or not there is a place.
    pub(super) fn push(&mut self, event: DriverEvent) {
        self.waiting.push_back(event);
    }

    /// Sends the queued events; pending while the channel is full, in which case a free place wakes
    /// the task.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.waiting.is_empty() {
            let place = ready!(self.poll_place(cx));
            // An owner that no longer listens will drop its handles next.
            if let (Some(event), Some(place)) = (self.waiting.pop_front(), place) {
                place.send(event);
            }
        }
        Poll::Ready(())
    }

    /// Sends the queued events and then `last`, however long the owner takes.
    pub(super) async fn finish(self, last: DriverEvent) {
        for event in self.waiting.into_iter().chain([last]) {
            let _ = self.sender.send(event).await;
        }
    }

    /// Returns a place in the channel; `None` if the owner no longer listens.
    fn poll_place(&mut self, cx: &mut Context<'_>) -> Poll<Option<Place>> {
        let place = match &mut self.place {
            Some(place) => place,
            None => match self.sender.clone().try_reserve_owned() {
                Ok(place) => return Poll::Ready(Some(place)),
                Err(TrySendError::Closed(_)) => return Poll::Ready(None),
                Err(TrySendError::Full(sender)) => self.place.insert(Box::pin(sender.reserve_owned())),
            },
        };
        let place = ready!(place.as_mut().poll(cx));
        self.place = None;
        Poll::Ready(place.ok())
    }
}
