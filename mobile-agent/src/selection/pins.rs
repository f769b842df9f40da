//! The kernel objects that outlive the agent: pins in a BPF file system, in one directory for each
//! generation of the programs.
//!
//! `pin_dir/7/` holds everything one load attached. A new agent fills `pin_dir/8/` and only then
//! removes the others, so at every moment one whole set is in force, whatever kills the agent
//! wherever.

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

use super::bpf::BpfError;

/// Where every distribution mounts the BPF file system, and where we do if nobody has.
const BPFFS: &str = "/sys/fs/bpf";

/// The mode of new directories: everybody may see whether there are programs, as `mobile explain`
/// does.
const DIR_MODE: u32 = 0o755;

/// Bits of a mode: write permission of the group or of others, and the sticky bit (only a file's
/// owner may rename or remove it).
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Makes `pin_dir`, mounting the BPF file system at its usual place if it is not there. The mount
/// is the machine's, as if the distribution had made it: nothing of ours unmounts it.
pub(super) fn ensure_dir(pin_dir: &Path) -> Result<(), BpfError> {
    if !on_bpffs(pin_dir)? {
        if !pin_dir.starts_with(BPFFS) {
            return Err(BpfError::NotBpffs(pin_dir.into()));
        }
        mount_bpffs()?;
    }
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(pin_dir).map_err(io_error("make", pin_dir))
}

/// Refuses a directory for pins in which another user could put maps or programs of its own, or has
/// done so. A file system that is mounted with mode 1777, or delegated (`delegate_maps` and the
/// like), belongs to more users than root.
pub(super) fn assert_ours(pin_dir: &Path) -> Result<(), BpfError> {
    let pin_dir = &fs::canonicalize(pin_dir).map_err(io_error("look at", pin_dir))?;
    for above in pin_dir.ancestors().skip(1) {
        // With the sticky bit others may only add files; nobody but root can move root's.
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

/// Refuses a path that another user owns or may write to, unless its mode has the bit `excuse`.
fn assert_own(path: &Path, excuse: u32) -> Result<(), BpfError> {
    let found = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    let (owner, mode) = (Uid::from_raw(found.uid()), found.mode());
    let fault = if !owner.is_root() && owner != Uid::effective() {
        format!("belongs to user {owner}")
    } else if mode & OTHERS_WRITE != 0 && mode & excuse == 0 {
        format!("may be written by others (mode {:o})", mode & 0o7777)
    } else {
        return Ok(());
    };
    Err(BpfError::UnsafePin { path: path.into(), fault })
}

/// The generations in `pin_dir`, oldest first.
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

/// A generation being filled; it is removed again unless it is kept.
pub(super) struct Generation {
    dir: PathBuf,
    kept: bool,
}

impl Generation {
    /// Makes the directory that comes after `older`.
    pub(super) fn after(pin_dir: &Path, older: &[PathBuf]) -> Result<Self, BpfError> {
        let last = older.last().and_then(|dir| dir.file_name()?.to_str()?.parse::<u64>().ok());
        let dir = pin_dir.join(last.map_or(1, |number| number + 1).to_string());
        DirBuilder::new().mode(DIR_MODE).create(&dir).map_err(io_error("make", &dir))?;
        Ok(Self { dir, kept: false })
    }

    /// Where something is pinned.
    pub(super) fn path(&self, kind: &str, name: &str) -> PathBuf {
        pin(&self.dir, kind, name)
    }

    /// From here on it is in force, and outlives us.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove(&self.dir)
        {
            tracing::warn!("after a failed start: {error}");
        }
    }
}

/// The path of a pin. The BPF file system allows no dot in a name.
pub(super) fn pin(generation: &Path, kind: &str, name: &str) -> PathBuf {
    generation.join(format!("{kind}-{name}"))
}

/// Removes a directory of pins, and with them what nothing else holds. Says whether there was one.
pub(super) fn remove(dir: &Path) -> Result<bool, BpfError> {
    // A directory that holds no pins is not ours, whatever a configuration or a record says.
    if !dir.exists() || !on_bpffs(dir)? {
        return Ok(false);
    }
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(io_error("remove", dir)(source)),
    }
}

/// Whether `path`, or what of it exists, is on a BPF file system.
fn on_bpffs(path: &Path) -> Result<bool, BpfError> {
    let exists = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = statfs(exists).map_err(|errno| io_error("look at", exists)(errno.into()))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_bpffs() -> Result<(), BpfError> {
    let at = Path::new(BPFFS);
    // Two agents starting at once must not mount one over the other: that would hide the first
    // one's pins.
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
