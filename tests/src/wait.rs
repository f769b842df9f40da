//! Waits for conditions with a timeout, which cases use instead of a sleep of fixed length.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The timeout of an ordinary wait, long because a slow machine is not a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The interval at which a condition is checked again.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds. Fails after [`PATIENCE`] with an error that names `what`.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, PATIENCE, || Ok(condition().then_some(())))
}

/// Calls `probe` until it returns a value.
///
/// An error or `None` from `probe` means "not yet". After `patience` the wait fails, with the error
/// of the last call if that returned one.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= end {
            match last {
                Some(error) => {
                    return Err(error.context(format!("timed out after {patience:?} waiting for {what}")));
                }
                None => bail!("timed out after {patience:?} waiting for {what}"),
            }
        }
        std::thread::sleep(INTERVAL);
    }
}
