//! The MOBILE attribute of a process: membership of the mobile cgroup.
//!
//! Children inherit it across fork, as the paper asks. Below the mobile cgroup the path a process came from is kept
//! as a path of directories: one that was in `/user.slice/a.scope` is mobile in `<mobile>/from/user.slice/a.scope`. So
//! any process, and any descendant of it, can be put back where it came from, by any later agent.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    time::Duration,
};

pub(crate) use super::cgroup2::Cgroup2;
use super::{
    cgroup2::{depth, join},
    slice::Slice,
};

/// The directory below the mobile cgroup that mirrors the origins.
const FROM: &str = "from";

/// How often `remove` goes over the tree: a process that forks while it is moved leaves a child behind, which the
/// next pass moves; one that forks faster than ten passes is not cleaned up but reported.
const REMOVE_PASSES: u32 = 10;

/// Between two passes of `remove`: exiting processes hold their cgroup a moment longer than their /proc entry.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// What can go wrong with the mobile cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The kernel has no cgroup2 hierarchy mounted.
    #[error(
        "no cgroup2 file system is mounted, and the MOBILE attribute is membership of a cgroup of it; \
         mount one: `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    NoCgroup2,
    /// A configured path that is on no cgroup2 mount.
    #[error("{path} is not below a cgroup2 mount (there is one at {mount}); correct `[cgroup] path`")]
    Outside {
        /// The configured path.
        path: PathBuf,
        /// A mount that would do.
        mount: PathBuf,
    },
    /// The configured path is the root of the hierarchy: every process would be mobile.
    #[error(
        "{0} is the root of cgroup2: every process would be mobile; name a directory below it in `[cgroup] path`"
    )]
    Root(PathBuf),
    /// A cgroup namespace hides the root of the hierarchy.
    #[error(
        "the cgroup2 mount at {0} shows only a part of the hierarchy (a container with its own cgroup namespace?); \
         run the agent in the host's cgroup namespace"
    )]
    Namespace(PathBuf),
    /// There is no such process (any more).
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// It is mobile by the slice, and systemd's processes are not ours to move.
    #[error(
        "process {pid} is mobile because systemd runs it in {slice}: give its unit another `Slice=`, and restart it"
    )]
    InSlice {
        /// The process.
        pid: i32,
        /// The slice.
        slice: PathBuf,
    },
    /// Somebody removed the mobile cgroup.
    #[error(
        "the mobile cgroup {0} was removed while the agent ran: restart the agent (`systemctl restart mobile`)"
    )]
    Replaced(PathBuf),
    /// A process could not be moved.
    #[error("cannot move process {pid} to the cgroup {dir}: {source}")]
    Move {
        /// The process.
        pid: i32,
        /// Where it was to go.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Processes that would not leave the mobile cgroup.
    #[error(
        "{dir} still has processes after several attempts to move them out: {pids:?}; end them and try again"
    )]
    Busy {
        /// The mobile cgroup.
        dir: PathBuf,
        /// Who is still there.
        pids: Vec<i32>,
    },
    /// Another agent runs with this mobile cgroup.
    #[error(
        "the mobile cgroup {dir} is in use by a running agent{}: stop that one (`mobile cleanup`), or name another \
         directory in `[cgroup] path`",
        of_namespace(*.owner)
    )]
    InUse {
        /// The mobile cgroup.
        dir: PathBuf,
        /// The network namespace of the other agent, if it is known.
        owner: Option<u64>,
    },
    /// Mobile processes of another network namespace's agent wait in this cgroup.
    #[error(
        "the mobile cgroup {dir} belongs to the agent{}, whose mobile processes wait in it: run `mobile cleanup` \
         there, or name another directory in `[cgroup] path`",
        of_namespace(Some(*.owner))
    )]
    OtherNamespace {
        /// The mobile cgroup.
        dir: PathBuf,
        /// The network namespace of the other agent.
        owner: u64,
    },
    /// Any other failure, with what was being done.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn of_namespace(owner: Option<u64>) -> String {
    owner.map_or_else(String::new, |owner| format!(" of network namespace {owner} (`lsns -t net`)"))
}

pub(super) type Result<T> = std::result::Result<T, CgroupError>;

/// The mobile cgroup.
#[derive(Clone, Debug)]
pub(crate) struct MobileCgroup {
    cgroup2: Cgroup2,
    dir: PathBuf,
    /// The cgroup as /proc/PID/cgroup names it.
    path: PathBuf,
    id: u64,
    slice: Slice,
}

impl MobileCgroup {
    /// Finds or makes the mobile cgroup: `path`, or the default one at the root of the first
    /// cgroup2 mount.
    pub(crate) fn ensure(path: Option<&Path>) -> Result<Self> {
        let (cgroup2, dir) = Self::locate(path)?;
        fs::create_dir_all(&dir).map_err(io_error("make the cgroup", &dir))?;
        Self::at(cgroup2, dir)
    }

    /// The mobile cgroup if there is one, for verbs that must not make it.
    pub(crate) fn existing(path: Option<&Path>) -> Result<Option<Self>> {
        let (cgroup2, dir) = Self::locate(path)?;
        if dir.is_dir() { Self::at(cgroup2, dir).map(Some) } else { Ok(None) }
    }

    fn locate(path: Option<&Path>) -> Result<(Cgroup2, PathBuf)> {
        let cgroup2 = Cgroup2::find(path)?;
        let dir =
            path.map_or_else(|| cgroup2.mount().join(mobile_io::netns::name("mobile")), Path::to_path_buf);
        if dir == cgroup2.mount() {
            return Err(CgroupError::Root(dir));
        }
        if cgroup2.is_partial() {
            return Err(CgroupError::Namespace(cgroup2.mount().into()));
        }
        Ok((cgroup2, dir))
    }

    fn at(cgroup2: Cgroup2, dir: PathBuf) -> Result<Self> {
        let id = fs::metadata(&dir).map_err(io_error("look at the cgroup", &dir))?.ino();
        let path = cgroup2.path(&dir);
        let slice = Slice::new(&cgroup2, None);
        Ok(Self { cgroup2, dir, path, id, slice })
    }

    /// With another slice than `mobile.slice`, if one is named.
    pub(crate) fn with_slice(mut self, dir: Option<&Path>) -> Self {
        self.slice = Slice::new(&self.cgroup2, dir);
        self
    }

    /// The slice whose processes are mobile too.
    pub(crate) fn slice(&self) -> &Slice {
        &self.slice
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The hierarchy it is in.
    pub(crate) fn cgroup2(&self) -> &Cgroup2 {
        &self.cgroup2
    }

    /// Its kernel id, which is the inode number of the directory.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Its depth below the root of the hierarchy.
    pub(crate) fn level(&self) -> u32 {
        depth(&self.path)
    }

    /// Gives a process, with all its threads, the MOBILE attribute. One that has it stays where it is.
    pub(crate) fn attach(&self, pid: i32) -> Result<()> {
        let origin = cgroup_of(pid)?;
        if origin.starts_with(&self.path) || origin.starts_with(self.slice.path()) {
            return Ok(());
        }
        // From outside our cgroup namespace there is no path back that we could name: such a process is put back
        // into the root.
        let hidden = origin.components().any(|c| c == Component::ParentDir);
        let origin = if hidden { Path::new("/") } else { &origin };
        let dir = join(&self.dir.join(FROM), strip_root(origin));
        self.assert_there()?;
        fs::create_dir_all(&dir).map_err(io_error("make the cgroup", &dir))?;
        // Once more, should the line before have made it.
        self.assert_there()?;
        move_process(pid, &dir)
    }

    /// The programs know it by its number: another in its place is none of theirs, and what runs in it would go direct.
    fn assert_there(&self) -> Result<()> {
        match fs::metadata(&self.dir) {
            Ok(now) if now.ino() == self.id => Ok(()),
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(io_error("look at the cgroup", &self.dir)(source))
            }
            _ => Err(CgroupError::Replaced(self.dir.clone())),
        }
    }

    /// Takes the attribute from a process and puts it back where it, or the ancestor it has the attribute from, was.
    /// If that cgroup is gone or takes no processes any more, the nearest above it that does.
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
        // A bind-mounted part of the hierarchy may not show the origin at all.
        move_process(pid, self.cgroup2.mount()).map_err(|_| last)
    }

    /// Whether a process has the MOBILE attribute.
    pub(crate) fn is_mobile(&self, pid: i32) -> Result<bool> {
        let path = cgroup_of(pid)?;
        Ok(path.starts_with(&self.path) || path.starts_with(self.slice.path()))
    }

    /// Every mobile process, in ascending order.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = pids_below(&self.dir)?;
        pids.extend(pids_below(self.slice.dir())?);
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Returns whether the cgroup holds processes, not counting those of the slice.
    pub(super) fn has_processes(&self) -> Result<bool> {
        pids_below(&self.dir).map(|pids| !pids.is_empty())
    }

    /// For cleaning up: puts every process back and removes the cgroup. Nothing there is a success.
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
            // Innermost first.
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

/// The processes of a cgroup and those below it, in ascending order; none if it is not there.
fn pids_below(cgroup: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for dir in tree(cgroup)? {
        match fs::read_to_string(dir.join("cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            // Removed between the listing and the reading.
            Err(error) if is_gone(&error) => {}
            Err(source) => return Err(io_error("list the processes of", &dir)(source)),
        }
    }
    // 0 stands for a process outside our pid namespace.
    pids.retain(|&pid| pid > 0);
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// The directories of a cgroup, each before those inside it.
fn tree(cgroup: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![cgroup.to_path_buf()];
    while let Some(dir) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => continue,
            Err(source) => return Err(io_error("list the cgroup", &dir)(source)),
        };
        let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        open.extend(dirs.map(|e| e.path()));
        found.push(dir);
    }
    Ok(found)
}

/// The cgroup2 cgroup of a process, as /proc names it.
fn cgroup_of(pid: i32) -> Result<PathBuf> {
    let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if is_gone(&error) => return Err(CgroupError::NoProcess(pid)),
        Err(source) => return Err(io_error("read", &file)(source)),
    };
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or(CgroupError::NoCgroup2)?;
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

/// ENODEV is what a file of a cgroup says that was removed while it was open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(nix::libc::ESRCH | nix::libc::ENODEV))
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError::Io { action, path: path.into(), source }
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
            // Another agent knows it as well.
            let later = MobileCgroup::ensure(Some(cgroup.dir())).unwrap();
            for _ in 0..2 {
                later.detach(probe.pid()).unwrap();
                assert_eq!(cgroup_of(probe.pid()).unwrap(), before);
            }
            assert!(cgroup.pids().unwrap().is_empty());
        });
    }

    #[test]
    fn detach_survives_the_end_of_the_origin() {
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
    fn remove_puts_everybody_back_and_leaves_nothing() {
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
    fn a_mobile_cgroup_that_somebody_removed_or_made_anew_takes_nobody() {
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
    fn a_process_that_is_gone_is_named() {
        Sandbox::with(|sandbox| {
            let probe = Probe::start();
            let pid = probe.pid();
            probe.kill();
            for result in [sandbox.cgroup.attach(pid), sandbox.cgroup.detach(pid)] {
                assert!(matches!(result, Err(CgroupError::NoProcess(gone)) if gone == pid));
            }
        });
    }

    /// A cgroup beside the mobile one, removed at the end with the one above it.
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
            // Exiting processes hold it for a moment after they are waited for.
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
