//! The main loop of the process helper: handles the agent's jobs until the agent has ended.

use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use mobile_host::confine::{Capabilities, Confinement};
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Serialize;
use zeroize::Zeroizing;

use super::access::is_privileged;
use super::job::{Job, JobError, Setup};
use super::load_config;
use super::tun_holder;
use super::work::Worker;
use crate::selection::account::Accounts;
use crate::selection::cgroup::MobileCgroup;
use crate::selection::sockets::Mark;

/// The hidden verb of `mobile` with which the agent starts its process helper.
pub(crate) const VERB: &str = "agent-process-helper";

/// The signals that the helper ignores. Ctrl-C and systemd signal the whole process group; the
/// agent still sends jobs then, and the helper ends with the agent.
pub(super) const IGNORED_SIGNALS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// The maximum length of a message from the agent, in bytes. The longest message has the settings,
/// with two paths.
const MAX_MESSAGE: usize = 16 * 1024;

/// Runs `mobile agent-process-helper`, whose standard input is the socket to the agent.
pub(crate) fn main(log: Option<&str>) -> anyhow::Result<()> {
    mobile_host::log::init(log, "MOBILE_LOG")?;
    let stdin = io::stdin();
    let channel = stdin.as_fd();
    SigSet::from_iter(IGNORED_SIGNALS).thread_block().context("cannot block signals")?;
    let first = receive(channel)
        .context("standard input is not the agent's channel: only `mobile agent` may start this verb")?;
    let Some((setup, descriptors)) = first else { bail!("the agent ended before it sent the settings") };
    let worker = Arc::new(worker(&setup, descriptors)?);
    confinement().apply().context("the process helper cannot drop privileges")?;
    tracing::debug!("the process helper is ready");
    while let Some((_, descriptors)) = receive(channel).context("the channel to the agent failed")? {
        let mut descriptors = descriptors.into_iter();
        let Some(stream) = descriptors.next().map(UnixStream::from) else {
            tracing::warn!("ignored a job of the agent that came without a stream");
            continue;
        };
        let caller = descriptors.next();
        let worker = Arc::clone(&worker);
        let work = move || match handle(&worker, stream, caller) {
            Ok(()) => {}
            Err(error) if is_broken_pipe(&error) => {
                tracing::debug!("the agent ended before the result of a job was sent");
            }
            Err(error) => tracing::warn!(%error, "cannot send the result of a job to the agent"),
        };
        // If the thread cannot start, its stream closes, and the agent reports that to its client.
        if let Err(error) = std::thread::Builder::new().name("job".into()).spawn(work) {
            tracing::warn!(%error, "cannot start a thread for a job");
        }
    }
    Ok(())
}

/// Returns whether an error is that of a write to an agent that has ended.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Returns the capabilities and system calls that the process helper needs for its jobs. Files are
/// not restricted, because Landlock would hide the file descriptors of other processes.
fn confinement() -> Confinement {
    Confinement {
        capabilities: Capabilities::BPF
            | Capabilities::DAC_OVERRIDE
            | Capabilities::NET_ADMIN
            | Capabilities::SYS_PTRACE,
        syscalls: &[libc::SYS_bpf, libc::SYS_pidfd_getfd],
        // Users and groups may be served by sssd or systemd-userdb over Unix sockets.
        unix_streams: true,
        files: None,
    }
}

fn worker(setup: &[u8], descriptors: Vec<OwnedFd>) -> anyhow::Result<Worker> {
    let setup: Setup = serde_json::from_slice(setup).context("cannot decode the agent's settings")?;
    let Ok(maps) = <[OwnedFd; 2]>::try_from(descriptors) else {
        bail!("the agent did not send 2 map descriptors");
    };
    let cgroup = MobileCgroup::existing(setup.cgroup.as_deref())?
        .context("the mobile cgroup was removed while the agent started")?;
    Ok(Worker {
        config: setup.config,
        cgroup: cgroup.with_slice(setup.slice.as_deref()),
        mark: Mark { mark: setup.mark, mask: setup.mark_mask, key: setup.mark_key },
        accounts: Accounts::from_descriptors(maps)?,
    })
}

/// Receives one message of the agent with its file descriptors; returns `None` once the agent has
/// ended.
fn receive(channel: BorrowedFd<'_>) -> anyhow::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let into = &mut [IoSliceMut::new(&mut bytes)];
        match recvmsg(channel, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    ensure!(received.bytes < MAX_MESSAGE, "a message of the agent is longer than {MAX_MESSAGE} bytes");
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(Some((bytes, rights.flatten().collect())))
}

/// Reads a job from `stream`, does it and writes the result to the same stream; `caller` is the
/// pidfd of the process that sent the agent a request.
fn handle(worker: &Worker, mut stream: UnixStream, caller: Option<OwnedFd>) -> anyhow::Result<()> {
    let mut job = Vec::new();
    stream.read_to_end(&mut job)?;
    let job: Job = serde_json::from_slice(&job)?;
    tracing::trace!(?job, "job");
    let reply = match job {
        Job::IsPrivileged { uid, gid, group } => encode(&Ok(is_privileged(uid, gid, Some(&group)))),
        Job::HoldsSockets { caller: pid } => encode(&worker.holds_sockets(pid, caller)),
        Job::SetMobile { pid, caller: own, requester, mobile, with_sockets } => {
            encode(&worker.set_mobile(requester, pid, (own, caller), mobile, with_sockets))
        }
        Job::Change { pids, requester, persistent, mobile } => {
            encode(&Ok(worker.change(requester, &pids, &persistent, mobile)))
        }
        Job::List { requester, persistent } => encode(&worker.list(requester, &persistent)),
        Job::FindTunHolder { device } => encode(&Ok(tun_holder::find(&device, &worker.cgroup))),
        Job::LoadConfig => encode(&load_config::load(worker.config.as_deref())),
        Job::SweepAccounts => encode(&worker.sweep_accounts()),
        Job::EnsureSlice => encode(&worker.ensure_slice()),
        Job::RemoveCgroup { path } => encode(&remove_cgroup(path.as_deref())),
    };
    Ok(stream.write_all(&reply?)?)
}

fn remove_cgroup(path: Option<&Path>) -> Result<(), JobError> {
    match MobileCgroup::existing(path).map_err(|error| JobError::of(&error))? {
        Some(cgroup) => cgroup.remove().map_err(|error| JobError::of(&error)),
        None => Ok(()),
    }
}

fn encode<T: Serialize>(reply: &Result<T, JobError>) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    serde_json::to_vec(reply).map(Zeroizing::new)
}
