//! What a flood would repeat is said once in a while, with how often it happened. Pure; time is an argument.

use std::time::{Duration, Instant};

/// Between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of line.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    said: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// Whether to say it now: then, how many times it was not said since the last.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < PAUSE) {
            self.held_back += 1;
            return None;
        }
        self.said = Some(now);
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
}
