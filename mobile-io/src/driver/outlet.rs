//! Events on their way from a driver to its owner: a bounded channel, and what waits for a place in
//! it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc::{OwnedPermit, Sender, error::SendError, error::TrySendError};

use super::DriverEvent;

/// Events that wait for an owner at a time. More than a round makes: an owner that keeps up never
/// stops a path.
pub(super) const CAPACITY: usize = 64;

type Place = OwnedPermit<DriverEvent>;

/// Waits for a place; fails when nobody listens any more.
type Waiting = Pin<Box<dyn Future<Output = Result<Place, SendError<()>>> + Send>>;

/// The sending half of the channel, for a poll function.
pub(super) struct Outlet {
    sender: Sender<DriverEvent>,
    /// The next place in a channel that is full.
    place: Option<Waiting>,
    /// Events that found no place yet, in order.
    waiting: VecDeque<DriverEvent>,
}

impl Outlet {
    /// Sends into this channel.
    pub(super) fn new(sender: Sender<DriverEvent>) -> Self {
        Self { sender, place: None, waiting: VecDeque::new() }
    }

    /// Adds an event behind those that wait, whether or not there is a place.
    pub(super) fn push(&mut self, event: DriverEvent) {
        self.waiting.push_back(event);
    }

    /// Sends what waits; pending while the channel is full, and then it wakes the task.
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

    /// Sends what waits and then `last`, however long the owner takes.
    pub(super) async fn finish(self, last: DriverEvent) {
        for event in self.waiting.into_iter().chain([last]) {
            let _ = self.sender.send(event).await;
        }
    }

    /// A place in the channel; `None` if nobody listens.
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
