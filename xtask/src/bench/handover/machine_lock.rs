//! A lock for the handover benchmark's labs, which may wait at the same time but must be measured
//! one after the other.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

/// The right of one lab to use the machine. While a lab holds the lock, other labs only wait.
pub(crate) struct MachineLock<'a> {
    machine: &'a Mutex<()>,
    held: Option<MutexGuard<'a, ()>>,
}

impl<'a> MachineLock<'a> {
    /// Waits until no other lab holds the lock and acquires it.
    pub(crate) fn take(machine: &'a Mutex<()>) -> Self {
        let mut lock = Self { machine, held: None };
        lock.acquire();
        lock
    }

    /// Releases the lock and sleeps for `length`, then waits until other labs release the lock and
    /// acquires it again.
    pub(crate) fn sleep_released(&mut self, length: Duration) {
        self.release();
        sleep(length);
        self.acquire();
    }

    /// Releases the lock, so that other labs may be measured.
    pub(crate) fn release(&mut self) {
        self.held = None;
    }

    fn acquire(&mut self) {
        self.held = Some(self.machine.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
