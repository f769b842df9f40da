//! The jobs of the process helper: make processes mobile or ordinary, and list the mobile ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::access::{ProcessHandle, Requester, may_change};
use super::change_error::ChangeError;
use super::job::JobError;
use crate::protocol::{Change, Connection, Process, Traffic};
use crate::selection::account::{self, Accounts};
use crate::selection::cgroup::MobileCgroup;
use crate::selection::process::{self, Reader};
use crate::selection::sockets::{self, Mark};

/// The state that all jobs of the process helper share.
pub(super) struct Worker {
    /// The path of the configuration file; `None` means the default one.
    pub(super) config: Option<PathBuf>,
    /// The mobile cgroup.
    pub(super) cgroup: MobileCgroup,
    /// The mark of mobile sockets.
    pub(super) mark: Mark,
    /// The traffic accounts of mobile processes.
    pub(super) accounts: Accounts,
}

/// The process that sent a request: its ID, and its pidfd where the kernel provides one.
pub(super) type Caller = (i32, Option<OwnedFd>);

impl Worker {
    /// Returns whether the process that sent the request holds sockets that could become mobile,
    /// such as its standard input or sockets inherited from its parent.
    pub(super) fn holds_sockets(&self, pid: i32, pidfd: Option<OwnedFd>) -> Result<bool, JobError> {
        let held = ProcessHandle::caller(pid, pidfd)?;
        Ok(sockets::has_any(pid, held.pidfd()))
    }

    /// Makes one process mobile or ordinary; if `pid` is `None`, the process that sent the request.
    pub(super) fn set_mobile(
        &self,
        requester: Requester,
        pid: Option<i32>,
        (caller, pidfd): Caller,
        mobile: bool,
        with_sockets: bool,
    ) -> Result<(), JobError> {
        let held = match pid {
            Some(pid) => ProcessHandle::open(pid),
            None => ProcessHandle::caller(caller, pidfd),
        }?;
        if with_sockets {
            self.change_with_sockets(requester, &held, mobile)?;
        } else {
            self.change_one(requester, &held, mobile)?;
        }
        Ok(())
    }

    /// Makes each process that the requester may change mobile or ordinary.
    pub(super) fn change(
        &self,
        requester: Requester,
        pids: &[i32],
        persistent: &[IpAddr],
        mobile: bool,
    ) -> Vec<Change> {
        // One reader, and so one cache of socket tables, for all processes: there may be a
        // thousand.
        let mut reader = Reader::default();
        pids.iter()
            .map(|&pid| {
                let held = ProcessHandle::open(pid);
                // With `hidepid`, `/proc` hides other users' processes from the requester but not
                // from the helper, which must not reveal them.
                let may_see = held.as_ref().is_ok_and(|held| may_change(requester, held.owners));
                let known = may_see.then(|| reader.process(pid).ok()).flatten();
                let changed = held.and_then(|held| self.change_with_sockets(requester, &held, mobile));
                let kept = known.as_ref().filter(|_| changed.is_ok()).map(|process| {
                    process
                        .connections
                        .iter()
                        .filter(|connection| connection.is_mobile(persistent) != mobile)
                        .map(connection)
                        .collect()
                });
                Change {
                    pid,
                    command: known.map(|process| process.comm),
                    error: changed.err().map(|error| error.to_string()),
                    kept: kept.unwrap_or_default(),
                }
            })
            .collect()
    }

    /// Makes a process mobile or ordinary, and sets or clears the mark of those sockets it holds
    /// that are not connected.
    fn change_with_sockets(
        &self,
        requester: Requester,
        held: &ProcessHandle,
        mobile: bool,
    ) -> Result<(), ChangeError> {
        self.change_one(requester, held, mobile)?;
        // The process first, then its sockets: a socket that is created in between gets the right
        // mark at its creation.
        sockets::set_sockets_mobile(held.pid, held.pidfd(), self.mark, mobile);
        Ok(())
    }

    /// Makes a process mobile or ordinary if the requester may change it. The sockets that it holds
    /// keep their marks.
    fn change_one(
        &self,
        requester: Requester,
        held: &ProcessHandle,
        mobile: bool,
    ) -> Result<(), ChangeError> {
        if !may_change(requester, held.owners) {
            return Err(ChangeError::Foreign(held.pid));
        }
        // Check this after the permission, because other users may not learn which processes exist
        // and where.
        if held.in_other_namespace {
            return Err(ChangeError::OtherNamespace(held.pid));
        }
        let cgroup = &self.cgroup;
        let set = |mobile| if mobile { cgroup.attach(held.pid) } else { cgroup.detach(held.pid) };
        let before = cgroup.is_mobile(held.pid)?;
        set(mobile)?;
        if !held.is_alive() {
            // The process ended meanwhile. The change may have met another process that got its ID:
            // undo it.
            if before != mobile
                && let Err(error) = set(before)
            {
                tracing::debug!(pid = held.pid, %error, "cannot undo a change that met another process with the same process ID");
            }
            return Err(ChangeError::Ended(held.pid));
        }
        Ok(())
    }

    /// Returns the mobile processes that the requester may see.
    pub(super) fn list(&self, requester: Requester, persistent: &[IpAddr]) -> Result<Vec<Process>, JobError> {
        let pids = self.cgroup.pids().map_err(|error| JobError::of(&error))?;
        // The lookup of a user name may query the network, so look up each name once.
        let mut names: HashMap<u32, String> = HashMap::new();
        let mut processes = Reader::default().processes(&pids);
        processes.retain(|process| may_change(requester, process.owners));
        let traffic = traffic(&self.accounts, &processes);
        Ok(processes
            .into_iter()
            .zip(traffic)
            .map(|(process, tcp)| Process {
                pid: process.pid,
                uid: process.uid,
                user: names.entry(process.uid).or_insert_with(|| user_name(process.uid)).clone(),
                command: if process.cmdline.is_empty() {
                    format!("[{}]", process.comm)
                } else {
                    process::shortened(process.cmdline.join(" "))
                },
                connections: process
                    .connections
                    .iter()
                    .filter(|connection| connection.is_mobile(persistent))
                    .map(connection)
                    .collect(),
                tcp,
            })
            .collect())
    }

    /// Creates the cgroup of the slice unless it exists, and returns its kernel ID.
    pub(super) fn ensure_slice(&self) -> Result<u64, JobError> {
        let slice = self.cgroup.slice();
        let dir = slice.dir().display();
        slice.ensure().map_err(|error| JobError::failed(format!("cannot create the cgroup {dir}: {error}")))
    }

    /// Removes the traffic accounts of processes that have ended.
    pub(super) fn sweep_accounts(&self) -> Result<(), JobError> {
        self.accounts.sweep(&self.cgroup).map_err(|error| JobError::failed(format!("{error:#}")))
    }
}

/// Returns the TCP traffic of each process, in the same order. If it cannot be read, logs the error
/// and returns `None` for all, because the list of processes is useful without it.
fn traffic(accounts: &Accounts, processes: &[process::Process]) -> Vec<Option<Traffic>> {
    let identities: Vec<_> = processes.iter().map(process::Process::identity).collect();
    match accounts.of(&identities) {
        Ok(traffic) => traffic.into_iter().map(|traffic| Some(tcp(traffic))).collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot read the traffic accounts: `mobile ps` shows no traffic");
            vec![None; processes.len()]
        }
    }
}

fn tcp(traffic: account::Traffic) -> Traffic {
    let account::Traffic { connections, bytes_sent, bytes_received } = traffic;
    Traffic { connections, bytes_sent, bytes_received }
}

fn connection(connection: &process::Connection) -> Connection {
    let process::Connection { transport, local, remote } = connection;
    Connection { protocol: transport.word().to_owned(), local: local.to_string(), remote: remote.to_string() }
}

fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}
