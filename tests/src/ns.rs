//! An anonymous network namespace, and commands that run in it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getpid, getppid, setgid, setgroups, setuid};

use crate::cgroup::LabCgroup;
use crate::process::finish_within;
use crate::wait::{PATIENCE, wait_for};

/// The timeout of a short command (`ip`, `nft`, a command of `mobile` or `home-relay`) on a busy
/// machine.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace without a name in the file system, held open by a file descriptor of the
/// test process.
#[derive(Clone)]
pub struct Ns {
    name: &'static str,
    fd: Arc<OwnedFd>,
    cgroup: Arc<LabCgroup>,
}

impl Ns {
    /// Creates a namespace whose loopback device is up. Programs started in it join `cgroup`.
    pub fn new(name: &'static str, cgroup: Arc<LabCgroup>) -> Result<Self> {
        let fd = on_thread(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: is this root?")?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        })?;
        let ns = Self { name, fd: Arc::new(fd), cgroup };
        // Without duplicate address detection IPv6 addresses are usable at once; no other host is
        // on these links.
        for key in ["all", "default"] {
            ns.sysctl(&format!("net/ipv6/conf/{key}/accept_dad"), "0")?;
            ns.sysctl(&format!("net/ipv6/conf/{key}/accept_ra"), "0")?;
            ns.sysctl(&format!("net/ipv6/conf/{key}/disable_ipv6"), "0")?;
        }
        ns.sysctl("net/ipv6/conf/default/router_solicitations", "0")?;
        // Otherwise forwarding is inherited from the machine that runs the lab.
        for key in ["all", "default"] {
            ns.sysctl(&format!("net/ipv4/conf/{key}/forwarding"), "0")?;
            ns.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
        }
        ns.ip(&["link set lo up"])?;
        Ok(ns)
    }

    /// Returns the namespace's name in messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns a command that runs inside the namespace and in the lab's cgroup, and that is killed
    /// when the thread that starts it ends.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = Arc::clone(&self.fd);
        let cgroup = Arc::clone(&self.cgroup);
        let parent = getpid();
        // SAFETY: the closure makes only system calls between fork and exec: no allocation, no
        // locks.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                if getppid() != parent {
                    return Err(nix::errno::Errno::ESRCH.into());
                }
                cgroup.join_self()?;
                setns(fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        command
    }

    /// Returns a command as [`Ns::command`] does, from a program and its arguments.
    #[must_use]
    pub fn command_line(&self, argv: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        let mut command = self.command(&argv[0]);
        command.args(&argv[1..]);
        command
    }

    /// Returns a command as [`Ns::command`] does, run as the user `uid` without supplementary
    /// groups.
    pub fn command_as(&self, uid: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command(program);
        // SAFETY: the closure makes only system calls between fork and exec: no allocation, no
        // locks.
        unsafe {
            command.pre_exec(move || {
                setgroups(&[])?;
                setgid(Gid::from_raw(uid))?;
                setuid(Uid::from_raw(uid))?;
                // Changing the user id has cleared the signal.
                set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        command
    }

    /// Runs a short command to its end and returns its stdout. Fails, with the command's stderr, if
    /// the exit status is not 0.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let (program, args) = argv.split_first().context("an empty command")?;
        let mut command = self.command(program);
        command.args(args);
        let done = finish_within(&mut command, None, COMMAND_PATIENCE)
            .with_context(|| format!("`{}` in {}", argv.join(" "), self.name))?;
        if !done.status.success() {
            bail!("`{}` in {}: {}: {}", argv.join(" "), self.name, done.status, done.stderr.trim());
        }
        Ok(done.stdout)
    }

    /// Runs commands of `ip` (lines without the leading word `ip`) as one batch.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        self.feed(&["ip", "-batch", "-"], &lines.join("\n"))
    }

    /// Runs a command with `input` as its stdin.
    pub fn feed(&self, argv: &[&str], input: &str) -> Result<()> {
        let (program, args) = argv.split_first().context("an empty command")?;
        let mut command = self.command(program);
        command.args(args);
        let done = finish_within(&mut command, Some(input.as_bytes()), COMMAND_PATIENCE)?;
        if !done.status.success() {
            let output = done.stderr.trim();
            bail!("`{}` in {}: {}: {output}; its input:\n{input}", argv.join(" "), self.name, done.status);
        }
        Ok(())
    }

    /// Waits until a program in the namespace listens on a TCP port.
    ///
    /// A server's own announcement cannot be used, since some print it too early or not at all.
    pub fn wait_listening(&self, port: u16) -> Result<()> {
        let filter = format!("sport = :{port}");
        wait_for(&format!("somebody to listen at port {port} in {}", self.name), PATIENCE, || {
            Ok((!self.run(&["ss", "-Hltn", &filter])?.is_empty()).then_some(()))
        })
    }

    /// Writes `value` to the namespace's `/proc/sys/<key>`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.enter(|| std::fs::write(&path, value))
            .with_context(|| format!("{}: cannot set {key} to {value}", self.name))
    }

    /// Runs `work` on a new thread inside the namespace, waits for its end and returns its result.
    ///
    /// `work` must not start a child process, which would be killed at the end of the thread.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            self.set_current_thread();
            work()
        })
    }

    /// Starts a thread inside the namespace that runs `work`, and returns without waiting.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let ns = self.clone();
        std::thread::spawn(move || {
            ns.set_current_thread();
            work()
        })
    }

    /// Returns a path under `/proc` by which child processes can refer to the namespace.
    pub(crate) fn handle(&self) -> String {
        format!("/proc/{}/fd/{}", getpid(), self.fd.as_raw_fd())
    }

    /// Moves the calling thread into the namespace permanently.
    pub(crate) fn set_current_thread(&self) {
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| {
            panic!("cannot enter {} (fd {}): {error}", self.name, self.fd.as_raw_fd())
        });
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
