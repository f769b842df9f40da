//! Limits the rate of repeated log messages and counts the suppressed ones. Pure: the time is an
//! argument.

use std::time::{Duration, Instant};

/// The length of one period.
const PAUSE: Duration = Duration::from_secs(10);

/// The log rate limit of one kind of message.
#[derive(Debug)]
pub(crate) struct Throttle {
    most: u32,
    said: u32,
    since: Option<Instant>,
    held_back: u64,
}

impl Default for Throttle {
    /// Allows one message per period.
    fn default() -> Self {
        Self::of(1)
    }
}

impl Throttle {
    /// Allows `most` messages per period.
    pub(crate) fn of(most: u32) -> Self {
        Self { most, said: 0, since: None, held_back: 0 }
    }

    /// Returns `Some` if a message may be logged now, with the number of messages suppressed since
    /// the last one.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PAUSE) {
            (self.since, self.said) = (Some(now), 0);
        }
        if self.said >= self.most {
            self.held_back += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_next_with_what_was_held_back() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.pass(now), Some(0));
        assert!((0..5).all(|i| throttle.pass(now + Duration::from_secs(i)).is_none()));
        assert_eq!(throttle.pass(now + PAUSE), Some(5));
        assert_eq!(throttle.pass(now + PAUSE * 2), Some(0));
    }

    #[test]
    fn of_many_lines_as_many_are_said_at_once() {
        let (mut throttle, now) = (Throttle::of(3), Instant::now());
        assert_eq!((0..1000).filter_map(|_| throttle.pass(now)).collect::<Vec<_>>(), [0, 0, 0]);
        let later = now + PAUSE;
        assert_eq!((0..5).filter_map(|_| throttle.pass(later)).collect::<Vec<_>>(), [997, 0, 0]);
    }
}
