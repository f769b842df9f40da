//! The cgroup of `mobile.slice`: processes that systemd starts there are mobile.
//!
//! The cgroup belongs to systemd, which creates and removes it. The agent moves no process into it
//! or out of it; the eBPF programs only need its kernel ID.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};

use super::cgroup2::{Cgroup2, depth};

/// The name of the slice's cgroup at the root of the cgroup hierarchy, which systemd derives from
/// the unit's name.
const NAME: &str = "mobile.slice";

/// The cgroup of systemd's slice for mobile processes, whether or not it exists at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    dir: PathBuf,
    /// The cgroup as `/proc/PID/cgroup` names it.
    path: PathBuf,
}

impl Slice {
    /// Returns the slice's cgroup: the directory `dir`, or by default the one that systemd uses for
    /// `mobile.slice`.
    pub(super) fn new(cgroup2: &Cgroup2, dir: Option<&Path>) -> Self {
        let dir = dir.map_or_else(|| cgroup2.mount().join(NAME), Path::to_path_buf);
        Self { path: cgroup2.path(&dir), dir }
    }

    /// Returns the directory of the cgroup.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of the cgroup as `/proc/PID/cgroup` names it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the kernel ID of the cgroup, or 0 if it does not exist.
    pub(crate) fn id(&self) -> u64 {
        fs::metadata(&self.dir).map_or(0, |dir| dir.ino())
    }

    /// Creates the slice's cgroup unless it exists, for systemd to use, and returns its kernel ID.
    pub(crate) fn ensure(&self) -> io::Result<u64> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => fs::metadata(&self.dir).map(|dir| dir.ino()),
        }
    }

    /// Returns the depth of the cgroup below the root of the hierarchy.
    pub(super) fn level(&self) -> u32 {
        depth(&self.path)
    }
}

/// Watches for the creation and removal of the slice's cgroup. Needs a Tokio runtime.
pub(crate) struct SliceWatch(AsyncFd<OwnedFd>);

impl SliceWatch {
    /// Starts to watch the directory that contains the slice's cgroup.
    pub(crate) fn new(slice: &Slice) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let parent = slice.dir.parent().unwrap_or(Path::new("/"));
        inotify.add_watch(parent, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE)?;
        // SAFETY: the descriptor is open and owned, so it stays the same until the AsyncFd is
        // dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(OwnedFd::from(inotify), Interest::READABLE) }?))
    }

    /// Waits until a cgroup is created or removed in the directory that contains the slice's
    /// cgroup.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            // The events' contents do not matter: the caller reads the directory.
            let mut events = [0; 4096];
            match guard.try_io(|inotify| Ok(nix::unistd::read(inotify, &mut events)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}
