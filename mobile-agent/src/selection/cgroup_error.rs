//! The errors of cgroups, with the next step for each.

use std::{
    io,
    path::{Path, PathBuf},
};

pub(super) type Result<T> = std::result::Result<T, CgroupError>;

/// Errors of the mobile cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// No cgroup2 hierarchy is mounted.
    #[error(
        "no cgroup2 file system is mounted, and mobile processes are those of a cgroup in it; mount one: `{0}`"
    )]
    NoCgroup2(&'static str),
    /// The configured path is not on a cgroup2 mount.
    #[error("{path} is not below a cgroup2 mount, such as the one at {mount}; correct `[cgroup] path`")]
    Outside {
        /// The path in the configuration.
        path: PathBuf,
        /// A cgroup2 mount that could be used.
        mount: PathBuf,
    },
    /// The configured path is the root of the hierarchy: every process would be mobile.
    #[error(
        "{0} is the root of cgroup2, so every process would be mobile; set `[cgroup] path` to a directory below it"
    )]
    Root(PathBuf),
    /// A cgroup namespace hides the root of the hierarchy.
    #[error(
        "the cgroup2 mount at {0} shows only a part of the hierarchy, as in a container with its own cgroup namespace; \
         run the agent in the host's cgroup namespace"
    )]
    Namespace(PathBuf),
    /// The process does not exist.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// The process is mobile because systemd runs it in `mobile.slice`, and only systemd may move
    /// processes out of its slices.
    #[error(
        "process {pid} is mobile because systemd runs it in {slice}: set another `Slice=` in its unit and restart the unit"
    )]
    InSlice {
        /// The ID of the process.
        pid: i32,
        /// The cgroup of the slice.
        slice: PathBuf,
    },
    /// Another program removed the mobile cgroup.
    #[error(
        "the mobile cgroup {0} was removed while the agent ran: restart the agent (`systemctl restart mobile`)"
    )]
    Replaced(PathBuf),
    /// The kernel did not move a process.
    #[error("cannot move process {pid} to the cgroup {dir}: {source}")]
    Move {
        /// The ID of the process.
        pid: i32,
        /// The cgroup to move to.
        dir: PathBuf,
        /// The cause of the failure.
        source: io::Error,
    },
    /// Some processes could not be moved out of the mobile cgroup.
    #[error(
        "{dir} still has processes after several attempts to move them: {pids:?}; end them and try again"
    )]
    Busy {
        /// The directory of the mobile cgroup.
        dir: PathBuf,
        /// The processes that are still there.
        pids: Vec<i32>,
    },
    /// Another agent runs with this mobile cgroup.
    #[error(
        "the mobile cgroup {dir} is in use by a running agent{}: stop that agent (`mobile cleanup`), or set \
         `[cgroup] path` to another directory",
        of_namespace(*.owner)
    )]
    InUse {
        /// The directory of the mobile cgroup.
        dir: PathBuf,
        /// The network namespace of the other agent, if it is known.
        owner: Option<u64>,
    },
    /// The cgroup holds mobile processes of an agent in another network namespace, which does not
    /// run.
    #[error(
        "the mobile cgroup {dir} belongs to the agent{}, whose mobile processes wait in it: run `mobile cleanup` \
         there, or set `[cgroup] path` to another directory",
        of_namespace(Some(*.owner))
    )]
    OtherNamespace {
        /// The directory of the mobile cgroup.
        dir: PathBuf,
        /// The network namespace of the other agent.
        owner: u64,
    },
    /// An operation on a file or directory failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The path of the file or directory.
        path: PathBuf,
        /// The cause of the failure.
        source: io::Error,
    },
}

fn of_namespace(owner: Option<u64>) -> String {
    owner.map_or_else(String::new, |owner| format!(" of network namespace {owner} (see `lsns -t net`)"))
}

/// Returns a function that adds to an I/O error what failed: the operation as a verb, and the path.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError::Io { action, path: path.into(), source }
}
