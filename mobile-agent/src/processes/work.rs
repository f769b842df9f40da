//! The jobs of the process helper: set and clear the MOBILE attribute, and list the processes that
//! have it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use super::access::{ProcessHandle, Requester, may_change};
use super::change_error::ChangeError;
use super::job::JobError;
use crate::control::protocol::{Change, Connection, Process, Traffic};
use crate::selection::account::Accounts;
use crate::selection::cgroup::MobileCgroup;
use crate::selection::process::{self, Reader};
use crate::selection::sockets::{self, Mark};

/// The state that the jobs work with.
pub(super) struct Worker {
    /// The mobile cgroup.
    pub(super) cgroup: MobileCgroup,
    /// The mark of mobile sockets.
    pub(super) mark: Mark,
    /// The accounts of mobile processes.
    pub(super) accounts: Accounts,
}

/// The calling process: its id, and its pidfd where the kernel gives one.
pub(super) type Caller = (i32, Option<OwnedFd>);

impl Worker {
    /// Returns whether the caller holds sockets that could be mobile: its standard input perhaps,
    /// or sockets inherited from its parent.
    pub(super) fn holds_sockets(&self, pid: i32, pidfd: Option<OwnedFd>) -> Result<bool, JobError> {
        let held = ProcessHandle::caller(pid, pidfd)?;
        Ok(sockets::has_any(pid, held.pidfd()))
    }

    /// Sets or clears the attribute of one process: the caller where `pid` is `None`.
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

    /// Sets or clears the attribute of each process that the requester may change.
    pub(super) fn change(
        &self,
        requester: Requester,
        pids: &[i32],
        persistent: &[IpAddr],
        mobile: bool,
    ) -> Vec<Change> {
        // One reader, and so one cache, for all processes: there may be a thousand.
        let mut reader = Reader::default();
        pids.iter()
            .map(|&pid| {
                let held = ProcessHandle::open(pid);
                // A /proc mounted with hidepid hides others' processes from the requester, but not from
                // the helper, which must not reveal what the requester cannot see.
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

    /// Sets or clears the attribute of a process that is held, and of its sockets that have no
    /// peer.
    fn change_with_sockets(
        &self,
        requester: Requester,
        held: &ProcessHandle,
        mobile: bool,
    ) -> Result<(), ChangeError> {
        self.change_one(requester, held, mobile)?;
        // After the attribute: sockets made from here on are marked, or not, as they are made.
        sockets::follow(held.pid, held.pidfd(), self.mark, mobile);
        Ok(())
    }

    /// Sets or clears the attribute of a process that is held.
    fn change_one(
        &self,
        requester: Requester,
        held: &ProcessHandle,
        mobile: bool,
    ) -> Result<(), ChangeError> {
        if !may_change(requester, held.owners) {
            return Err(ChangeError::Foreign(held.pid));
        }
        // Checked only now: not everybody may know which processes exist and where.
        if held.elsewhere {
            return Err(ChangeError::OtherNamespace(held.pid));
        }
        let cgroup = &self.cgroup;
        let set = |mobile| if mobile { cgroup.attach(held.pid) } else { cgroup.detach(held.pid) };
        let before = cgroup.is_mobile(held.pid)?;
        set(mobile)?;
        if !held.is_alive() {
            // The process ended meanwhile: whichever process has its id now was not meant.
            if before != mobile
                && let Err(error) = set(before)
            {
                tracing::debug!(pid = held.pid, %error, "cannot undo the change of a process that has ended");
            }
            return Err(ChangeError::Ended(held.pid));
        }
        Ok(())
    }

    /// Lists the mobile processes that the requester may see.
    pub(super) fn list(&self, requester: Requester, persistent: &[IpAddr]) -> Result<Vec<Process>, JobError> {
        let pids = self.cgroup.pids().map_err(|error| JobError::of(&error))?;
        // Looking up a user name may take a query across the network, so each name is looked up
        // once.
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

    /// Makes the cgroup of the slice unless it is there, and returns its kernel id.
    pub(super) fn ensure_slice(&self) -> Result<u64, JobError> {
        let slice = self.cgroup.slice();
        let dir = slice.dir().display();
        slice.ensure().map_err(|error| JobError::failed(format!("cannot make the cgroup {dir}: {error}")))
    }

    /// Closes the accounts of processes that have ended.
    pub(super) fn sweep_accounts(&self) -> Result<(), JobError> {
        self.accounts.sweep(&self.cgroup).map_err(|error| JobError::failed(format!("{error:#}")))
    }
}

/// Returns what each process carried; `None` for each on an error, because the list is useful
/// without.
fn traffic(accounts: &Accounts, processes: &[process::Process]) -> Vec<Option<Traffic>> {
    let identities: Vec<_> = processes.iter().map(process::Process::identity).collect();
    match accounts.of(&identities) {
        Ok(traffic) => traffic.into_iter().map(Some).collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot read the traffic accounts: `mobile ps` omits them");
            vec![None; processes.len()]
        }
    }
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
