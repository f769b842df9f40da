//! Waits for an object that a program leaves in use for a moment after it was killed: a child of
//! the program, between `fork` and `exec`, still holds every descriptor of its parent.

use std::thread;
use std::time::{Duration, Instant};

/// How long an object may be in use before that is an error.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The pause between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Repeats `attempt` for up to 1 s while its error says that the object is in use. Blocks the
/// thread.
///
/// # Errors
/// The error of the last attempt.
pub fn retry_while_in_use<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_in_use: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match attempt() {
            Err(error) if is_in_use(&error) && Instant::now() < deadline => thread::sleep(RETRY_INTERVAL),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_in_use_is_waited_for_and_another_error_is_not() {
        let mut attempts = 0;
        let mut fails_twice = || {
            attempts += 1;
            if attempts < 3 { Err("in use") } else { Ok(attempts) }
        };
        assert_eq!(retry_while_in_use(&mut fails_twice, |error| *error == "in use"), Ok(3));
        let mut attempts = 0;
        let mut other = || {
            attempts += 1;
            Err::<(), _>("missing")
        };
        assert_eq!(retry_while_in_use(&mut other, |error| *error == "in use"), Err("missing"));
        assert_eq!(attempts, 1);
    }
}
