//! A machine of the lab with a file system of its own and a booted systemd, in which packages can
//! be installed.
//!
//! All changes to its file system are lost when the machine is powered off.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::Lab;
use crate::mount_namespace::in_mount_namespace;
use crate::ns::Ns;
use crate::process::{CommandOutput, Process, finish_within};
use crate::wait::wait_for;

/// The timeout of a machine's boot, which takes two seconds if the host is idle.
const BOOT: Duration = Duration::from_secs(60);

/// The timeout of a command on a machine; the longest, installing a package, takes a few seconds.
const COMMAND: Duration = Duration::from_secs(60);

/// A machine with a running systemd, powered off when dropped.
pub struct BootedMachine {
    systemd: Process,
    ns: Ns,
    /// The process id of the machine's init process in the PID namespace of the test process.
    init: i32,
    /// The machine's cgroup, relative to the root of the hierarchy.
    pub cgroup: PathBuf,
    /// The directory that is mounted as `/lab` in the machine.
    shared: PathBuf,
}

impl BootedMachine {
    /// Boots a machine whose network namespace is `ns`, and waits until systemd reports "running".
    pub fn boot(lab: &Lab, ns: &Ns) -> Result<Self> {
        Self::boot_from(lab, ns, None)
    }

    /// Boots a machine as [`boot`](Self::boot) does, on a copy of this machine's files to which the
    /// files in the directory `added` have been added.
    pub fn boot_with(lab: &Lab, ns: &Ns, added: &Path) -> Result<Self> {
        Self::boot_from(lab, ns, Some(added))
    }

    fn boot_from(lab: &Lab, ns: &Ns, added: Option<&Path>) -> Result<Self> {
        let root = lab.dir().join(format!("{}-root", ns.name()));
        let shared = lab.dir().join(format!("{}-shared", ns.name()));
        for dir in [&root, &shared] {
            std::fs::create_dir(dir)?;
        }
        let machine = format!("machine-{}", ns.name());
        let cgroup = Path::new(lab.name()).join(&machine);
        let mut boot = ns.command("sh");
        boot.args(["-c", include_str!("booted_machine.sh"), "boot"])
            .arg(&root)
            .arg(lab.cgroup().path().join(&machine))
            .arg(&shared)
            .arg(added.unwrap_or(Path::new("")));
        let name = format!("systemd of {}", ns.name());
        let mut systemd =
            Process::start(&name, &mut boot, &lab.dir().join(format!("{}-systemd.txt", ns.name())))?;
        let pid = systemd.pid();
        let said = |systemd: &Process| format!("systemd said: {}", systemd.output());
        let init = wait_for("the machine's first process", BOOT, || {
            if let Some(status) = systemd.ended()? {
                bail!("{status}; {}", said(&systemd));
            }
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            let Some(child) = children.split_whitespace().next() else { return Ok(None) };
            let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            Ok(if name.trim() == "systemd" { Some(child.parse()?) } else { None })
        })?;
        let machine = Self { systemd, ns: ns.clone(), init, cgroup, shared };
        wait_for("the machine to be up", BOOT, || {
            let state = machine.try_run("systemctl is-system-running")?;
            Ok((state.stdout.trim() == "running").then_some(()))
        })
        .with_context(|| {
            let failed = machine.try_run("systemctl list-units --failed --no-pager --plain");
            format!("{}\n{}", failed.map(|done| done.stdout).unwrap_or_default(), said(&machine.systemd))
        })?;
        Ok(machine)
    }

    /// Copies a file into the machine's `/lab`.
    pub fn copy_in(&self, file: &Path) -> Result<()> {
        // `cp` writes the copy, since a child that another case forks meanwhile could inherit this
        // process's writable descriptor, and a program that is open for writing cannot be executed.
        let mut cp = Command::new("cp");
        finish_within(cp.arg(file).arg(&self.shared), None, COMMAND)?
            .ok()
            .with_context(|| format!("cannot give {} to {}", file.display(), self.ns.name()))?;
        Ok(())
    }

    /// Returns a command that runs a shell script in the machine as root.
    #[must_use]
    pub fn command(&self, script: &str) -> Command {
        let mut command = self.ns.command("nsenter");
        command.arg(format!("--target={}", self.init)).args([
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--",
            "sh",
            "-c",
            // The shell first moves into the machine's own cgroup, as every process of the machine.
            "echo $$ >\"$1\" && exec bash -e -o pipefail -c \"$0\"",
            script,
        ]);
        command.arg(Path::new("/sys/fs/cgroup").join(&self.cgroup).join("session/cgroup.procs"));
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root");
        command
    }

    /// Returns a command that runs a shell script with the machine's files, but in the network and
    /// PID namespaces and the cgroup of the test process.
    ///
    /// A lab needs these: its names contain the process ID of the test process.
    #[must_use]
    pub fn command_with_files(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init)).args(["--mount", "--"]);
        command.args(in_mount_namespace("mount -t proc proc /proc")).args(["sh", "-c", script]);
        command
    }

    /// Runs a shell script in the machine and returns its output, whether it succeeds or fails.
    pub fn try_run(&self, script: &str) -> Result<CommandOutput> {
        finish_within(&mut self.command(script), None, COMMAND)
            .with_context(|| format!("on {}: {script}", self.ns.name()))
    }

    /// Waits until the machine's systemd has stopped every unit: it has exited, or has replaced
    /// itself by `systemd-shutdown`, which kills the remaining processes.
    pub fn wait_shut_down(&mut self) -> Result<()> {
        let comm = format!("/proc/{}/comm", self.init);
        wait_for("the machine to shut down", COMMAND, || {
            let name = std::fs::read_to_string(&comm).unwrap_or_default();
            Ok((self.systemd.ended()?.is_some() || name.trim() != "systemd").then_some(()))
        })
    }

    /// Runs a shell script in the machine and returns its stdout. Fails, with the journal's end, if
    /// the script fails.
    pub fn run(&self, script: &str) -> Result<String> {
        self.try_run(script)?.ok().with_context(|| {
            let journal = self.try_run("journalctl --no-pager --output=short-monotonic --lines=40");
            let journal = journal.map(|done| done.stdout).unwrap_or_default();
            format!("on {}: {script}\nits journal:\n{journal}", self.ns.name())
        })
    }
}
