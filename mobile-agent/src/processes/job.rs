//! The messages from the agent to its process helper. Every job has a stream of its own, so that a
//! slow one does not delay others.

use std::net::IpAddr;
use std::path::PathBuf;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::access::Requester;
use super::change_error::ChangeError;
use crate::config::Config;

/// The settings of the process helper, sent once at its start. The eBPF maps of the traffic
/// accounts are sent as file descriptors of the same message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The absolute path of the configuration file; `None` means the default one.
    pub(crate) config: Option<PathBuf>,
    /// The setting `[cgroup] path`.
    pub(crate) cgroup: Option<PathBuf>,
    /// The setting `[cgroup] slice`.
    pub(crate) slice: Option<PathBuf>,
    /// The setting `[routing] mark`.
    pub(crate) mark: u32,
    /// The setting `[routing] mark_mask`.
    pub(crate) mark_mask: u32,
    /// The key that permits the agent to set marks: see [`crate::selection::sockets::Mark`].
    pub(crate) mark_key: u64,
}

/// A job for the process helper. Its reply is a `Result` with the type that the variant's
/// documentation names after "Result".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job {
    /// Tells whether a user may send every request that root may send, as a member of `group`.
    /// Result: `bool`.
    IsPrivileged {
        /// The ID of the user.
        uid: u32,
        /// The group ID of the user's process.
        gid: u32,
        /// The setting `[control] group`.
        group: String,
    },
    /// Tells whether the process that sent the request holds sockets that could become mobile.
    /// Result: `bool`.
    HoldsSockets {
        /// The ID of the process that sent the request.
        caller: i32,
    },
    /// Makes one process mobile or ordinary. Result: `()`.
    SetMobile {
        /// The ID of the process to change; `None` means the process that sent the request.
        pid: Option<i32>,
        /// The ID of the process that sent the request.
        caller: i32,
        /// The user who sent the request.
        requester: Requester,
        /// Whether the process is to be mobile.
        mobile: bool,
        /// Whether the sockets that the process holds change too.
        with_sockets: bool,
    },
    /// Makes several processes mobile or ordinary. Result: `Vec<Change>`, one for each process.
    Change {
        /// The IDs of the processes.
        pids: Vec<i32>,
        /// The user who sent the request.
        requester: Requester,
        /// The persistent addresses, which identify connections through the tunnel.
        persistent: Vec<IpAddr>,
        /// Whether the processes are to be mobile.
        mobile: bool,
    },
    /// Lists the mobile processes that the requester may see. Result: `Vec<Process>`.
    List {
        /// The user who sent the request.
        requester: Requester,
        /// The persistent addresses, which identify connections through the tunnel.
        persistent: Vec<IpAddr>,
    },
    /// Searches the mobile process that has a TUN or TAP device open. Result: `Option<String>`, as
    /// `command (pid)`.
    FindTunHolder {
        /// The name of the device.
        device: String,
    },
    /// Reads the configuration file and the private key that it names. Result: [`LoadedConfig`].
    LoadConfig,
    /// Removes the traffic accounts of processes that have ended. Result: `()`.
    SweepAccounts,
    /// Creates the cgroup of systemd's `mobile.slice` unless it exists. Result: `u64`, the cgroup's
    /// kernel ID.
    EnsureSlice,
    /// Moves every process of a mobile cgroup back to its former cgroup, and removes the mobile
    /// cgroup. Result: `()`.
    RemoveCgroup {
        /// The directory of the mobile cgroup; `None` means the default one.
        path: Option<PathBuf>,
    },
}

/// The configuration as it is on disk, with the private key of this host.
#[derive(Serialize, Deserialize)]
pub(crate) struct LoadedConfig {
    /// The checked settings.
    pub(crate) config: Config,
    /// The private key in base64.
    pub(crate) private_key: Zeroizing<String>,
}

/// The error of a job, as text and as an error number for `libmobile`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct JobError {
    /// The cause as text, which names the process.
    pub(crate) reason: String,
    /// The error number (errno) for `libmobile`.
    pub(crate) errno: i32,
}

impl JobError {
    /// Creates the error for a failure that has no error number of its own: EIO.
    pub(super) fn failed(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), errno: Errno::EIO as i32 }
    }

    /// Wraps an error that has no error number of its own: the number becomes EIO.
    pub(super) fn of(error: &impl std::fmt::Display) -> Self {
        Self::failed(error.to_string())
    }

    /// Returns the error number.
    pub(crate) fn errno(&self) -> Errno {
        Errno::from_raw(self.errno)
    }
}

impl From<ChangeError> for JobError {
    fn from(unchanged: ChangeError) -> Self {
        Self { reason: unchanged.to_string(), errno: unchanged.errno() as i32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_decoded_as_they_are_encoded() {
        let requester = Requester { uid: 1000, privileged: false };
        for job in [
            Job::IsPrivileged { uid: 1, gid: 2, group: "mobile".into() },
            Job::HoldsSockets { caller: 7 },
            Job::SetMobile { pid: None, caller: 7, requester, mobile: true, with_sockets: false },
            Job::Change { pids: vec![1, 2], requester, persistent: vec![], mobile: false },
            Job::List { requester, persistent: vec!["10.77.0.2".parse().unwrap()] },
            Job::FindTunHolder { device: "tun0".into() },
            Job::LoadConfig,
            Job::SweepAccounts,
            Job::EnsureSlice,
            Job::RemoveCgroup { path: None },
        ] {
            let json = serde_json::to_vec(&job).unwrap();
            assert_eq!(serde_json::from_slice::<Job>(&json).unwrap(), job);
        }
    }

    #[test]
    fn a_change_error_keeps_its_error_number() {
        let refusal = JobError::from(ChangeError::Thread(7));
        assert_eq!(refusal.errno(), Errno::EINVAL);
        assert!(refusal.to_string().contains("thread"), "{refusal}");
        assert_eq!(JobError::failed("no memory").errno(), Errno::EIO);
    }
}
