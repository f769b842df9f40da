//! Labs that wait at the same time, and work one after the other.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

/// The right to use the machine: while one lab is set up or measured, the others only wait.
pub(crate) struct MachineLock<'a> {
    machine: &'a Mutex<()>,
    held: Option<MutexGuard<'a, ()>>,
}

impl<'a> MachineLock<'a> {
    /// Waits for it.
    pub(crate) fn take(machine: &'a Mutex<()>) -> Self {
        let mut lock = Self { machine, held: None };
        lock.again();
        lock
    }

    /// Lets others work for `length`, and as much longer as they need.
    pub(crate) fn rest(&mut self, length: Duration) {
        self.release();
        sleep(length);
        self.again();
    }

    /// Lets others work from now on.
    pub(crate) fn release(&mut self) {
        self.held = None;
    }

    fn again(&mut self) {
        self.held = Some(self.machine.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
