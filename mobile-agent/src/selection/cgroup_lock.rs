//! Locks the mobile cgroup for one agent, so that agents in several network namespaces, which all
//! see the same cgroups, do not use each other's mobile cgroup.
//!
//! A running agent locks the cgroup's directory. An extended attribute of the directory names the
//! network namespace of the agent that created it, even while that agent does not run.

use std::fs::File;
use std::io;
use std::path::Path;

use mobile_host::in_use::retry_while_in_use;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::cgroup::MobileCgroup;
use super::cgroup_error::{CgroupError, Result, io_error};

/// The extended attribute of a mobile cgroup that holds the inode number of its agent's network
/// namespace. cgroup2 stores `user.` attributes since Linux 5.7.
const OWNER_ATTRIBUTE: &str = "user.mobile.netns";

/// The lock of the mobile cgroup. The kernel releases it when the process ends.
#[derive(Debug)]
pub(crate) struct CgroupLock {
    _lock: Flock<File>,
}

/// Locks the mobile cgroup for the agent of this process.
///
/// Fails if another running agent has locked it, or if mobile processes of another network
/// namespace's agent wait in it.
pub(crate) fn acquire(cgroup: &MobileCgroup) -> Result<CgroupLock> {
    let dir = cgroup.dir();
    let lock = lock(dir)?;
    let own = own_namespace()?;
    match owner(dir) {
        Some(owner) if owner != own && cgroup.has_processes()? => {
            return Err(CgroupError::OtherNamespace { dir: dir.into(), owner });
        }
        _ => {}
    }
    // Without the attribute the lock still keeps running agents apart.
    if let Err(error) = setxattr(dir, OWNER_ATTRIBUTE, own.to_string().as_bytes(), XattrFlags::empty()) {
        tracing::debug!(%error, cgroup = %dir.display(), "cannot record the owner of the mobile cgroup");
    }
    Ok(CgroupLock { _lock: lock })
}

/// Returns whether a clean-up in this network namespace may remove the mobile cgroup; false if the
/// cgroup belongs to the agent of another network namespace.
///
/// Fails if an agent of this network namespace still runs and has locked it.
pub(crate) fn may_remove(cgroup: &MobileCgroup) -> Result<bool> {
    let own = own_namespace()?;
    if owner(cgroup.dir()).is_some_and(|owner| owner != own) {
        return Ok(false);
    }
    lock(cgroup.dir()).map(|_lock| true)
}

fn own_namespace() -> Result<u64> {
    mobile_host::netns::id().map_err(io_error("inspect", Path::new("/proc/thread-self/ns/net")))
}

/// Locks the directory of a mobile cgroup until the returned value is dropped. Waits up to 1 s for
/// a lock that is held.
fn lock(dir: &Path) -> Result<Flock<File>> {
    retry_while_in_use(|| try_lock(dir), |error| matches!(error, CgroupError::InUse { .. }))
}

fn try_lock(dir: &Path) -> Result<Flock<File>> {
    let open = File::open(dir).map_err(io_error("open the cgroup", dir))?;
    Flock::lock(open, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => CgroupError::InUse { dir: dir.into(), owner: owner(dir) },
        other => io_error("lock the cgroup", dir)(io::Error::from(other)),
    })
}

/// Returns the network namespace of the agent that the cgroup belongs to, if it is recorded.
fn owner(dir: &Path) -> Option<u64> {
    // A 64-bit number has at most 20 digits.
    let mut value = [0; 20];
    let length = getxattr(dir, OWNER_ATTRIBUTE, &mut value).ok()?;
    std::str::from_utf8(value.get(..length)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::sandbox::Sandbox;

    #[test]
    fn a_cgroup_in_use_is_refused_and_an_empty_one_is_taken_over() {
        Sandbox::with(|sandbox| {
            let cgroup = &sandbox.cgroup;
            let claimed = acquire(cgroup).unwrap();
            let own = mobile_host::netns::id().unwrap();
            assert!(
                matches!(acquire(cgroup), Err(CgroupError::InUse { owner: Some(owner), .. }) if owner == own)
            );
            assert!(matches!(may_remove(cgroup), Err(CgroupError::InUse { .. })));
            drop(claimed);
            assert!(may_remove(cgroup).unwrap());

            setxattr(cgroup.dir(), OWNER_ATTRIBUTE, b"7", XattrFlags::empty()).unwrap();
            assert!(!may_remove(cgroup).unwrap());
            let probe = sandbox.mobile();
            assert!(matches!(acquire(cgroup), Err(CgroupError::OtherNamespace { owner: 7, .. })));
            cgroup.detach(probe.pid()).unwrap();
            acquire(cgroup).unwrap();
            assert!(may_remove(cgroup).unwrap());
        });
    }

    #[test]
    fn default_names_in_another_namespace_contain_the_namespace_id() {
        Sandbox::with(|_| {
            assert_eq!(
                mobile_host::netns::name("mobile"),
                format!("mobile-{}", mobile_host::netns::id().unwrap())
            );
        });
    }
}
