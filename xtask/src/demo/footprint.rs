//! Checks that a lab leaves no kernel object or file on the machine it ran on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::prctl;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::shell;

/// The kernel objects and files that the machine had before the lab.
pub(crate) struct Footprint {
    before: BTreeSet<String>,
}

/// The timeout for killed processes and released namespaces to disappear.
const PATIENCE: Duration = Duration::from_secs(5);

impl Footprint {
    /// Records the machine's kernel objects and files before the lab.
    ///
    /// Also makes xtask a subreaper: processes that the lab's programs abandon become its children.
    pub(crate) fn take() -> Result<Self> {
        prctl::set_child_subreaper(true).context("cannot become the parent of abandoned processes")?;
        Ok(Self { before: objects()? })
    }

    /// Fails with a list of the kernel objects and files that the machine did not have before the
    /// lab.
    pub(crate) fn check(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            reap();
            let left: Vec<String> = objects()?.difference(&self.before).cloned().collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("left behind:\n  {}", left.join("\n  "));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Returns every object of the kinds that the lab, the agent and the relay make, each as one line
/// of text.
fn objects() -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for device in names("/sys/class/net") {
        all.insert(format!("device {device}"));
    }
    for namespace in names("/run/netns") {
        all.insert(format!("named namespace {namespace}"));
    }
    for fd in fs::read_dir("/proc/self/fd").context("cannot list the open descriptors")?.flatten() {
        if let Ok(target) = fs::read_link(fd.path())
            && target.to_string_lossy().starts_with("net:[")
        {
            all.insert(format!("namespace {}, still open here", target.display()));
        }
    }
    for family in ["-4", "-6"] {
        // Without IPv6, ip fails for the IPv6 rules.
        let rules = shell::output(Command::new("ip").args([family, "rule", "show"])).unwrap_or_default();
        all.extend(rules.lines().map(|rule| format!("rule {family} {rule}")));
    }
    for mount in mounts(&["bpf", "cgroup2"]) {
        ours_below(Path::new(&mount), &mut all);
    }
    for name in names(std::env::temp_dir()).into_iter().filter(|name| is_ours(name)) {
        all.insert(format!("temporary folder {name}"));
    }
    all.extend(children());
    Ok(all)
}

/// Returns whether an object's name belongs to this process's lab or to one of the programs.
///
/// Names of labs contain the process ID of their owner, since labs of other processes may run at
/// the same time.
fn is_ours(name: &str) -> bool {
    let of_lab = name.strip_prefix("mobile-lab-").map(|rest| rest.split('-').next().unwrap_or(rest));
    match of_lab {
        Some(pid) => pid == std::process::id().to_string(),
        None => name.contains("mobile") || name.contains("home-relay"),
    }
}

fn ours_below(folder: &Path, all: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_ours(&entry.file_name().to_string_lossy()) {
            all.insert(format!("pin or cgroup {}", entry.path().display()));
        } else if is_folder && !entry.file_name().to_string_lossy().starts_with("mobile-lab-") {
            ours_below(&entry.path(), all);
        }
    }
}

/// Returns where file systems of these types are mounted.
fn mounts(kinds: &[&str]) -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind) = (fields.next()?, fields.next()?);
            kinds.contains(&kind).then(|| place.to_owned())
        })
        .collect()
}

fn children() -> Vec<String> {
    let own = std::process::id().to_string();
    let of_ours = |pid: &String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name, in parentheses, may itself contain spaces and parentheses.
        let (head, tail) = stat.rsplit_once(") ")?;
        let parent = tail.split(' ').nth(1)?;
        (parent == own).then(|| format!("process {head})"))
    };
    names("/proc")
        .iter()
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .filter_map(of_ours)
        .collect()
}

/// Reaps child processes that nobody waits for. May be called only while no other part of the
/// program has children.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_of_this_process_s_lab_count() {
        assert!(is_ours(&format!("mobile-lab-{}-1", std::process::id())));
        assert!(!is_ours("mobile-lab-1-1"));
        assert!(is_ours("mobile"));
        assert!(!is_ours("system.slice"));
    }

    #[test]
    fn a_child_left_running_is_found() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let found = children();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.iter().any(|line| line.contains("sleep")), "{found:?}");
    }
}
