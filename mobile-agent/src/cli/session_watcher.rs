//! A process that tells the user of `mobile run` when the session that the command waits for is
//! there.
//!
//! `mobile run` executes the command in its own place, so another process has to watch. The watcher
//! is forked before the process becomes mobile, and twice, so that it is neither mobile nor a child
//! of the command. It holds stderr alone, and ends with the command or once there is a session.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use mobile_host::control::Client;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, dup2_stdin, dup2_stdout, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::protocol::{Reply, Request};

/// The interval at which the watcher asks the agent for the session.
const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// Starts the watcher of the command that this process will execute. The caller has one thread.
pub(super) fn start(socket: &Path) -> anyhow::Result<()> {
    let command = pidfd_open(getpid(), PidfdFlags::empty()).context("cannot open a pidfd")?;
    // SAFETY: this process has one thread, so the child may call any function.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Parent { child } => {
            // Fails if the caller ignores SIGCHLD; the kernel then reaps the child.
            let _ = waitpid(child, None);
            Ok(())
        }
        ForkResult::Child => {
            // SAFETY: the child of a process with one thread has one thread.
            if matches!(unsafe { fork() }, Ok(ForkResult::Child)) {
                watch(&command, socket);
            }
            std::process::exit(0)
        }
    }
}

fn watch(command: &OwnedFd, socket: &Path) {
    release_inherited(command);
    loop {
        // A pidfd becomes readable when its process ends.
        match poll(&mut [PollFd::new(command, PollFlags::IN)], Some(&INTERVAL)) {
            Ok(0) => {}
            Err(Errno::INTR) => continue,
            _ => return,
        }
        let reply = Client::connect(socket).and_then(|mut agent| agent.call(&Request::Session));
        if matches!(reply, Ok(Reply::Session(None))) {
            eprintln!("mobile: the session is there: connections use the tunnel");
            return;
        }
    }
}

/// Releases what the command's pipes, locks and file systems would otherwise be held by, and leaves
/// the keys of the terminal to the command.
fn release_inherited(command: &OwnedFd) {
    let keys: SigSet = [Signal::SIGINT, Signal::SIGQUIT].into_iter().collect();
    let _ = keys.thread_block();
    let _ = std::env::set_current_dir("/");
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let _ = dup2_stdin(&null);
        let _ = dup2_stdout(&null);
    }
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let names: Vec<PathBuf> = entries.flatten().map(|entry| entry.file_name().into()).collect();
    let open = names.iter().filter_map(|name| name.to_str()?.parse::<i32>().ok());
    for descriptor in open.filter(|open| *open > 2 && *open != command.as_raw_fd()) {
        let _ = nix::unistd::close(descriptor);
    }
}
