//! The mobile processes: makes processes mobile or ordinary, and lists them.
//!
//! The process helper inspects and changes the processes. This module also chooses the cgroup that
//! the per-socket eBPF programs are attached to: the root cgroup while mobile processes may have
//! sockets from before they became mobile, or else only the mobile cgroup. See `selection` for the
//! two scopes.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use mobile_ebpf_common::{CountedEvent, MarkVerdict};

use crate::processes::{Job, JobError, ProcessHelper, Requester};
use crate::protocol::{Change, Process};
use crate::selection::bpf::{BpfError, Selector};
use crate::selection::cgroup::MobileCgroup;
use crate::selection::slice::Slice;

/// The mobile cgroup, the eBPF programs that mark the sockets of its processes, and the process
/// helper. The methods block the thread, because they read `/proc` or wait for the helper.
pub(crate) struct MobileProcesses {
    cgroup: MobileCgroup,
    selector: Mutex<Selector>,
    attach_lock: AttachLock,
    helper: ProcessHelper,
}

/// The lock that is held for reading while processes that may have open sockets become mobile, so
/// that the eBPF programs are not detached from the root cgroup meanwhile.
#[derive(Default)]
struct AttachLock(RwLock<()>);

/// The process that sent a request.
#[derive(Debug)]
pub(crate) struct Caller {
    /// The ID of the process.
    pub(crate) pid: i32,
    /// The pidfd of the process, where the kernel provides one.
    pub(crate) pidfd: Option<OwnedFd>,
    /// The user of the process, and whether this user may send every request.
    pub(crate) requester: Requester,
}

/// The reason why processes were not changed or listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// The eBPF programs could not be prepared.
    #[error(transparent)]
    Programs(#[from] BpfError),
    /// The process helper reported an error.
    #[error(transparent)]
    Helper(#[from] JobError),
}

/// Counters of the eBPF programs.
pub(crate) struct ProgramCounters {
    /// The number of times that the programs made each decision about a socket's mark.
    pub(crate) verdicts: Vec<(MarkVerdict, u64)>,
    /// The number of times that each counted event occurred.
    pub(crate) events: Vec<(CountedEvent, u64)>,
    /// The number of bypassed networks that were refused because their map was full.
    pub(crate) bypass_full: u64,
}

impl ProgramCounters {
    /// Returns how many times an event occurred; `None` if it is not counted.
    pub(crate) fn count(&self, event: CountedEvent) -> Option<u64> {
        self.events.iter().find_map(|(counted, count)| (*counted == event).then_some(*count))
    }
}

impl Caller {
    fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(|pidfd| pidfd.as_fd())
    }
}

impl MobileProcesses {
    /// Combines the handles of the kernel objects with the process helper.
    pub(crate) fn new(cgroup: MobileCgroup, selector: Selector, helper: ProcessHelper) -> Self {
        Self { cgroup, selector: Mutex::new(selector), attach_lock: AttachLock::default(), helper }
    }

    /// Makes the calling process mobile, with the sockets that it holds (`mobile run`).
    pub(crate) fn make_caller_mobile(&self, caller: &Caller) -> Result<(), ProcessError> {
        let holds = Job::HoldsSockets { caller: caller.pid };
        let with_sockets: bool = self.helper.run(&holds, caller.pidfd())?;
        let _scope = with_sockets.then(|| self.attach_to_root()).transpose()?;
        let job = Job::SetMobile {
            pid: None,
            caller: caller.pid,
            requester: caller.requester,
            mobile: true,
            with_sockets,
        };
        Ok(self.helper.run(&job, caller.pidfd())?)
    }

    /// Makes the process `pid`, or the calling process if `pid` is 0, mobile or ordinary with the
    /// sockets that it holds (`inet_setmobile` of `libmobile`).
    pub(crate) fn set_mobile(&self, caller: &Caller, pid: i32, mobile: bool) -> Result<(), ProcessError> {
        let _scope = mobile.then(|| self.attach_to_root()).transpose()?;
        let job = Job::SetMobile {
            pid: (pid != 0).then_some(pid),
            caller: caller.pid,
            requester: caller.requester,
            mobile,
            with_sockets: true,
        };
        Ok(self.helper.run(&job, caller.pidfd())?)
    }

    /// Makes each process that the requester may change mobile (`mobile attach`). `persistent` are
    /// the persistent addresses.
    pub(crate) fn attach(
        &self,
        pids: Vec<i32>,
        requester: Requester,
        persistent: Vec<IpAddr>,
    ) -> Result<Vec<Change>, ProcessError> {
        let _scope = self.attach_to_root()?;
        Ok(self.helper.run(&Job::Change { pids, requester, persistent, mobile: true }, None)?)
    }

    /// Makes each process that the requester may change ordinary (`mobile detach`). `persistent`
    /// are the persistent addresses.
    pub(crate) fn detach(
        &self,
        pids: Vec<i32>,
        requester: Requester,
        persistent: Vec<IpAddr>,
    ) -> Result<Vec<Change>, ProcessError> {
        Ok(self.helper.run(&Job::Change { pids, requester, persistent, mobile: false }, None)?)
    }

    /// Returns the mobile processes that the requester may see (`mobile ps`). `persistent` are the
    /// persistent addresses.
    pub(crate) fn list(
        &self,
        requester: Requester,
        persistent: Vec<IpAddr>,
    ) -> Result<Vec<Process>, ProcessError> {
        Ok(self.helper.run(&Job::List { requester, persistent }, None)?)
    }

    /// Returns whether the user is a member of `group`. Asks the process helper, because the user
    /// database may be a service that only the helper may query.
    pub(crate) fn is_member(&self, uid: u32, gid: u32, group: String) -> Result<bool, ProcessError> {
        Ok(self.helper.run(&Job::IsPrivileged { uid, gid, group }, None)?)
    }

    /// Ensures that the systemd slice of mobile processes exists and is known to the eBPF programs,
    /// so that processes in it are mobile (`mobile prepare-slice`).
    pub(crate) fn prepare_slice(&self) -> Result<(), ProcessError> {
        let dir = self.slice().dir().display();
        let id = self.helper.run(&Job::EnsureSlice, None)?;
        self.selector().set_slice(id)?;
        tracing::debug!(slice = %dir, id, "slice ready: processes started in it are mobile");
        Ok(())
    }

    /// Reads the counters of the eBPF programs.
    pub(crate) fn counters(&self) -> Result<ProgramCounters, BpfError> {
        let selector = self.selector();
        let bypass_full = selector.bypass_full();
        Ok(ProgramCounters { verdicts: selector.verdicts()?, events: selector.events()?, bypass_full })
    }

    /// Returns the process helper.
    pub(crate) fn helper(&self) -> &ProcessHelper {
        &self.helper
    }

    /// Returns the systemd slice of mobile processes.
    pub(super) fn slice(&self) -> &Slice {
        self.cgroup.slice()
    }

    /// Returns the eBPF programs, which stay locked until the returned guard is dropped.
    pub(super) fn selector(&self) -> MutexGuard<'_, Selector> {
        self.selector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the mobile processes on another thread. Returns 0 if they cannot be read.
    pub(super) async fn count(&self) -> u64 {
        let cgroup = self.cgroup.clone();
        let pids = tokio::task::spawn_blocking(move || cgroup.pids()).await;
        pids.ok().and_then(Result::ok).map_or(0, |pids| u64::try_from(pids.len()).unwrap_or(u64::MAX))
    }

    /// Removes the traffic accounts of processes that have ended.
    pub(super) fn sweep_accounts(&self) -> Result<(), JobError> {
        self.helper.run(&Job::SweepAccounts, None)
    }

    /// Attaches the eBPF programs to the root cgroup before processes that may have open sockets
    /// become mobile. The caller holds the returned guard until these processes are mobile.
    fn attach_to_root(&self) -> Result<RwLockReadGuard<'_, ()>, BpfError> {
        let held = self.attach_lock.0.read().unwrap_or_else(PoisonError::into_inner);
        self.selector().attach_to_root().inspect_err(|error| {
            tracing::warn!(
                %error,
                "cannot attach the eBPF programs to the root cgroup: processes with open sockets \
                cannot become mobile"
            );
        })?;
        Ok(held)
    }

    /// Attaches the eBPF programs to the mobile cgroup alone once no process is mobile, so that
    /// ordinary processes bear no cost.
    pub(super) fn attach_to_mobile_only(&self) {
        // A process is becoming mobile; the next sweep tries again.
        let Ok(_guard) = self.attach_lock.0.try_write() else { return };
        if self.slice().id() != 0 || !self.cgroup.pids().is_ok_and(|pids| pids.is_empty()) {
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
