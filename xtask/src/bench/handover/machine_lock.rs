//! A lock for labs that wait at the same time, but must be measured one after the other.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

/// The right to use the machine: while one lab holds it, other labs only wait.
pub(crate) struct MachineLock<'a> {
    machine: &'a Mutex<()>,
    held: Option<MutexGuard<'a, ()>>,
}

impl<'a> MachineLock<'a> {
    /// Waits for the lock and takes it.
    pub(crate) fn take(machine: &'a Mutex<()>) -> Self {
        let mut lock = Self { machine, held: None };
        lock.acquire();
        lock
    }

    /// Releases the lock for `length`, and for as much longer as other labs need.
    pub(crate) fn sleep_released(&mut self, length: Duration) {
        self.release();
        sleep(length);
        self.acquire();
    }

    /// Releases the lock until it is taken again.
    pub(crate) fn release(&mut self) {
        self.held = None;
    }

    fn acquire(&mut self) {
        self.held = Some(self.machine.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
