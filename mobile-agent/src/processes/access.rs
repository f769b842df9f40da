//! Decides which processes a requester may change, and holds a process so that its ID cannot be
//! reused unnoticed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::change_error::ChangeError;
use crate::selection::process::{Owners, parse_owners};

/// The user who sent a request, as the kernel reports the peer of the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requester {
    /// The ID of the user.
    pub(crate) uid: u32,
    /// Whether the user is root or a member of `[control] group`.
    pub(crate) privileged: bool,
}

/// Returns whether the requester may change a process with these owners (its real, effective and
/// saved user ID).
///
/// An ordinary user must be all three, because a program with another user's rights (setuid) must
/// not be redirected by the user who started it.
pub(super) fn may_change(requester: Requester, owners: Owners) -> bool {
    requester.privileged || owners.iter().all(|owner| *owner == requester.uid)
}

/// Returns whether a user may send every request that root may send: as root, or as a member of
/// `group`.
pub(super) fn is_privileged(uid: u32, gid: u32, group: Option<&str>) -> bool {
    uid == 0 || group.is_some_and(|group| is_member(uid, gid, group))
}

fn is_member(uid: u32, gid: u32, group: &str) -> bool {
    let Ok(Some(group)) = Group::from_name(group) else { return false };
    if group.gid == Gid::from_raw(gid) {
        return true;
    }
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    std::ffi::CString::new(user.name)
        .ok()
        .and_then(|name| getgrouplist(&name, user.gid).ok())
        .is_some_and(|groups| groups.contains(&group.gid))
}

/// A process with its pidfd, which reveals whether the process ID has been reused for another
/// process.
#[derive(Debug)]
pub(super) struct ProcessHandle {
    /// The ID of the process.
    pub(super) pid: i32,
    /// The real, effective and saved user ID, read while the process was alive.
    pub(super) owners: Owners,
    /// Whether the process is in another network namespace than the agent.
    pub(super) in_other_namespace: bool,
    pidfd: OwnedFd,
}

impl ProcessHandle {
    /// Opens the process with this ID.
    pub(super) fn open(pid: i32) -> Result<Self, ChangeError> {
        // `Pid::from_raw` asserts that the ID is not negative.
        let positive = if pid > 0 { Pid::from_raw(pid) } else { None };
        let named = positive.ok_or(ChangeError::NoProcess(pid))?;
        let pidfd = pidfd_open(named, PidfdFlags::empty()).map_err(|error| match error {
            Errno::SRCH => ChangeError::NoProcess(pid),
            Errno::INVAL | Errno::NOENT => ChangeError::Thread(pid),
            error => ChangeError::Open { pid, source: error.into() },
        })?;
        Self::identify(pid, pidfd)
    }

    /// Opens the process that sent a request, by the pidfd of its connection, or by its ID where
    /// the kernel provides no such pidfd.
    pub(super) fn caller(pid: i32, pidfd: Option<OwnedFd>) -> Result<Self, ChangeError> {
        match pidfd {
            Some(pidfd) => Self::identify(pid, pidfd),
            None => Self::open(pid),
        }
    }

    /// Reads the owners and the network namespace of the process `pid`, then checks by `pidfd` that
    /// the process was alive all the time, so that `pid` meant no other.
    fn identify(pid: i32, pidfd: OwnedFd) -> Result<Self, ChangeError> {
        let gone = || ChangeError::NoProcess(pid);
        let unseen = |source: std::io::Error| match Errno::from_io_error(&source) {
            Some(Errno::SRCH | Errno::NOENT) => gone(),
            // The process exists but may be hidden from this one: capabilities decide what may be
            // read.
            _ => ChangeError::Open { pid, source },
        };
        // The process name in this file may have any encoding.
        let status = std::fs::read(format!("/proc/{pid}/status")).map_err(unseen)?;
        let owners = parse_owners(&String::from_utf8_lossy(&status)).ok_or_else(gone)?;
        let theirs = namespace(&pid.to_string()).map_err(unseen)?;
        let ours = namespace("self").map_err(ChangeError::Namespace)?;
        let held = Self { pid, owners, in_other_namespace: theirs != ours, pidfd };
        if held.is_alive() { Ok(held) } else { Err(gone()) }
    }

    /// Returns the pidfd of the process.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns whether the process still runs.
    pub(super) fn is_alive(&self) -> bool {
        // A pidfd becomes readable when its process ends.
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
    }
}

/// Returns the device and inode number of a process's network namespace, which identify it.
fn namespace(process: &str) -> std::io::Result<(u64, u64)> {
    let namespace = std::fs::metadata(format!("/proc/{process}/ns/net"))?;
    Ok((namespace.dev(), namespace.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const ROOT: Requester = Requester { uid: 0, privileged: true };
    const MEMBER: Requester = Requester { uid: 1000, privileged: true };
    const USER: Requester = Requester { uid: 1000, privileged: false };

    #[test]
    fn a_user_may_change_only_processes_that_run_wholly_as_that_user() {
        assert!(may_change(USER, [1000; 3]));
        assert!(!may_change(USER, [0; 3]));
        assert!(!may_change(USER, [1001; 3]));
        // A running setuid program, started by the user and with the rights of root.
        assert!(!may_change(USER, [1000, 0, 0]));
        assert!(!may_change(USER, [1000, 1000, 0]));
        assert!(may_change(ROOT, [1001; 3]));
        assert!(may_change(MEMBER, [0; 3]));
    }

    #[test]
    fn a_handle_tells_when_its_process_has_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let held = ProcessHandle::open(pid).unwrap();
        assert!(held.is_alive());
        assert_eq!(held.owners, [Uid::current().as_raw(); 3]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!held.is_alive());
        assert!(matches!(ProcessHandle::open(pid), Err(ChangeError::NoProcess(gone)) if gone == pid));
        assert!(ProcessHandle::open(0).is_err() && ProcessHandle::open(-1).is_err());
    }

    #[test]
    fn root_is_privileged_and_so_is_a_member_of_the_group() {
        assert!(is_privileged(0, 0, None));
        assert!(!is_privileged(65534, 65534, None));
        assert!(!is_privileged(65534, 65534, Some("no-such-group")));
        assert!(!is_privileged(65534, 65534, Some("root")));
        assert!(is_privileged(65534, 0, Some("root")));
    }
}
