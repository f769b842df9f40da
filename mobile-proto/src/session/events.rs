//! The queue of events that the shell has not taken yet.
//!
//! A peer decides how often most events occur. So of a *state* only the latest value waits; *news*
//! is kept each time, and is bounded by the paths. However much a peer sends at once, the queue's
//! length is in proportion to the number of paths.

use std::collections::VecDeque;

use super::Event;

/// The events that the shell has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<Event>);

impl Events {
    /// Adds an event. An event that tells a state replaces the one that told it before.
    pub(super) fn push(&mut self, mut event: Event) {
        match &mut event {
            Event::Config(_) => self.forget(|waiting| matches!(waiting, Event::Config(_))),
            Event::PathActivated { previous, dropped, .. } => {
                // Merge two switches into one, from the path that the shell knows as active.
                if let Some(Event::PathActivated { previous: first, dropped: before, .. }) =
                    self.take(|waiting| matches!(waiting, Event::PathActivated { .. }))
                {
                    *previous = first;
                    *dropped += before;
                }
            }
            Event::PathConfirmed { .. } | Event::PathProbing { .. } => {
                self.forget(|waiting| *waiting == event)
            }
            Event::PathUnresponsive { path, .. } => {
                // A suspicion and its end cancel each other if neither was told yet.
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
        self.0.pop_front()
    }

    /// Returns the number of waiting events.
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
    use std::time::Duration;

    use super::*;
    use crate::{CloseCode, PathId, PushConfig};

    const ONE: PathId = PathId(1);
    const TWO: PathId = PathId(2);

    fn config(mtu: u16) -> Event {
        Event::Config(PushConfig { ipv4: None, ipv6: None, mtu, dns: Vec::new() })
    }

    fn told(pushed: impl IntoIterator<Item = Event>) -> Vec<Event> {
        let mut events = Events::default();
        pushed.into_iter().for_each(|event| events.push(event));
        std::iter::from_fn(|| events.pop()).collect()
    }

    #[test]
    fn of_a_state_only_the_last_is_told() {
        assert_eq!(told((0..1000).map(|number| config(1300 + number % 2))), [config(1301)]);
        let doubt = || Event::PathProbing { path: ONE };
        assert_eq!(
            told([doubt(), Event::PathConfirmed { path: ONE }, doubt(), Event::PathConfirmed { path: TWO }])
                .len(),
            3
        );
        let moved = |path, previous, dropped| Event::PathActivated { path, previous, replayed: 3, dropped };
        assert_eq!(
            told([moved(ONE, None, 1), moved(TWO, Some(ONE), 2), moved(ONE, Some(TWO), 4)]),
            [moved(ONE, None, 7)],
            "what was dropped is told once, and all of it"
        );
    }

    #[test]
    fn a_suspicion_and_its_end_are_nothing() {
        let silent = |path| Event::PathUnresponsive { path, silent_for: Duration::from_secs(1) };
        let again = |path| Event::PathRecovered { path };
        assert_eq!(told([silent(ONE), silent(TWO), again(ONE)]), [silent(TWO)]);
        assert_eq!(told([again(ONE), silent(ONE), again(ONE)]), [again(ONE)]);
    }

    #[test]
    fn news_is_told_each_time() {
        let closed = |path| Event::PathClosed { path, code: CloseCode::Normal };
        let ready = |path| Event::PathReady { path, resumed: true };
        let news = [ready(ONE), closed(ONE), ready(ONE), closed(ONE)];
        assert_eq!(told(news.clone()), news);
    }
}
