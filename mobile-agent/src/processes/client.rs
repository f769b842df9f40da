//! The agent's side of the process helper: starts the helper and sends it jobs.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use super::helper::{IGNORED_SIGNALS, VERB};
use super::job::{Job, JobError, Setup};
use crate::selection::account::AccountMaps;

/// Timeout for finding the process that has a TUN device open; a handover waits for the reply.
const FIND_TUN_HOLDER_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle to the running process helper.
#[derive(Clone, Debug)]
pub(crate) struct ProcessHelper {
    channel: Arc<OwnedFd>,
}

impl ProcessHelper {
    /// Starts the helper with the capabilities of the calling process, which the caller drops
    /// afterwards.
    ///
    /// The helper ends when the last copy of the returned handle is dropped. If it ends earlier, it
    /// has failed.
    pub(crate) fn start(setup: &Setup, accounts: &AccountMaps) -> anyhow::Result<(Self, Child)> {
        // A sequenced-packet socket preserves message boundaries, and each side notices the end of
        // the other.
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("cannot create the socket pair for the process helper")?;
        let setup = serde_json::to_vec(setup).context("cannot encode the settings of the process helper")?;
        send(ours.as_fd(), &setup, &accounts.descriptors())
            .context("cannot send the settings to the process helper")?;
        // The file that this process runs, even while an upgrade replaces it on disk.
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).stdin(Stdio::from(theirs)).stdout(Stdio::null());
        // The helper must not notify systemd as a service of its own.
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(variable);
        }
        // The helper inherits the blocked signals, so that no signal ends it before it has started.
        let signals = SigSet::from_iter(IGNORED_SIGNALS);
        let former = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK).context("cannot block signals")?;
        let child = command.spawn();
        former.thread_set_mask().context("cannot unblock signals")?;
        let child = child.context("cannot start the process helper (/proc/self/exe)")?;
        Ok((Self { channel: Arc::new(ours) }, child))
    }

    /// Sends a job to the helper and returns its result; `caller` is the pidfd of the process that
    /// sent the agent a request. Blocks the thread.
    pub(crate) fn run<T: DeserializeOwned>(
        &self,
        job: &Job,
        caller: Option<BorrowedFd<'_>>,
    ) -> Result<T, JobError> {
        let reply = self.exchange(job, caller);
        let reply = reply.map_err(|error| {
            JobError::failed(format!("the agent's process helper did not answer ({error}): try again"))
        })?;
        let reply: Result<T, JobError> =
            serde_json::from_slice(&reply).map_err(|error| JobError::of(&error))?;
        reply
    }

    fn exchange(&self, job: &Job, caller: Option<BorrowedFd<'_>>) -> io::Result<Zeroizing<Vec<u8>>> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let descriptors: Vec<_> = std::iter::once(theirs.as_fd()).chain(caller).collect();
        send(self.channel.as_fd(), &[0], &descriptors)?;
        drop(theirs);
        if matches!(job, Job::FindTunHolder { .. }) {
            ours.set_read_timeout(Some(FIND_TUN_HOLDER_TIMEOUT))?;
        }
        ours.write_all(&serde_json::to_vec(job)?)?;
        ours.shutdown(std::net::Shutdown::Write)?;
        // The reply may contain the private key.
        let mut reply = Zeroizing::new(Vec::new());
        ours.read_to_end(&mut reply)?;
        if reply.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(reply) }
    }
}

/// Sends one message with at most two file descriptors to the process helper.
fn send(channel: BorrowedFd<'_>, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(channel, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
