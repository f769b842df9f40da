//! A machine of the lab that is more than a network: systemd runs in it, packages are installed in it, and it forgets all
//! of it at the end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::Lab;
use crate::ns::Ns;
use crate::process::{Finished, Process, finish_within};
use crate::wait::wait_for;

/// Booting takes two seconds on a quiet machine.
const BOOT: Duration = Duration::from_secs(60);

/// Installing a package, the longest command of all, takes a few seconds.
const COMMAND: Duration = Duration::from_secs(60);

/// A booted machine; off when dropped.
pub struct Machine {
    systemd: Process,
    ns: Ns,
    /// The first process's id, as this machine counts.
    init: i32,
    /// Its cgroup, below the root of the hierarchy.
    pub cgroup: PathBuf,
    /// A folder of this machine that is `/lab` in there.
    shared: PathBuf,
}

impl Machine {
    /// Boots one whose network is `ns`, and waits until it is up.
    pub fn boot(lab: &Lab, ns: &Ns) -> Result<Self> {
        let root = lab.dir().join(format!("{}-root", ns.name()));
        let shared = lab.dir().join(format!("{}-shared", ns.name()));
        for dir in [&root, &shared] {
            std::fs::create_dir(dir)?;
        }
        let machine = format!("machine-{}", ns.name());
        let cgroup = Path::new(lab.name()).join(&machine);
        let mut boot = ns.command("sh");
        boot.args(["-c", include_str!("machine.sh"), "boot"])
            .arg(&root)
            .arg(lab.group().path().join(&machine))
            .arg(&shared);
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

    /// Puts a file of this machine into `/lab` of that one.
    pub fn give(&self, file: &Path) -> Result<()> {
        let name = file.file_name().context("a file has a name")?;
        std::fs::copy(file, self.shared.join(name))
            .with_context(|| format!("cannot give {} to {}", file.display(), self.ns.name()))?;
        Ok(())
    }

    /// A shell command in there, as root's.
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
            // Into the machine's own cgroups, as everything that runs there.
            "echo $$ >\"$1\" && exec bash -e -o pipefail -c \"$0\"",
            script,
        ]);
        command.arg(Path::new("/sys/fs/cgroup").join(&self.cgroup).join("session/cgroup.procs"));
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root");
        command
    }

    /// Runs a shell command to its end.
    pub fn try_run(&self, script: &str) -> Result<Finished> {
        finish_within(&mut self.command(script), None, COMMAND)
            .with_context(|| format!("on {}: {script}", self.ns.name()))
    }

    /// Waits until every unit is stopped, when systemd kills the remaining processes or has ended.
    pub fn wait_shut_down(&mut self) -> Result<()> {
        let comm = format!("/proc/{}/comm", self.init);
        wait_for("the machine to shut down", COMMAND, || {
            let name = std::fs::read_to_string(&comm).unwrap_or_default();
            Ok((self.systemd.ended()?.is_some() || name.trim() != "systemd").then_some(()))
        })
    }

    /// Runs a shell command that must succeed; what it printed.
    pub fn run(&self, script: &str) -> Result<String> {
        self.try_run(script)?.ok().with_context(|| {
            let journal = self.try_run("journalctl --no-pager --output=short-monotonic --lines=40");
            let journal = journal.map(|done| done.stdout).unwrap_or_default();
            format!("on {}: {script}\nits journal:\n{journal}", self.ns.name())
        })
    }
}
