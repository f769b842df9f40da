//! Limits the rate of repeated log messages and counts the suppressed ones. Pure: the time is an
//! argument.

use std::time::{Duration, Instant};

/// The period in which the number of log messages of one kind is limited.
const PERIOD: Duration = Duration::from_secs(10);

/// The log rate limit of one kind of message.
#[derive(Debug)]
pub struct LogRateLimiter {
    limit: u32,
    allowed: u32,
    period_start: Option<Instant>,
    suppressed: u64,
}

impl Default for LogRateLimiter {
    /// Creates a limiter that allows one message in each period of 10 s.
    fn default() -> Self {
        Self::new(1)
    }
}

impl LogRateLimiter {
    /// Creates a limiter that allows `limit` messages in each period of 10 s.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        Self { limit, allowed: 0, period_start: None, suppressed: 0 }
    }

    /// Returns the number of messages suppressed since the last one if a message may be logged now,
    /// or `None` if it must be suppressed.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.period_start.is_none_or(|period_start| now.saturating_duration_since(period_start) >= PERIOD)
        {
            (self.period_start, self.allowed) = (Some(now), 0);
        }
        if self.allowed >= self.limit {
            self.suppressed += 1;
            return None;
        }
        self.allowed += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_is_allowed_and_the_next_reports_the_suppressed_ones() {
        let (mut limiter, now) = (LogRateLimiter::default(), Instant::now());
        assert_eq!(limiter.allow(now), Some(0));
        assert!((0..5).all(|i| limiter.allow(now + Duration::from_secs(i)).is_none()));
        assert_eq!(limiter.allow(now + PERIOD), Some(5));
        assert_eq!(limiter.allow(now + PERIOD * 2), Some(0));
    }

    #[test]
    fn a_limiter_of_several_messages_allows_as_many_at_once() {
        let (mut limiter, now) = (LogRateLimiter::new(3), Instant::now());
        assert_eq!((0..1000).filter_map(|_| limiter.allow(now)).collect::<Vec<_>>(), [0, 0, 0]);
        let later = now + PERIOD;
        assert_eq!((0..5).filter_map(|_| limiter.allow(later)).collect::<Vec<_>>(), [997, 0, 0]);
    }
}
