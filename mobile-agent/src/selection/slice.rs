//! `mobile.slice`: what systemd starts there is mobile. The cgroup is systemd's, which makes and removes it; nothing is moved
//! into it or out of it by us, and it only has to be known by its id.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};

use super::cgroup2::{Cgroup2, depth};

/// Its name, at the root of the hierarchy: as systemd derives it from that of the unit.
const NAME: &str = "mobile.slice";

/// The slice, whether or not it is there now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    dir: PathBuf,
    /// The cgroup as /proc/PID/cgroup names it.
    path: PathBuf,
}

impl Slice {
    /// At `dir`, or where systemd has it.
    pub(super) fn new(cgroup2: &Cgroup2, dir: Option<&Path>) -> Self {
        let dir = dir.map_or_else(|| cgroup2.mount().join(NAME), Path::to_path_buf);
        Self { path: cgroup2.path(&dir), dir }
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// As /proc/PID/cgroup names it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its kernel id; 0 while there is none.
    pub(crate) fn id(&self) -> u64 {
        fs::metadata(&self.dir).map_or(0, |dir| dir.ino())
    }

    /// Makes the cgroup unless it exists, for systemd to use. Returns its kernel id.
    pub(crate) fn ensure(&self) -> io::Result<u64> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => fs::metadata(&self.dir).map(|dir| dir.ino()),
        }
    }

    /// Its depth below the root of the hierarchy.
    pub(super) fn level(&self) -> u32 {
        depth(&self.path)
    }
}

/// Tells when the slice may have come or gone. Wants a runtime.
pub(crate) struct SliceWatch(AsyncFd<OwnedFd>);

impl SliceWatch {
    /// From now on.
    pub(crate) fn new(slice: &Slice) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let parent = slice.dir.parent().unwrap_or(Path::new("/"));
        inotify.add_watch(parent, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE)?;
        // SAFETY: the descriptor is open and owned, so it stays the same until the AsyncFd is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(OwnedFd::from(inotify), Interest::READABLE) }?))
    }

    /// Waits for a change in the directory above it.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            // What happened is not looked at: the directory says what is.
            let mut events = [0; 4096];
            match guard.try_io(|inotify| Ok(nix::unistd::read(inotify, &mut events)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}
