//! The MOBILE attribute of a process: membership of the mobile cgroup.
//!
//! Children inherit the membership across fork, as the paper asks. Directories below the mobile
//! cgroup preserve the path of the cgroup that a process came from: one from `/user.slice/a.scope`
//! is mobile in `<mobile>/from/user.slice/a.scope`. So any later agent can move the process, and
//! any descendant of it, back.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    time::Duration,
};

pub(crate) use super::{cgroup_error::CgroupError, cgroup2::Cgroup2};
use super::{
    cgroup_error::{Result, io_error},
    cgroup2::{MOUNT, depth, join},
    slice::Slice,
};

/// The directory below the mobile cgroup that mirrors the processes' former cgroups.
const FROM: &str = "from";

/// The number of passes that `remove` makes over the tree of the mobile cgroup. A process that
/// forks while it is moved leaves a child behind, which the next pass moves; a process that forks
/// faster than ten passes is reported instead.
const REMOVE_PASSES: u32 = 10;

/// The pause between two passes of `remove`: an exiting process stays in its cgroup a moment longer
/// than in `/proc`.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// The mobile cgroup and the cgroup of systemd's slice: processes in either are mobile.
#[derive(Clone, Debug)]
pub(crate) struct MobileCgroup {
    cgroup2: Cgroup2,
    dir: PathBuf,
    /// The path of the mobile cgroup as /proc/PID/cgroup names it.
    path: PathBuf,
    id: u64,
    slice: Slice,
}

impl MobileCgroup {
    /// Returns the mobile cgroup, created if necessary: `path`, or the default one at the root of
    /// the first cgroup2 mount.
    pub(crate) fn ensure(path: Option<&Path>) -> Result<Self> {
        let (cgroup2, dir) = Self::locate(path)?;
        fs::create_dir_all(&dir).map_err(io_error("create the cgroup", &dir))?;
        Self::at(cgroup2, dir)
    }

    /// Returns the mobile cgroup if it exists, for verbs that must not create it.
    pub(crate) fn existing(path: Option<&Path>) -> Result<Option<Self>> {
        let (cgroup2, dir) = Self::locate(path)?;
        if dir.is_dir() { Self::at(cgroup2, dir).map(Some) } else { Ok(None) }
    }

    /// Returns the directories that would be the mobile cgroup and systemd's slice.
    pub(crate) fn location(path: Option<&Path>, slice: Option<&Path>) -> Result<(PathBuf, PathBuf)> {
        Self::locate(path).map(|(root, dir)| (dir, Slice::new(&root, slice).dir().into()))
    }

    fn locate(path: Option<&Path>) -> Result<(Cgroup2, PathBuf)> {
        let cgroup2 = Cgroup2::find(path)?;
        let dir =
            path.map_or_else(|| cgroup2.mount().join(mobile_host::netns::name("mobile")), Path::to_path_buf);
        if dir == cgroup2.mount() {
            return Err(CgroupError::Root(dir));
        }
        if cgroup2.is_partial() {
            return Err(CgroupError::Namespace(cgroup2.mount().into()));
        }
        Ok((cgroup2, dir))
    }

    fn at(cgroup2: Cgroup2, dir: PathBuf) -> Result<Self> {
        let id = fs::metadata(&dir).map_err(io_error("inspect the cgroup", &dir))?.ino();
        let path = cgroup2.path(&dir);
        let slice = Slice::new(&cgroup2, None);
        Ok(Self { cgroup2, dir, path, id, slice })
    }

    /// Sets the systemd slice whose processes are mobile too: the cgroup `dir`, or `mobile.slice`
    /// if `dir` is `None`.
    pub(crate) fn with_slice(mut self, dir: Option<&Path>) -> Self {
        self.slice = Slice::new(&self.cgroup2, dir);
        self
    }

    /// Returns the systemd slice whose processes are mobile too.
    pub(crate) fn slice(&self) -> &Slice {
        &self.slice
    }

    /// Returns the directory of the mobile cgroup.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the cgroup2 mount that the mobile cgroup is on.
    pub(crate) fn cgroup2(&self) -> &Cgroup2 {
        &self.cgroup2
    }

    /// Returns the cgroup's kernel ID, which is the inode number of its directory.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Returns the cgroup's depth below the root of the hierarchy.
    pub(crate) fn level(&self) -> u32 {
        depth(&self.path)
    }

    /// Makes a process mobile, with all its threads. A mobile process stays where it is.
    pub(crate) fn attach(&self, pid: i32) -> Result<()> {
        let origin = cgroup_of(pid)?;
        if origin.starts_with(&self.path) || origin.starts_with(self.slice.path()) {
            return Ok(());
        }
        // A process from outside this cgroup namespace has no path that could be named here: it
        // will be moved back to the root.
        let hidden = origin.components().any(|c| c == Component::ParentDir);
        let origin = if hidden { Path::new("/") } else { &origin };
        let dir = join(&self.dir.join(FROM), strip_root(origin));
        self.assert_unchanged()?;
        fs::create_dir_all(&dir).map_err(io_error("create the cgroup", &dir))?;
        // Check again: the line above may have created the mobile cgroup itself.
        self.assert_unchanged()?;
        move_process(pid, &dir)
    }

    /// Returns an error if the mobile cgroup was removed or replaced. The eBPF programs know it by
    /// its kernel ID, so processes of a new cgroup with the same name would go direct.
    fn assert_unchanged(&self) -> Result<()> {
        match fs::metadata(&self.dir) {
            Ok(now) if now.ino() == self.id => Ok(()),
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(io_error("inspect the cgroup", &self.dir)(source))
            }
            _ => Err(CgroupError::Replaced(self.dir.clone())),
        }
    }

    /// Makes a process ordinary: moves it back to the cgroup from which it, or the ancestor that it
    /// inherited the attribute from, became mobile. If that cgroup was removed or accepts no
    /// processes, moves it to the nearest ancestor of the cgroup that does.
    pub(crate) fn detach(&self, pid: i32) -> Result<()> {
        let path = cgroup_of(pid)?;
        if path.starts_with(self.slice.path()) {
            return Err(CgroupError::InSlice { pid, slice: self.slice.path().into() });
        }
        let Ok(below) = path.strip_prefix(&self.path) else { return Ok(()) };
        let origin = join(Path::new("/"), below.strip_prefix(FROM).unwrap_or(Path::new("")));
        let mut last = CgroupError::NoProcess(pid);
        for candidate in origin.ancestors() {
            let Some(dir) = self.cgroup2.dir(candidate) else { break };
            match move_process(pid, &dir) {
                Err(error @ CgroupError::Move { .. }) => last = error,
                done => return done,
            }
        }
        // A bind-mounted part of the hierarchy may not contain the former cgroup.
        move_process(pid, self.cgroup2.mount()).map_err(|_| last)
    }

    /// Returns whether a process is mobile.
    pub(crate) fn is_mobile(&self, pid: i32) -> Result<bool> {
        let path = cgroup_of(pid)?;
        Ok(path.starts_with(&self.path) || path.starts_with(self.slice.path()))
    }

    /// Returns the IDs of all mobile processes, in ascending order.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = pids_below(&self.dir)?;
        pids.extend(pids_below(self.slice.dir())?);
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Returns whether the mobile cgroup has processes, not counting those of systemd's slice.
    pub(super) fn has_processes(&self) -> Result<bool> {
        pids_below(&self.dir).map(|pids| !pids.is_empty())
    }

    /// Moves every process back to its former cgroup and removes the mobile cgroup. Succeeds if the
    /// mobile cgroup does not exist.
    pub(crate) fn remove(&self) -> Result<()> {
        for pass in 0..REMOVE_PASSES {
            if pass > 0 {
                std::thread::sleep(REMOVE_PAUSE);
            }
            for pid in pids_below(&self.dir)? {
                match self.detach(pid) {
                    Ok(()) | Err(CgroupError::NoProcess(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            // Remove the innermost directories first.
            let busy = tree(&self.dir)?.iter().rev().any(|dir| match fs::remove_dir(dir) {
                Ok(()) => false,
                Err(error) => !is_gone(&error),
            });
            if !busy {
                return Ok(());
            }
        }
        Err(CgroupError::Busy { dir: self.dir.clone(), pids: pids_below(&self.dir)? })
    }
}

/// Returns the IDs of the processes in a cgroup and in the cgroups below it, in ascending order;
/// none if the cgroup does not exist.
fn pids_below(cgroup: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for dir in tree(cgroup)? {
        match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            // The cgroup was removed since it was listed.
            Err(error) if is_gone(&error) => {}
            Err(source) => return Err(io_error("list the processes of", &dir)(source)),
        }
    }
    // The kernel reports 0 for a process outside this PID namespace.
    pids.retain(|&pid| pid > 0);
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// Returns the directories of a cgroup and of all cgroups below it, each parent before its
/// children.
fn tree(cgroup: &Path) -> Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    let mut pending = vec![cgroup.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => continue,
            Err(source) => return Err(io_error("list the cgroup", &dir)(source)),
        };
        let subdirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        pending.extend(subdirs.map(|e| e.path()));
        dirs.push(dir);
    }
    Ok(dirs)
}

/// Returns the cgroup2 cgroup of a process, as `/proc/PID/cgroup` names it.
fn cgroup_of(pid: i32) -> Result<PathBuf> {
    let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if is_gone(&error) => return Err(CgroupError::NoProcess(pid)),
        Err(source) => return Err(io_error("read", &file)(source)),
    };
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or(CgroupError::NoCgroup2(MOUNT))?;
    Ok(PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(path)))
}

fn move_process(pid: i32, dir: &Path) -> Result<()> {
    let procs = fs::OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
    match procs.and_then(|mut file| file.write_all(pid.to_string().as_bytes())) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Err(CgroupError::NoProcess(pid)),
        Err(source) => Err(CgroupError::Move { pid, dir: dir.into(), source }),
    }
}

fn strip_root(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Returns whether an error means that the cgroup or process does not exist any more. A cgroup's
/// file that was open when the cgroup was removed reports ENODEV.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(nix::libc::ESRCH | nix::libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::sandbox::{Probe, Sandbox};

    #[test]
    fn the_root_of_the_hierarchy_is_refused() {
        let cgroup2 = Cgroup2::find(None).unwrap();
        assert!(matches!(MobileCgroup::ensure(Some(cgroup2.mount())), Err(CgroupError::Root(_))));
    }

    #[test]
    fn detach_puts_a_process_back_where_it_came_from() {
        Sandbox::with(|sandbox| {
            let cgroup = &sandbox.cgroup;
            let origin = Origin::make(cgroup, "a b.scope");
            let probe = Probe::start();
            move_process(probe.pid(), &origin.0).unwrap();
            let before = cgroup_of(probe.pid()).unwrap();
            assert!(!cgroup.is_mobile(probe.pid()).unwrap());

            for _ in 0..2 {
                cgroup.attach(probe.pid()).unwrap();
                assert!(cgroup.is_mobile(probe.pid()).unwrap());
                assert_eq!(cgroup.pids().unwrap(), [probe.pid()]);
            }
            // Another agent finds the same former cgroup.
            let later = MobileCgroup::ensure(Some(cgroup.dir())).unwrap();
            for _ in 0..2 {
                later.detach(probe.pid()).unwrap();
                assert_eq!(cgroup_of(probe.pid()).unwrap(), before);
            }
            assert!(cgroup.pids().unwrap().is_empty());
        });
    }

    #[test]
    fn detach_works_after_the_former_cgroup_was_removed() {
        Sandbox::with(|sandbox| {
            let origin = Origin::make(&sandbox.cgroup, "session.scope");
            let probe = Probe::start();
            move_process(probe.pid(), &origin.0).unwrap();
            sandbox.cgroup.attach(probe.pid()).unwrap();
            let above = origin.0.parent().unwrap().to_path_buf();
            fs::remove_dir(&origin.0).unwrap();
            sandbox.cgroup.detach(probe.pid()).unwrap();
            let now = cgroup_of(probe.pid()).unwrap();
            assert_eq!(sandbox.cgroup.cgroup2.dir(&now).unwrap(), above);
        });
    }

    #[test]
    fn remove_moves_every_process_back_and_removes_the_cgroup() {
        Sandbox::with(|sandbox| {
            let probes = [sandbox.mobile(), sandbox.mobile()];
            sandbox.cgroup.remove().unwrap();
            assert!(!sandbox.cgroup.dir().exists());
            assert!(MobileCgroup::existing(Some(sandbox.cgroup.dir())).unwrap().is_none());
            for probe in &probes {
                assert!(!sandbox.cgroup.is_mobile(probe.pid()).unwrap());
            }
            sandbox.cgroup.remove().unwrap();
        });
    }

    #[test]
    fn a_mobile_cgroup_that_was_removed_or_replaced_accepts_no_process() {
        Sandbox::with(|sandbox| {
            let cgroup = &sandbox.cgroup;
            let probe = Probe::start();
            fs::remove_dir(cgroup.dir()).unwrap();
            assert!(matches!(cgroup.attach(probe.pid()), Err(CgroupError::Replaced(_))));
            assert!(!cgroup.dir().exists());
            fs::create_dir(cgroup.dir()).unwrap();
            assert!(matches!(cgroup.attach(probe.pid()), Err(CgroupError::Replaced(_))));
            assert!(!cgroup.is_mobile(probe.pid()).unwrap());
        });
    }

    #[test]
    fn the_error_names_a_process_that_has_ended() {
        Sandbox::with(|sandbox| {
            let probe = Probe::start();
            let pid = probe.pid();
            probe.kill();
            for result in [sandbox.cgroup.attach(pid), sandbox.cgroup.detach(pid)] {
                assert!(matches!(result, Err(CgroupError::NoProcess(gone)) if gone == pid));
            }
        });
    }

    /// An ordinary cgroup, in which a test's process is before it is moved to the mobile cgroup.
    /// Dropping it removes the cgroup and its parent.
    struct Origin(PathBuf);

    impl Origin {
        fn make(cgroup: &MobileCgroup, name: &str) -> Self {
            let above = cgroup.dir().with_extension("origin");
            fs::create_dir_all(above.join(name)).unwrap();
            Self(above.join(name))
        }
    }

    impl Drop for Origin {
        fn drop(&mut self) {
            // Exiting processes stay in the cgroup for a moment after they are waited for.
            for _ in 0..REMOVE_PASSES {
                let _ = fs::remove_dir(&self.0);
                match self.0.parent().map(fs::remove_dir) {
                    Some(Err(error)) if !is_gone(&error) => std::thread::sleep(REMOVE_PAUSE),
                    _ => return,
                }
            }
        }
    }
}
