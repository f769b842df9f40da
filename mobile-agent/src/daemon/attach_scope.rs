//! Chooses the cgroup that the per-socket eBPF programs are attached to: the root cgroup while
//! mobile processes may have sockets from before they became mobile, or else only the mobile
//! cgroup. See `selection` for the two scopes.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::Agent;

/// The lock that is held for reading while processes that may have open sockets become mobile, so
/// that the eBPF programs are not detached from the root cgroup meanwhile.
#[derive(Default)]
pub(crate) struct AttachLock(RwLock<()>);

impl Agent {
    /// Attaches the eBPF programs to the root cgroup before processes that may have open sockets
    /// become mobile. The caller holds the returned guard until these processes are mobile.
    pub(crate) fn attach_to_root(&self) -> Result<RwLockReadGuard<'_, ()>, String> {
        let held = self.attach_lock.0.read().unwrap_or_else(PoisonError::into_inner);
        self.selector().attach_to_root().map_err(|error| {
            tracing::warn!(
                %error,
                "cannot attach the eBPF programs to the root cgroup: processes with open sockets \
                cannot become mobile"
            );
            error.to_string()
        })?;
        Ok(held)
    }

    /// Attaches the eBPF programs to the mobile cgroup alone once no process is mobile, so that
    /// ordinary processes bear no cost.
    pub(super) fn attach_to_mobile_only(&self) {
        // A process is becoming mobile; the next sweep tries again.
        let Ok(_guard) = self.attach_lock.0.try_write() else { return };
        if self.cgroup.slice().id() != 0 || !self.cgroup.pids().is_ok_and(|pids| pids.is_empty()) {
            return;
        }
        if let Err(error) = self.selector().detach_from_root() {
            tracing::warn!(
                %error,
                "cannot detach the eBPF programs from the root cgroup: they still run for ordinary \
                processes"
            );
        }
    }
}
