//! Finds a running instance of a program that may do the work of a newly started one, outside the
//! tunnel.
//!
//! A browser, tmux or ssh with ControlMaster hands its work to an instance that runs already. These
//! programs have in common that the instance is the same program, of the same user, and listens on
//! a Unix socket. A second `curl`, `bash` or plain `ssh` does not listen.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use mobile_host::text::read_lossy;

use super::process::{self, socket_inodes};

/// A running instance of a program that may take over the work of a new one, outside the tunnel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// The ID of the instance's process that listens on a Unix socket.
    pub(crate) pid: i32,
    /// The command line of that process, shortened.
    pub(crate) command: String,
    /// The IDs of that process and of its descendants of the same program, such as a browser's
    /// network process: the processes to attach.
    pub(crate) pids: Vec<i32>,
}

/// The identity of a file: its device and inode numbers.
type FileId = (u64, u64);

/// The program whose instances are searched for.
#[derive(Debug)]
struct ProgramQuery {
    file: FileId,
    /// The path of the command if it is a script. A browser is usually started by a script in the
    /// directory of its executable or with the executable's name, so its instances are found by
    /// this path.
    script: Option<PathBuf>,
    uid: u32,
    namespace: FileId,
}

/// Returns a running instance of `program` that is not mobile; `program` is looked up in PATH as a
/// shell does. `is_mobile` is called only for processes of the same program and user.
pub(crate) fn of_command(program: &OsStr, is_mobile: impl Fn(i32) -> bool) -> Option<Instance> {
    let path = fs::canonicalize(find(program)?).ok()?;
    let script = is_script(&path).then(|| path.clone());
    let uid = nix::unistd::geteuid().as_raw();
    let namespace = file_id("/proc/self/ns/net")?;
    let file = file_id(&path)?;
    // The agent runs the program `mobile`, and takes over no work.
    if file_id("/proc/self/exe") == Some(file) {
        return None;
    }
    search(&ProgramQuery { file, script, uid, namespace }, is_mobile)
}

/// Returns another running instance of the program of the process `pid` that is not mobile.
pub(crate) fn of_process(pid: i32, is_mobile: impl Fn(i32) -> bool) -> Option<Instance> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let uid = fs::metadata(&proc).ok()?.uid();
    let namespace = file_id(proc.join("ns/net"))?;
    search(&ProgramQuery { file: file_id(proc.join("exe"))?, script: None, uid, namespace }, is_mobile)
}

fn search(query: &ProgramQuery, is_mobile: impl Fn(i32) -> bool) -> Option<Instance> {
    let mut candidates = pids();
    // A process of another network namespace connects there, and cannot be attached from here.
    candidates.retain(|&pid| query.matches(pid) && !is_mobile(pid));
    // Usually no candidate is left, and the sockets need not be read.
    let first = *candidates.first()?;
    let listening = listening(&read_lossy(format!("/proc/{first}/net/unix")).ok()?);
    let pid = *candidates.iter().find(|pid| {
        socket_inodes(Path::new(&format!("/proc/{pid}"))).iter().any(|inode| listening.contains(inode))
    })?;
    let process = process::read(pid).ok()?;
    let command = process::shortened(process.cmdline.join(" "));
    candidates.retain(|&other| descends(other, pid));
    Some(Instance { pid, command, pids: candidates })
}

impl ProgramQuery {
    /// Returns whether a process runs the program. Called for every process of the host, so the
    /// cheapest comparison comes first.
    fn matches(&self, pid: i32) -> bool {
        let proc = format!("/proc/{pid}");
        fs::metadata(&proc).is_ok_and(|it| it.uid() == self.uid)
            && self.is_program(Path::new(&format!("{proc}/exe")))
            && file_id(format!("{proc}/ns/net")) == Some(self.namespace)
            && pid.unsigned_abs() != std::process::id()
    }

    fn is_program(&self, exe: &Path) -> bool {
        match &self.script {
            None => file_id(exe) == Some(self.file),
            Some(script) => fs::read_link(exe).is_ok_and(|exe| starts(script, &exe)),
        }
    }
}

/// Returns whether a script probably starts a program: both have the same name, or share a
/// directory that is not a general one (`bin`, `sbin`).
fn starts(script: &Path, program: &Path) -> bool {
    let common = |folder: &Path| folder.file_name().is_some_and(|name| name == "bin" || name == "sbin");
    script.file_name() == program.file_name()
        || (script.parent() == program.parent() && !script.parent().is_some_and(common))
}

/// Returns whether PATH names a directory with a file of this name; true if there is no PATH, so
/// that exec() decides.
pub(crate) fn is_on_path(name: &OsStr) -> bool {
    std::env::var_os("PATH").is_none() || find(name).is_some()
}

fn find(program: &OsStr) -> Option<PathBuf> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return Some(path.to_owned());
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|it| it.is_file())
}

fn is_script(path: &Path) -> bool {
    let mut start = [0; 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"#!"
}

fn file_id(path: impl AsRef<Path>) -> Option<FileId> {
    fs::metadata(path).ok().map(|it| (it.dev(), it.ino()))
}

fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Returns whether `pid` is `ancestor` or one of its descendants.
fn descends(mut pid: i32, ancestor: i32) -> bool {
    // Process IDs are reused, so the parents may appear to form a cycle: limit the steps.
    for _ in 0..64 {
        if pid == ancestor {
            return true;
        }
        let Ok(stat) = read_lossy(format!("/proc/{pid}/stat")) else { return false };
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1))
            .and_then(|it| it.parse().ok());
        let Some(parent) = parent else { return false };
        pid = parent;
    }
    false
}

/// Returns the inodes of the listening sockets in `table`, the text of `/proc/net/unix`, whose
/// columns are `Num: RefCount Protocol Flags Type St Inode Path`.
fn listening(table: &str) -> HashSet<u64> {
    /// The flag `__SO_ACCEPTCON` of the kernel's `net.h`, which is part of this file's format
    /// (proc(5)).
    const LISTENING: u32 = 1 << 16;
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
        (flags & LISTENING != 0).then(|| fields.get(6)?.parse().ok()).flatten()
    };
    table.lines().filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_are_returned() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     ffff888: 00000002 00000000 00010000 0001 01 4711 /tmp/tmux-0/default\n\
                     ffff889: 00000002 00000000 00010000 0001 01 4712\n\
                     ffff88a: 00000003 00000000 00000000 0001 03 4713 /tmp/tmux-0/default\n";
        assert_eq!(listening(table), HashSet::from([4711, 4712]));
    }

    #[test]
    fn a_script_starts_the_program_with_its_name_or_in_its_own_directory() {
        let starts = |script: &str, program: &str| starts(Path::new(script), Path::new(program));
        assert!(starts("/usr/bin/chromium", "/usr/lib/chromium/chromium"));
        assert!(starts("/opt/google/chrome/google-chrome", "/opt/google/chrome/chrome"));
        assert!(!starts("/usr/bin/ldd", "/usr/bin/python3.11"));
        assert!(!starts("/home/me/tool", "/usr/bin/bash"));
    }

    #[test]
    fn a_process_descends_from_itself_and_its_parents() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(descends(pid, pid));
        assert!(descends(pid, nix::unistd::getppid().as_raw()));
        assert!(!descends(nix::unistd::getppid().as_raw(), pid));
    }

    #[test]
    fn an_instance_that_listens_is_found_unless_it_is_mobile() {
        use std::{
            os::unix::{ffi::OsStrExt as _, net::UnixListener},
            time::{Duration, Instant},
        };
        // Use a copy of `sleep`: an instance of the test program would be this process itself.
        let dir = tempfile::tempdir().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let namespace = file_id("/proc/self/ns/net").unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let sleep = fs::canonicalize(find(OsStr::new("sleep")).unwrap()).unwrap();
        let copy = dir.path().join("sleep-of-this-test");
        fs::copy(sleep, &copy).unwrap();
        let query = || ProgramQuery { file: file_id(&copy).unwrap(), script: None, uid, namespace };
        let start = |listener: Option<&UnixListener>| {
            use std::os::fd::AsFd as _;
            let mut command = std::process::Command::new(&copy);
            command.arg("60").stdin(std::process::Stdio::null());
            if let Some(listener) = listener {
                command.stdin(listener.as_fd().try_clone_to_owned().unwrap());
            }
            let child = command.spawn().unwrap();
            // `spawn` returns when exec() closes its descriptor, before the command line is
            // visible.
            let deadline = Instant::now() + Duration::from_secs(5);
            while fs::read(format!("/proc/{}/cmdline", child.id())).unwrap().is_empty() {
                assert!(Instant::now() < deadline, "the child does not run");
                std::thread::yield_now();
            }
            child
        };
        let mut plain = start(None);
        assert_eq!(search(&query(), |_| false), None);
        // The name of a socket may hold any byte, which /proc/net/unix shows as it is.
        let listener = UnixListener::bind(dir.path().join(OsStr::from_bytes(b"socket-\xff"))).unwrap();
        let mut other = start(Some(&listener));
        let pid = i32::try_from(other.id()).unwrap();
        let found = search(&query(), |_| false).unwrap();
        assert_eq!((found.pid, found.pids.as_slice()), (pid, [pid].as_slice()));
        assert!(found.command.ends_with("sleep-of-this-test 60"), "{}", found.command);
        assert_eq!(search(&query(), |it| it == pid), None);
        assert!(!query().matches(own));
        for child in [&mut plain, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
