//! When everybody's sockets are watched, and when only those that mobile processes made: see `selection/extent.rs`.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::Agent;

/// Held by those who make processes mobile that may have sockets already, so that nobody narrows meanwhile.
#[derive(Default)]
pub(crate) struct AttachLock(RwLock<()>);

impl Agent {
    /// Before processes become mobile that may have sockets of the cgroup they come from; held until they are.
    pub(crate) fn attach_to_root(&self) -> Result<RwLockReadGuard<'_, ()>, String> {
        let held = self.attach_lock.0.read().unwrap_or_else(PoisonError::into_inner);
        self.selector().attach_to_root().map_err(|error| {
            tracing::warn!(%error, "sockets made before `mobile attach` cannot be watched");
            error.to_string()
        })?;
        Ok(held)
    }

    /// Once nobody is mobile, ordinary processes pay for no watching.
    pub(super) fn attach_to_mobile_only(&self) {
        // Somebody is becoming mobile: the next time, then.
        let Ok(_nobody_joins) = self.attach_lock.0.try_write() else { return };
        if self.cgroup.slice().id() != 0 || !self.cgroup.pids().is_ok_and(|pids| pids.is_empty()) {
            return;
        }
        if let Err(error) = self.selector().detach_from_root() {
            tracing::warn!(%error, "the sockets of ordinary processes go on being watched");
        }
    }
}
