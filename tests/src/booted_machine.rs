//! A machine of the lab with a file system of its own and a booted systemd, in which packages can
//! be installed.
//!
//! All changes to its file system are lost when the machine is powered off.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::cgroup::cgroup2_root;
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
    /// The mount namespace with the machine's files, as they are before each boot.
    files: File,
    /// The file to which systemd writes.
    log: PathBuf,
}

/// The script that boots systemd in the machine's mount namespace.
const BOOT_SCRIPT: &str = include_str!("booted_machine_boot.sh");

/// A shell script that removes the kernel objects that a reboot removes from a network namespace,
/// except the lab's links, addresses and routes.
const FORGET: &str = "nft flush ruleset; ip link delete mobile0 2>/dev/null; \
    for family in -4 -6; do ip $family rule flush; ip $family rule add priority 32766 lookup main; \
    for table in 7700 7701; do ip $family route flush table $table 2>/dev/null; done; done; true";

/// Waits until systemd runs as the child of `boot`, and returns its process ID.
fn first_process(boot: &mut Process) -> Result<i32> {
    let pid = boot.pid();
    wait_for("the machine's first process", BOOT, || {
        if let Some(status) = boot.ended()? {
            return Ok(Some(Err(anyhow!("{status}; systemd said: {}", boot.output()))));
        }
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let Some(child) = children.split_whitespace().next() else { return Ok(None) };
        let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        Ok(if name.trim() == "systemd" { Some(Ok(child.parse()?)) } else { None })
    })?
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
        let mut boot = ns.command("sh");
        boot.args(["-c", include_str!("booted_machine.sh"), "boot"])
            .arg(&root)
            .arg(lab.cgroup().path().join(&machine))
            .arg(&shared)
            .arg(added.unwrap_or(Path::new("")))
            .arg(BOOT_SCRIPT);
        let log = lab.dir().join(format!("{}-systemd.txt", ns.name()));
        let mut systemd = Process::start(&format!("systemd of {}", ns.name()), &mut boot, &log)?;
        let init = first_process(&mut systemd)?;
        // systemd itself is in another mount namespace than the process that waits for it.
        let files = File::open(format!("/proc/{}/ns/mnt", systemd.pid()))?;
        let cgroup = Path::new(lab.name()).join(&machine);
        let machine = Self { systemd, ns: ns.clone(), init, cgroup, shared, files, log };
        machine.wait_running()?;
        Ok(machine)
    }

    /// Reboots the machine, and waits until systemd reports "running" again.
    ///
    /// The files stay; processes, kernel objects, /run and /tmp do not.
    pub fn reboot(&mut self) -> Result<()> {
        // The shell that runs the command may be killed before it reports success.
        let _ = self.try_run("systemctl reboot");
        self.systemd.wait(COMMAND)?;
        // The network namespace and the hierarchy of cgroups belong to the lab and outlive systemd.
        self.ns.run(&["sh", "-c", FORGET])?;
        let cgroup = cgroup2_root()?.join(&self.cgroup);
        let below = "find \"$0\" -mindepth 1 -depth -type d -delete && mkdir \"$0/session\"";
        finish_within(Command::new("sh").args(["-c", below]).arg(&cgroup), None, COMMAND)?.ok()?;

        let mut boot = self.ns.command("sh");
        boot.args([
            "-c",
            "echo $$ >\"$1/cgroup.procs\" && exec nsenter --mount=\"$2\" -- $3 sh -e -c \"$4\"",
            "boot",
        ])
        .arg(&cgroup)
        .arg(format!("/proc/{}/fd/{}", std::process::id(), self.files.as_raw_fd()))
        .args(["unshare --mount --pid --uts --ipc --fork --kill-child --propagation private", BOOT_SCRIPT]);
        self.systemd = Process::start("systemd after a reboot", &mut boot, &self.log)?;
        self.init = first_process(&mut self.systemd)?;
        self.wait_running()
    }

    fn wait_running(&self) -> Result<()> {
        wait_for("the machine to be up", BOOT, || {
            let state = self.try_run("systemctl is-system-running")?;
            Ok((state.stdout.trim() == "running").then_some(()))
        })
        .with_context(|| {
            let failed = self.try_run("systemctl list-units --failed --no-pager --plain");
            let failed = failed.map(|done| done.stdout).unwrap_or_default();
            format!("{failed}\nsystemd said: {}", self.systemd.output())
        })
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
