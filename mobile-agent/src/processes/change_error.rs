//! Why the MOBILE attribute of a process stays as it is: in words for the verbs, as a number for the C library.

use std::io;

use nix::errno::Errno;

use crate::selection::cgroup::CgroupError;

/// Why a process was not changed; names it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    /// It is not there.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// It ended while it was changed.
    #[error("process {0} has ended")]
    Ended(i32),
    /// A thread that is no process.
    #[error("{0} is the number of a thread: name the process it belongs to")]
    Thread(i32),
    /// Its sockets would not be marked: it would go direct while it is called mobile.
    #[error("process {0} is in another network namespace than the agent: run an agent there")]
    OtherNamespace(i32),
    /// The requester has no right to it.
    #[error("process {0} is another user's: only its owner, root or the [control] group may change it")]
    Foreign(i32),
    /// It cannot be looked at.
    #[error("cannot look at process {pid}: {source}")]
    Open {
        /// The process.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
    /// We cannot be looked at.
    #[error("cannot tell the network namespace: {0}")]
    Namespace(io::Error),
    /// It could not be moved.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl ChangeError {
    /// What `inet_setmobile` says; mobile.h documents it.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::NoProcess(_) | Self::Ended(_) | Self::Cgroup(CgroupError::NoProcess(_)) => Errno::ESRCH,
            Self::Thread(_) => Errno::EINVAL,
            Self::OtherNamespace(_) => Errno::EOPNOTSUPP,
            Self::Foreign(_) => Errno::EPERM,
            Self::Open { .. } | Self::Namespace(_) | Self::Cgroup(_) => Errno::EIO,
        }
    }
}
