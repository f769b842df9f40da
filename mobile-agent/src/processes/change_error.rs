//! The reasons why the MOBILE attribute of a process was not changed: as text for the verbs, as
//! error numbers for `libmobile`.

use std::io;

use nix::errno::Errno;

use crate::selection::cgroup::CgroupError;

/// The reason why a process was not changed, which names the process.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    /// The process does not exist.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// The process ended while it was changed.
    #[error("process {0} has ended")]
    Ended(i32),
    /// The ID is that of a thread, not of a process.
    #[error("{0} is the ID of a thread: name the process it belongs to")]
    Thread(i32),
    /// The process is in another network namespace, where its sockets would not be marked and its
    /// connections would go direct.
    #[error("process {0} is in another network namespace than the agent: run an agent there")]
    OtherNamespace(i32),
    /// The requester may not change the process.
    #[error(
        "process {0} belongs to another user: only its owner, root and the [control] group may change it"
    )]
    Foreign(i32),
    /// The process cannot be inspected.
    #[error("cannot inspect process {pid}: {source}")]
    Open {
        /// The ID of the process.
        pid: i32,
        /// The cause of the failure.
        source: io::Error,
    },
    /// The helper's own network namespace cannot be read.
    #[error("cannot read the agent's network namespace: {0}")]
    Namespace(io::Error),
    /// The process could not be moved to another cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl ChangeError {
    /// Returns the error number that `inet_setmobile` reports, as `mobile.h` documents.
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
