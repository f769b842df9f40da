//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The bound of an ordinary wait: generous, because a loaded machine is not a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; after [`PATIENCE`] it is an error that names `what`.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, PATIENCE, || Ok(condition().then_some(())))
}

/// Waits until `probe` yields a value. An error of the probe counts as "not yet"; the last one is told
/// when patience ends.
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
                Some(error) => return Err(error.context(format!("waited {patience:?} in vain for {what}"))),
                None => bail!("waited {patience:?} in vain for {what}"),
            }
        }
        std::thread::sleep(INTERVAL);
    }
}
