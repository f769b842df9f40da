//! Chooses the cgroup that the per-socket programs are attached to: the root while mobile processes
//! may have older sockets, or only the mobile cgroup. See `selection` for the two scopes.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::Agent;

/// Held for reading while processes that may have sockets become mobile, so that the scope is not
/// reduced meanwhile.
#[derive(Default)]
pub(crate) struct AttachLock(RwLock<()>);

impl Agent {
    /// Attaches the programs to the root cgroup before processes that may have sockets become
    /// mobile. The caller holds the guard until they are mobile.
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

    /// Attaches the programs to the mobile cgroup alone once no process is mobile, so that ordinary
    /// processes bear no cost.
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
