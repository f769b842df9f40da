//! The kernel objects that outlive the agent: pins in a BPF file system, one directory for each
//! generation of the eBPF programs.
//!
//! `pin_dir/7/` has everything that one load attached. A new agent fills `pin_dir/8/` and only then
//! removes the others, so one complete set is in force at every moment, even if the agent is killed
//! half-way.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::MsFlags,
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::Uid,
};

use super::bpf_error::BpfError;

/// The mount point of the BPF file system on every distribution. The agent mounts it there if it is
/// not mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// The mode of new directories for pins: any user may see whether eBPF programs are in force, as
/// `mobile explain` does.
const DIR_MODE: u32 = 0o755;

/// Bits of a file mode: write permission of the group or of others, and the sticky bit, with which
/// only a file's owner may rename or remove it.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Creates `pin_dir`, and mounts the BPF file system at its usual place if it is not mounted. The
/// mount belongs to the machine, as if the distribution had mounted it: the agent never unmounts
/// it.
pub(super) fn ensure_dir(pin_dir: &Path) -> Result<(), BpfError> {
    if !on_bpffs(pin_dir)? {
        if !pin_dir.starts_with(BPFFS) {
            return Err(BpfError::NotBpffs(pin_dir.into()));
        }
        mount_bpffs()?;
    }
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(pin_dir).map_err(io_error("create", pin_dir))
}

/// Returns an error if another user could put eBPF maps or programs into the directory for pins, or
/// has done so.
///
/// A BPF file system that is mounted with mode 1777, or delegated (`delegate_maps` and similar
/// mount options), is not root's alone.
pub(super) fn assert_ours(pin_dir: &Path) -> Result<(), BpfError> {
    let pin_dir = &fs::canonicalize(pin_dir).map_err(io_error("inspect", pin_dir))?;
    for above in pin_dir.ancestors().skip(1) {
        // With the sticky bit, other users may add files but may not move root's.
        assert_own(above, STICKY)?;
    }
    assert_own(pin_dir, 0)?;
    for generation in generations(pin_dir)? {
        assert_own(&generation, 0)?;
        for pin in fs::read_dir(&generation).map_err(io_error("list", &generation))?.flatten() {
            assert_own(&pin.path(), 0)?;
        }
    }
    Ok(())
}

/// Returns an error if another user owns the path, or if others may write to it and its mode lacks
/// the bit `excuse` (the sticky bit, or 0 for none).
fn assert_own(path: &Path, excuse: u32) -> Result<(), BpfError> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("inspect", path))?;
    let (owner, mode) = (Uid::from_raw(metadata.uid()), metadata.mode());
    let fault = if !owner.is_root() && owner != Uid::effective() {
        format!("belongs to user {owner}")
    } else if mode & OTHERS_WRITE != 0 && mode & excuse == 0 {
        format!("may be written by others (mode {:o})", mode & 0o7777)
    } else {
        return Ok(());
    };
    Err(BpfError::UnsafePin { path: path.into(), fault })
}

/// Returns the directories of the generations of eBPF programs in `pin_dir`, oldest first.
pub(super) fn generations(pin_dir: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let entries = match fs::read_dir(pin_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io_error("list", pin_dir)(source)),
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut numbers: Vec<u64> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers.into_iter().map(|number| pin_dir.join(number.to_string())).collect())
}

/// The directory in which a new generation of eBPF programs is being pinned. Dropping the value
/// removes the directory, unless it was kept.
pub(super) struct Generation {
    dir: PathBuf,
    kept: bool,
}

impl Generation {
    /// Creates the directory for pins of the generation that follows `older`.
    pub(super) fn after(pin_dir: &Path, older: &[PathBuf]) -> Result<Self, BpfError> {
        let last = older.last().and_then(|dir| dir.file_name()?.to_str()?.parse::<u64>().ok());
        let dir = pin_dir.join(last.map_or(1, |number| number + 1).to_string());
        DirBuilder::new().mode(DIR_MODE).create(&dir).map_err(io_error("create", &dir))?;
        Ok(Self { dir, kept: false })
    }

    /// Returns the path at which an object of this kind and name is pinned in this generation.
    pub(super) fn path(&self, kind: &str, name: &str) -> PathBuf {
        pin(&self.dir, kind, name)
    }

    /// Declares the generation complete, so that its directory stays and outlives the agent.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove(&self.dir)
        {
            tracing::warn!(%error, "cannot remove the pins of a failed start");
        }
    }
}

/// Returns the path at which an object of this kind and name is pinned in the directory of a
/// generation. A hyphen separates the two, because the BPF file system allows no dot in a name.
pub(super) fn pin(generation: &Path, kind: &str, name: &str) -> PathBuf {
    generation.join(format!("{kind}-{name}"))
}

/// Removes a directory of pins, and with it all kernel objects that nothing else refers to. Returns
/// whether the directory existed.
pub(super) fn remove(dir: &Path) -> Result<bool, BpfError> {
    // A directory on another file system is not the agent's, whatever the configuration or the
    // record says.
    if !dir.exists() || !on_bpffs(dir)? {
        return Ok(false);
    }
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(io_error("remove", dir)(source)),
    }
}

/// Returns whether `path`, or its nearest existing ancestor, is on a BPF file system.
fn on_bpffs(path: &Path) -> Result<bool, BpfError> {
    let exists = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = statfs(exists).map_err(|errno| io_error("inspect", exists)(errno.into()))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_bpffs() -> Result<(), BpfError> {
    let at = Path::new(BPFFS);
    // Lock the directory: of two agents that start at the same time, the second must not mount over
    // the first one's pins.
    let dir = fs::File::open(at).map_err(io_error("open", at))?;
    let _lock = Flock::lock(dir, FlockArg::LockExclusive)
        .map_err(|(_, errno)| io_error("lock", at)(io::Error::from(errno)))?;
    if on_bpffs(at)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("bpf"), at, Some("bpf"), flags, Some("mode=700"))
        .map_err(|errno| io_error("mount a BPF file system at", at)(io::Error::from(errno)))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BpfError {
    move |source| BpfError::Io { action, path: path.into(), source }
}
