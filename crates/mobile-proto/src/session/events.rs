//! The queue of events for the caller of a session.
//!
//! A peer decides how often most events occur. Therefore an event that reports a *state* replaces
//! the earlier report of that state, while *news* is queued each time and bounded by the number of
//! paths. However much a peer sends at once, the length of the queue is proportional to the number
//! of paths.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::{Announcement, CloseCode, PathId, PushConfig};

/// A change in a session of which the caller has to know, or on which it has to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Client: WELCOME arrived, and the path can be activated.
    PathReady {
        /// The path that is ready.
        path: PathId,
        /// Whether the relay knew the session. If false (a new session, or a restarted relay), the
        /// unacknowledged records were renumbered and are sent again.
        resumed: bool,
    },
    /// Client: the relay's configuration is new or has changed.
    Config(PushConfig),
    /// Relay: the client has stored this announcement of the relay.
    Confirmed(Arc<Announcement>),
    /// Both sides: transmission moved to this path.
    PathActivated {
        /// The path that is active.
        path: PathId,
        /// The path that was active before, if any.
        previous: Option<PathId>,
        /// Number of records that are sent again.
        replayed: u64,
        /// Number of packets dropped on this side since the previous switch.
        dropped: u64,
    },
    /// Client: the relay has answered the activation of the path that was activated last.
    PathConfirmed {
        /// The path that was confirmed.
        path: PathId,
    },
    /// The path is closed, by the peer or by this side. The caller drops the transport.
    PathClosed {
        /// The path that was closed.
        path: PathId,
        /// The reason for closing it.
        code: CloseCode,
    },
    /// An answer is overdue on the path, which may still be alive: the session sends small segments
    /// to find out. Reported once each time that this happens.
    PathProbing {
        /// The path that is probed.
        path: PathId,
    },
    /// The path is dead by all evidence: several segments went unanswered, or nothing was received
    /// for too long. Reported once, until [`Event::PathRecovered`].
    PathUnresponsive {
        /// The path that is unresponsive.
        path: PathId,
        /// The time for which nothing sent on the path was answered.
        silent_for: Duration,
    },
    /// A path that was unresponsive delivers again.
    PathRecovered {
        /// The path that recovered.
        path: PathId,
    },
}

/// The events that the caller has not polled yet.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<Event>);

impl Events {
    /// Adds an event. An event that reports a state replaces the earlier report of that state.
    pub(super) fn push(&mut self, mut event: Event) {
        match &mut event {
            Event::Config(_) => self.forget(|waiting| matches!(waiting, Event::Config(_))),
            Event::Confirmed(_) => self.forget(|waiting| matches!(waiting, Event::Confirmed(_))),
            Event::PathActivated { previous, dropped, .. } => {
                // Merge two switches into one, from the path that the caller knows as active.
                if let Some(Event::PathActivated { previous: first, dropped: before, .. }) =
                    self.take(|waiting| matches!(waiting, Event::PathActivated { .. }))
                {
                    *previous = first;
                    *dropped += before;
                }
            }
            Event::PathConfirmed { .. } | Event::PathProbing { .. } => {
                self.forget(|waiting| *waiting == event);
            }
            Event::PathUnresponsive { path, .. } => {
                // Unresponsiveness and recovery cancel each other if neither was taken yet.
                if self.take(|waiting| *waiting == Event::PathRecovered { path: *path }).is_some() {
                    return;
                }
            }
            Event::PathRecovered { path: by } => {
                let same =
                    |waiting: &Event| matches!(waiting, Event::PathUnresponsive { path, .. } if path == by);
                if self.take(same).is_some() {
                    return;
                }
            }
            Event::PathReady { .. } | Event::PathClosed { .. } => {}
        }
        self.0.push_back(event);
    }

    /// Removes and returns the oldest event.
    pub(super) fn pop(&mut self) -> Option<Event> {
        let event = self.0.pop_front();
        if self.0.is_empty() {
            // Events are rare, and a relay has many sessions without any.
            self.0 = VecDeque::new();
        }
        event
    }

    /// Returns the number of queued events.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn forget(&mut self, same: impl Fn(&Event) -> bool) {
        self.take(same);
    }

    fn take(&mut self, same: impl Fn(&Event) -> bool) -> Option<Event> {
        let at = self.0.iter().position(same)?;
        self.0.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: PathId = PathId(1);
    const TWO: PathId = PathId(2);

    fn config(mtu: u16) -> Event {
        Event::Config(PushConfig { mtu, ..PushConfig::default() })
    }

    fn queued(pushed: impl IntoIterator<Item = Event>) -> Vec<Event> {
        let mut events = Events::default();
        pushed.into_iter().for_each(|event| events.push(event));
        std::iter::from_fn(|| events.pop()).collect()
    }

    #[test]
    fn only_the_latest_report_of_a_state_is_queued() {
        assert_eq!(queued((0..1000).map(|number| config(1300 + number % 2))), [config(1301)]);
        let confirmed =
            |key| Event::Confirmed(Arc::new(Announcement { key: Some([key; 32]), endpoint: None }));
        assert_eq!(queued((0..100).map(confirmed)), [confirmed(99)]);
        let probing = || Event::PathProbing { path: ONE };
        assert_eq!(
            queued([
                probing(),
                Event::PathConfirmed { path: ONE },
                probing(),
                Event::PathConfirmed { path: TWO }
            ])
            .len(),
            3
        );
        let moved = |path, previous, dropped| Event::PathActivated { path, previous, replayed: 3, dropped };
        assert_eq!(
            queued([moved(ONE, None, 1), moved(TWO, Some(ONE), 2), moved(ONE, Some(TWO), 4)]),
            [moved(ONE, None, 7)],
            "all drops are reported, once"
        );
    }

    #[test]
    fn unresponsiveness_and_recovery_cancel_each_other() {
        let unresponsive = |path| Event::PathUnresponsive { path, silent_for: Duration::from_secs(1) };
        let recovered = |path| Event::PathRecovered { path };
        assert_eq!(queued([unresponsive(ONE), unresponsive(TWO), recovered(ONE)]), [unresponsive(TWO)]);
        assert_eq!(queued([recovered(ONE), unresponsive(ONE), recovered(ONE)]), [recovered(ONE)]);
    }

    #[test]
    fn news_is_queued_each_time() {
        let closed = |path| Event::PathClosed { path, code: CloseCode::Normal };
        let ready = |path| Event::PathReady { path, resumed: true };
        let news = [ready(ONE), closed(ONE), ready(ONE), closed(ONE)];
        assert_eq!(queued(news.clone()), news);
    }
}
