//! The init process of a virtual machine that `cargo xtask test vm` boots.
//!
//! Mounts file systems, runs the cases, and powers the machine off.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, setsid};

/// The console line that announces a completed boot, followed by the kernel's release.
pub const VM_STARTED: &str = "vm: started ";

/// The console line that announces the end of all commands, followed by the number of failed ones.
pub const VM_ENDED: &str = "vm: ended ";

/// The file of commands that the virtual machine runs, one on each line, of words without spaces.
const COMMANDS: &str = "/mobile/commands";

/// The file systems that the virtual machine mounts: source, mount point, type and options of each.
const MOUNTS: &[(&str, &str, &str, &str)] = &[
    ("proc", "/proc", "proc", ""),
    ("sys", "/sys", "sysfs", ""),
    ("dev", "/dev", "devtmpfs", ""),
    ("pts", "/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666"),
    ("shm", "/dev/shm", "tmpfs", "mode=1777"),
    ("run", "/run", "tmpfs", "mode=755"),
    ("tmp", "/tmp", "tmpfs", "mode=1777"),
    ("cgroup", "/sys/fs/cgroup", "cgroup2", ""),
    ("bpf", "/sys/fs/bpf", "bpf", "mode=700"),
];

/// Mounts the file systems, runs the commands and powers the virtual machine off.
pub fn run() {
    match system().and_then(|()| commands()) {
        Ok(failed) => println!("{VM_ENDED}{failed}"),
        Err(error) => println!("vm: {error:#}\n{VM_ENDED}1"),
    }
    // SAFETY: a system call with an integer argument. This is process 1 of a test machine, so
    // nothing else is lost.
    unsafe { nix::libc::reboot(nix::libc::RB_POWER_OFF) };
}

fn system() -> Result<()> {
    for (what, at, kind, options) in MOUNTS {
        if let Err(error) = std::fs::create_dir(at)
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot make {at}"));
        }
        mount(Some(*what), *at, Some(*kind), MsFlags::empty(), Some(*options))
            .with_context(|| format!("cannot mount {at}"))?;
    }
    // Elsewhere udev creates the tun device's node, and opening the node loads the module.
    for argv in [&["modprobe", "tun"][..], &["ip", "link", "set", "lo", "up"]] {
        let status = command(argv)?.status().with_context(|| format!("cannot start {}", argv[0]))?;
        if !status.success() {
            bail!("{argv:?}: {status}");
        }
    }
    println!("{VM_STARTED}{}", std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    Ok(())
}

/// Runs the commands in the file [`COMMANDS`] one after the other, and returns how many failed.
fn commands() -> Result<u32> {
    let list = std::fs::read_to_string(COMMANDS).with_context(|| format!("cannot read {COMMANDS}"))?;
    let mut failed = 0;
    for line in list.lines() {
        println!("vm: {line}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let child = command(&words)?.spawn().with_context(|| format!("cannot start {line}"))?;
        let status = wait_for(Pid::from_raw(child.id().try_into()?))?;
        if !matches!(status, WaitStatus::Exited(_, 0)) {
            println!("vm: {line}: {status:?}");
            failed += 1;
        }
    }
    Ok(failed)
}

fn command(words: &[&str]) -> Result<Command> {
    let (program, args) = words.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs([
        ("PATH", "/usr/sbin:/usr/bin"),
        ("HOME", "/root"),
        (crate::BIN_DIR, "/mobile"),
        ("MATRIX", "older"),
        ("MATRIX_DOCUMENT", "/mobile/security.md"),
    ]);
    command.current_dir(Path::new("/root"));
    // SAFETY: one system call between fork and exec. The new session keeps the console's signals
    // away from the command.
    unsafe { command.pre_exec(|| Ok(setsid().map(drop)?)) };
    Ok(command)
}

/// Waits for the child process, and reaps orphaned processes meanwhile, as process 1 must.
fn wait_for(child: Pid) -> Result<WaitStatus> {
    loop {
        let status = wait().context("cannot wait for children")?;
        if status.pid() == Some(child) {
            return Ok(status);
        }
    }
}
