//! Finds the mount of the cgroup2 hierarchy: alone, beside the cgroup v1 hierarchies (hybrid mode),
//! or a bind-mounted part of it.

use std::path::{Component, Path, PathBuf};

use mobile_host::text::read_lossy;

use super::cgroup_error::{CgroupError, Result, io_error};

/// The command that mounts cgroup2 at its usual place.
pub(super) const MOUNT: &str = "mount -t cgroup2 none /sys/fs/cgroup";
/// The command that mounts cgroup2 beside cgroup v1, whose hierarchies occupy its usual place.
const MOUNT_BESIDE_V1: &str =
    "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified";

/// A mount of the cgroup2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup2 {
    /// The directory of the mount point.
    mount: PathBuf,
    /// The cgroup at the mount point: `/`, unless a part of the hierarchy was bind-mounted.
    root: PathBuf,
}

impl Cgroup2 {
    /// Looks up the cgroup2 mount that `path` is on, or any cgroup2 mount if `path` is `None`. A
    /// mount that a later mount hides does not count.
    pub(crate) fn find(path: Option<&Path>) -> Result<Self> {
        // A thread may have a mount namespace of its own, as the threads that `check` isolates
        // have.
        let file = Path::new("/proc/thread-self/mountinfo");
        let mountinfo = read_lossy(file).map_err(io_error("read", file))?;
        Self::choose(&mountinfo, mount_at, path)
    }

    /// Chooses the cgroup2 mount for `path` from the text `mountinfo`. Ignores mounts that another
    /// mount hides: `mount_at` returns the ID of the visible mount at a path.
    fn choose(mountinfo: &str, mount_at: impl Fn(&Path) -> Option<u64>, path: Option<&Path>) -> Result<Self> {
        let mounts = mountinfo.lines().filter_map(parse_mount);
        let visible = mounts.filter(|(id, found)| mount_at(&found.mount) == Some(*id));
        let mounts: Vec<Self> = visible.map(|(_, found)| found).collect();
        let any = mounts.first().cloned().ok_or_else(|| CgroupError::NoCgroup2(cure(mountinfo)))?;
        let Some(path) = path else { return Ok(any) };
        // Of nested mounts the innermost counts.
        let on = mounts.into_iter().filter(|m| path.starts_with(&m.mount));
        on.max_by_key(|m| m.mount.components().count())
            .ok_or_else(|| CgroupError::Outside { path: path.into(), mount: any.mount })
    }

    /// Returns the mount point, to which eBPF programs that must see every process are attached.
    pub(crate) fn mount(&self) -> &Path {
        &self.mount
    }

    /// Returns whether a cgroup namespace hides the root of the hierarchy.
    ///
    /// The root is the only cgroup without the file `cgroup.events`. If it is hidden, the depth of
    /// the mobile cgroup below the real root is unknown, and the eBPF programs would take every
    /// process for an ordinary one.
    pub(super) fn is_partial(&self) -> bool {
        self.root == Path::new("/") && self.mount.join("cgroup.events").exists()
    }

    /// Returns the cgroup at a directory, as `/proc/PID/cgroup` names it.
    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        join(&self.root, dir.strip_prefix(&self.mount).unwrap_or(dir))
    }

    /// Returns the directory of the cgroup that `/proc/PID/cgroup` names `path`; `None` if it is
    /// outside this mount.
    pub(super) fn dir(&self, path: &Path) -> Option<PathBuf> {
        Some(join(&self.mount, path.strip_prefix(&self.root).ok()?))
    }
}

/// Returns the depth of a cgroup below the root of the hierarchy.
pub(super) fn depth(path: &Path) -> u32 {
    let depth = path.components().filter(|component| matches!(component, Component::Normal(_))).count();
    u32::try_from(depth).unwrap_or(u32::MAX)
}

/// Joins two paths as `Path::join` does, but appends no slash for an empty path.
pub(super) fn join(base: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { base.into() } else { base.join(below) }
}

/// Returns the ID of the mount that a path leads to: mountinfo also lists mounts that a later mount
/// covers, and through which no path leads.
fn mount_at(path: &Path) -> Option<u64> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let found = statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID).ok()?;
    (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id)
}

/// Parses a line of mountinfo if it describes a cgroup2 mount, and returns the ID of the mount with
/// it: `41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw`.
fn parse_mount(line: &str) -> Option<(u64, Cgroup2)> {
    let (fields, of_fs) = line.split_once(" - ")?;
    if of_fs.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = fields.split(' ');
    let id = fields.next()?.parse().ok()?;
    let mut fields = fields.skip(2);
    let root = unescape(fields.next()?);
    Some((id, Cgroup2 { root, mount: unescape(fields.next()?) }))
}

/// Returns the command that mounts cgroup2: in a new directory beside the v1 hierarchies if
/// `/sys/fs/cgroup` is a mount point, or else there, because sysfs allows no new directory below
/// it.
fn cure(mountinfo: &str) -> &'static str {
    let occupied = mountinfo.lines().any(|line| line.split(' ').nth(4) == Some("/sys/fs/cgroup"));
    if occupied { MOUNT_BESIDE_V1 } else { MOUNT }
}

/// Decodes a field of mountinfo, which has space, tab, newline and backslash as a backslash and
/// three octal digits.
fn unescape(field: &str) -> PathBuf {
    let (mut path, mut rest) = (String::new(), field);
    while let Some((before, after)) = rest.split_once('\\') {
        path.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(char::from(code.unwrap_or(b'\\')));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    path.push_str(rest);
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;

    use nix::mount::MsFlags;

    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
        42 31 0:38 /jail /srv/my\\040jail rw,relatime - cgroup2 cgroup2 rw\n";

    /// Chooses the cgroup2 mount for `path` as if no mount hid another.
    fn choose(mountinfo: &str, path: Option<&Path>) -> Result<Cgroup2> {
        let mounts: Vec<_> = mountinfo.lines().filter_map(parse_mount).collect();
        let at = |path: &Path| mounts.iter().find(|(_, found)| found.mount == path).map(|(id, _)| *id);
        Cgroup2::choose(mountinfo, at, path)
    }

    #[test]
    fn a_mount_that_a_later_mount_hides_is_not_chosen() {
        let mountinfo = "41 31 0:38 /.. /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            90 80 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 none rw\n";
        let at = |path: &Path| (path == Path::new("/sys/fs/cgroup")).then_some(90);
        let found = Cgroup2::choose(mountinfo, at, None).unwrap();
        assert_eq!(found, Cgroup2 { mount: "/sys/fs/cgroup".into(), root: "/".into() });
        let error = Cgroup2::choose(mountinfo, |_| None, None).unwrap_err();
        assert!(matches!(error, CgroupError::NoCgroup2(_)), "{error}");
    }

    #[test]
    fn the_mount_at_a_path_is_in_mountinfo() {
        let id = mount_at(Path::new("/proc")).unwrap().to_string();
        let mountinfo = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(mountinfo.lines().any(|line| line.split(' ').next() == Some(&id)), "{id} in {mountinfo}");
    }

    #[test]
    fn cgroup2_is_found_wherever_it_is_mounted() {
        let found = choose(HYBRID, None).unwrap();
        assert_eq!(found, Cgroup2 { mount: "/sys/fs/cgroup/unified".into(), root: "/".into() });
        let found = choose(HYBRID, Some("/srv/my jail/mobile".as_ref())).unwrap();
        assert_eq!(found, Cgroup2 { mount: "/srv/my jail".into(), root: "/jail".into() });
        assert_eq!(found.dir("/jail/a/b".as_ref()), Some("/srv/my jail/a/b".into()));
        assert_eq!(found.dir("/jail".as_ref()), Some("/srv/my jail".into()));
        assert_eq!(found.dir("/elsewhere".as_ref()), None);
        assert_eq!(found.path("/srv/my jail/a".as_ref()), Path::new("/jail/a"));
    }

    #[test]
    fn a_thread_in_its_own_mount_namespace_finds_the_same_mount() {
        let here = Cgroup2::find(None).ok();
        // Without root there is no namespace to look from.
        if let Ok(there) = mobile_host::isolation::run_isolated(|| Cgroup2::find(None).ok()) {
            assert_eq!(there, here);
        }
    }

    #[test]
    fn a_mount_point_with_any_bytes_hides_no_cgroup2() {
        let here = Cgroup2::find(None).ok();
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join(OsStr::from_bytes(b"\xff"));
        fs::create_dir(&odd).unwrap();
        let there = mobile_host::isolation::run_isolated(move || {
            let none = None::<&str>;
            nix::mount::mount(Some("none"), &odd, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            Cgroup2::find(None).ok()
        });
        assert_eq!(there.unwrap(), here);
    }

    #[test]
    fn a_missing_cgroup2_or_a_path_outside_it_is_a_clear_error() {
        let error = choose("31 23 0:28 / /sys rw - sysfs sysfs rw\n", None).unwrap_err();
        assert!(error.to_string().ends_with("`mount -t cgroup2 none /sys/fs/cgroup`"), "{error}");
        let v1: Vec<&str> = HYBRID.lines().take(2).collect();
        let error = choose(&v1.join("\n"), None).unwrap_err();
        assert!(error.to_string().contains("mkdir -p /sys/fs/cgroup/unified && mount"), "{error}");
        let error = choose(HYBRID, Some("/tmp/mobile".as_ref())).unwrap_err();
        assert!(error.to_string().contains("/sys/fs/cgroup/unified"), "{error}");
    }

    #[test]
    fn the_depth_counts_from_the_root_of_the_hierarchy() {
        assert_eq!(depth("/".as_ref()), 0);
        assert_eq!(depth("/mobile".as_ref()), 1);
        assert_eq!(depth("/jail/a/mobile".as_ref()), 3);
    }
}
