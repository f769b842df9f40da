//! A program that is running already, outside the tunnel, and that may do the connecting in place of the one just started:
//! browsers, tmux and ssh's ControlMaster hand their work to it.
//!
//! What they have in common: it is the same program, of the same user, and it listens on a unix socket. A second `curl`,
//! `bash` or plain `ssh` does not listen.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::process::{self, socket_inodes};

/// One that may take over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// The process that listens.
    pub(crate) pid: i32,
    /// Its command line, shortened.
    pub(crate) command: String,
    /// It and those it started of the same program, a browser's network process among them: whom to attach.
    pub(crate) pids: Vec<i32>,
}

/// A file, whatever its name.
type Identity = (u64, u64);

/// Which program is looked for.
#[derive(Debug)]
struct Sought {
    file: Identity,
    /// Where it is, if it is a script: browsers are started by one that lies beside them or bears their name.
    script: Option<PathBuf>,
    uid: u32,
    namespace: Identity,
}

/// Whether `program`, as a shell would find it, is running already and would take over. `is_mobile` is asked only about
/// processes that might.
pub(crate) fn of_command(program: &OsStr, is_mobile: impl Fn(i32) -> bool) -> Option<Instance> {
    let path = fs::canonicalize(find(program)?).ok()?;
    let script = is_script(&path).then(|| path.clone());
    let uid = nix::unistd::geteuid().as_raw();
    let namespace = identity("/proc/self/ns/net")?;
    let file = identity(&path)?;
    // The agent is this program, and takes over nothing.
    if identity("/proc/self/exe") == Some(file) {
        return None;
    }
    search(&Sought { file, script, uid, namespace }, is_mobile)
}

/// The same for a process that runs.
pub(crate) fn of_process(pid: i32, is_mobile: impl Fn(i32) -> bool) -> Option<Instance> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let uid = fs::metadata(&proc).ok()?.uid();
    let namespace = identity(proc.join("ns/net"))?;
    search(&Sought { file: identity(proc.join("exe"))?, script: None, uid, namespace }, is_mobile)
}

fn search(sought: &Sought, is_mobile: impl Fn(i32) -> bool) -> Option<Instance> {
    let mut alike = pids();
    // One of another network namespace connects there, and cannot be attached from here.
    alike.retain(|&pid| sought.is(pid) && !is_mobile(pid));
    // Most often nobody is left, and the sockets need not be read.
    let first = *alike.first()?;
    let listening = listening(&fs::read_to_string(format!("/proc/{first}/net/unix")).ok()?);
    let pid = *alike.iter().find(|pid| {
        socket_inodes(Path::new(&format!("/proc/{pid}"))).iter().any(|inode| listening.contains(inode))
    })?;
    let known = process::read(pid).ok()?;
    let command = process::shortened(known.cmdline.join(" "));
    alike.retain(|&other| descends(other, pid));
    Some(Instance { pid, command, pids: alike })
}

impl Sought {
    /// The cheapest question first: this is asked about every process there is.
    fn is(&self, pid: i32) -> bool {
        let proc = format!("/proc/{pid}");
        fs::metadata(&proc).is_ok_and(|it| it.uid() == self.uid)
            && self.is_program(Path::new(&format!("{proc}/exe")))
            && identity(format!("{proc}/ns/net")) == Some(self.namespace)
            && pid.unsigned_abs() != std::process::id()
    }

    fn is_program(&self, exe: &Path) -> bool {
        match &self.script {
            None => identity(exe) == Some(self.file),
            Some(script) => fs::read_link(exe).is_ok_and(|exe| starts(script, &exe)),
        }
    }
}

/// Whether a script is likely to be what starts a program: it has the program's name, or lies in a folder of its own with it.
fn starts(script: &Path, program: &Path) -> bool {
    let common = |folder: &Path| folder.file_name().is_some_and(|name| name == "bin" || name == "sbin");
    script.file_name() == program.file_name()
        || (script.parent() == program.parent() && !script.parent().is_some_and(common))
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

fn identity(path: impl AsRef<Path>) -> Option<Identity> {
    fs::metadata(path).ok().map(|it| (it.dev(), it.ino()))
}

fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Whether `pid` is `ancestor` or was started by it.
fn descends(mut pid: i32, ancestor: i32) -> bool {
    // Numbers are used again: what looks like a circle ends.
    for _ in 0..64 {
        if pid == ancestor {
            return true;
        }
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1))
            .and_then(|it| it.parse().ok());
        let Some(parent) = parent else { return false };
        pid = parent;
    }
    false
}

/// The inodes of the listening sockets in /proc/net/unix: `Num: RefCount Protocol Flags Type St Inode Path`.
fn listening(table: &str) -> HashSet<u64> {
    /// __SO_ACCEPTCON of the kernel's net.h, which is part of this file's interface: see proc(5).
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
    fn only_sockets_that_listen_count() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     ffff888: 00000002 00000000 00010000 0001 01 4711 /tmp/tmux-0/default\n\
                     ffff889: 00000002 00000000 00010000 0001 01 4712\n\
                     ffff88a: 00000003 00000000 00000000 0001 03 4713 /tmp/tmux-0/default\n";
        assert_eq!(listening(table), HashSet::from([4711, 4712]));
    }

    #[test]
    fn a_script_starts_what_has_its_name_or_shares_its_own_folder() {
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
    fn one_that_listens_is_found_unless_it_is_mobile_and_one_that_does_not_is_none() {
        use std::{
            os::unix::net::UnixListener,
            time::{Duration, Instant},
        };
        // This very program, asked about by another process of it: `of_process` of a child of ours would be it.
        let dir = tempfile::tempdir().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let namespace = identity("/proc/self/ns/net").unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let sleep = fs::canonicalize(find(OsStr::new("sleep")).unwrap()).unwrap();
        let copy = dir.path().join("sleep-of-this-test");
        fs::copy(sleep, &copy).unwrap();
        let sought = || Sought { file: identity(&copy).unwrap(), script: None, uid, namespace };
        let start = |listener: Option<&UnixListener>| {
            use std::os::fd::AsFd as _;
            let mut command = std::process::Command::new(&copy);
            command.arg("60").stdin(std::process::Stdio::null());
            if let Some(listener) = listener {
                command.stdin(listener.as_fd().try_clone_to_owned().unwrap());
            }
            let child = command.spawn().unwrap();
            // Its exec() closes descriptors, which is what `spawn` waits for, before its command line is there.
            let deadline = Instant::now() + Duration::from_secs(5);
            while fs::read(format!("/proc/{}/cmdline", child.id())).unwrap().is_empty() {
                assert!(Instant::now() < deadline, "it does not run");
                std::thread::yield_now();
            }
            child
        };
        let mut plain = start(None);
        assert_eq!(search(&sought(), |_| false), None);
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let mut other = start(Some(&listener));
        let pid = i32::try_from(other.id()).unwrap();
        let found = search(&sought(), |_| false).unwrap();
        assert_eq!((found.pid, found.pids.as_slice()), (pid, [pid].as_slice()));
        assert!(found.command.ends_with("sleep-of-this-test 60"), "{}", found.command);
        assert_eq!(search(&sought(), |it| it == pid), None);
        assert!(!sought().is(own));
        for child in [&mut plain, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
