//! The cgroup that contains every program of one lab, including daemons that those programs start,
//! so that all can be killed at once.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The prefix of the names that labs use; the process id and a number follow.
pub(crate) const PREFIX: &str = "mobile-lab-";

/// A cgroup (v2) for the processes of one lab.
pub struct LabCgroup {
    path: PathBuf,
    procs: File,
}

impl LabCgroup {
    /// Creates the cgroup `name` at the root of the cgroup2 mount.
    pub fn new(name: &str) -> Result<Self> {
        let path = cgroup2_root()?.join(name);
        std::fs::create_dir(&path)
            .with_context(|| format!("cannot make cgroup {}: is this root?", path.display()))?;
        let procs = OpenOptions::new().write(true).open(path.join("cgroup.procs"))?;
        Ok(Self { path, procs })
    }

    /// Returns the path of the cgroup.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling process into the cgroup; may be called between fork and exec.
    pub(crate) fn join_self(&self) -> io::Result<()> {
        // SAFETY: the buffer is a static of the given length, and the descriptor is open.
        let written = unsafe { nix::libc::write(self.procs.as_raw_fd(), b"0".as_ptr().cast(), 1) };
        if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Kills every process in the cgroup, and waits up to 10 s until the cgroup is removed.
    pub(crate) fn kill(&self) {
        remove(&self.path);
    }

    /// Returns the processes in the cgroup and in all cgroups below it.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        pids_below(&self.path)
    }
}

impl Drop for LabCgroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Returns the mount point of cgroup2.
pub(crate) fn cgroup2_root() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .context("no cgroup2 mount: the lab needs one (mount -t cgroup2 none /sys/fs/cgroup)")
}

/// Removes the cgroups, pinned eBPF programs and directories of labs whose test process has ended.
pub(crate) fn sweep() -> Result<()> {
    let root = cgroup2_root()?;
    for dir in leftovers(&root) {
        remove(&dir);
    }
    for dir in leftovers(Path::new("/sys/fs/bpf")).into_iter().chain(leftovers(&std::env::temp_dir())) {
        // Another lab may sweep the same directory at the same time.
        let _ = std::fs::remove_dir_all(&dir);
    }
    Ok(())
}

/// Removes every directory of pinned eBPF programs whose path is `start`, or `start` followed by a
/// hyphen and more.
pub(crate) fn remove_pins(start: &Path) {
    let (Some(parent), Some(name)) = (start.parent(), start.file_name()) else { return };
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let rest =
            entry.file_name().to_string_lossy().strip_prefix(&*name.to_string_lossy()).map(str::to_owned);
        // Another lab's number may begin with the digits of this lab's.
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Removes the files in which programs configured in `dir` have recorded their kernel objects, for
/// a case that failed before `cleanup`.
pub(crate) fn remove_records(dir: &Path) {
    for folder in ["/run/mobile", "/run/home-relay"] {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_json = path.extension().is_some_and(|extension| extension == "json");
            let text =
                if is_json { std::fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
            if text.contains(&format!("{}/", dir.display())) {
                let _ = std::fs::remove_file(&path);
            }
        }
        // The directory may hold another lab's record.
        let _ = std::fs::remove_dir(folder);
    }
}

fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let pid = name
                .to_str()
                .and_then(|name| name.strip_prefix(PREFIX))
                .and_then(|rest| rest.split('-').next());
            pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
        })
        .map(|entry| entry.path())
        .collect()
}

fn remove(path: &Path) {
    // Processes die asynchronously; the directories can be removed once the last one is reaped.
    let end = Instant::now() + Duration::from_secs(10);
    while path.exists() && Instant::now() < end {
        let _ = std::fs::write(path.join("cgroup.kill"), "1");
        remove_dirs(path);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn remove_dirs(path: &Path) {
    for child in subdirs(path) {
        remove_dirs(&child);
    }
    let _ = std::fs::remove_dir(path);
}

fn pids_below(path: &Path) -> Vec<i32> {
    let own = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let own = own.lines().filter_map(|line| line.parse().ok());
    own.chain(subdirs(path).iter().flat_map(|child| pids_below(child))).collect()
}

fn subdirs(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
