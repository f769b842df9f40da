//! Confines a started daemon: it gives up the capabilities, system calls (seccomp) and files
//! (Landlock) that it does not need.
//!
//! An attacker who takes over the process gets only the remaining rights.
//!
//! All three restrictions apply to the calling thread and to threads that it starts later.
//! Therefore each thread of the runtime confines itself when it starts, and the main thread
//! confines itself after the setup.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
mod syscalls;

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, path_beneath_rules,
};
use nix::libc;
use rustix::thread;
pub use rustix::thread::CapabilitySet as Capabilities;
use tracing::debug;

/// The directories that every daemon may read: `/proc` and `/sys`, name resolution, and the
/// programs and libraries that the program nft needs.
pub const SYSTEM_DIRECTORIES: [&str; 11] =
    ["/bin", "/dev", "/etc", "/gnu", "/lib", "/lib64", "/nix", "/proc", "/sbin", "/sys", "/usr"];

/// The rights that a confined thread keeps.
#[derive(Debug, Clone)]
pub struct Confinement {
    /// The capabilities to keep, of those that the process has.
    pub capabilities: Capabilities,
    /// The system calls to allow in addition to the list that the agent and the relay share.
    pub syscalls: &'static [libc::c_long],
    /// Whether Unix stream sockets may be created, which some user databases need for look-ups.
    pub unix_streams: bool,
    /// The accessible files; `None` allows every file that the process's user may access.
    pub files: Option<FileAccess>,
}

/// The files and directories that a confined thread may access, with everything below them.
///
/// Paths that do not exist are ignored.
#[derive(Debug, Clone, Default)]
pub struct FileAccess {
    /// Paths that may be read and executed.
    pub read: Vec<PathBuf>,
    /// Paths that may also be written, created and removed.
    pub write: Vec<PathBuf>,
}

/// The reason why a thread cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The capabilities could not be dropped.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[source] io::Error),
    /// The system call filter could not be compiled.
    #[error("cannot compile the system call filter: {0}")]
    Calls(#[from] seccompiler::BackendError),
    /// The kernel rejected the system call filter.
    #[error("cannot install the system call filter: {0}")]
    Filter(#[from] seccompiler::Error),
    /// Landlock failed on a kernel that supports it.
    #[error("cannot restrict access to files: {0}")]
    Files(#[from] landlock::RulesetError),
}

impl Confinement {
    /// Confines the calling thread irreversibly.
    ///
    /// # Errors
    /// When the kernel refuses. A kernel without Landlock and an architecture without a seccomp
    /// filter are not errors.
    pub fn apply(&self) -> Result<(), ConfineError> {
        // The order matters: dropping capabilities requires one (`CAP_SETPCAP`), and the filter of
        // system calls would deny the calls of the steps before it.
        drop_capabilities(self.capabilities).map_err(|errno| ConfineError::Capabilities(errno.into()))?;
        if let Some(files) = &self.files {
            let status = restrict_files(files)?;
            debug!(landlock = ?status, "confined");
        }
        syscalls::restrict(self.syscalls, self.unix_streams)
    }
}

/// Drops all capabilities except `wanted`, for this thread and for programs that it executes.
fn drop_capabilities(wanted: Capabilities) -> rustix::io::Result<()> {
    let own = thread::capabilities(None)?;
    if own.effective.contains(Capabilities::SETPCAP) {
        // A program executed by root gets every capability in the bounding set (capabilities(7)).
        for capability in Capabilities::all().iter().filter(|one| !wanted.contains(*one)) {
            // The kernel rejects capabilities that are newer than itself.
            if thread::capability_is_in_bounding_set(capability).unwrap_or(false) {
                thread::remove_capability_from_bounding_set(capability)?;
            }
        }
    }
    let kept = thread::CapabilitySets {
        effective: own.effective & wanted,
        permitted: own.permitted & wanted,
        inheritable: own.inheritable & wanted,
    };
    thread::set_capabilities(None, kept)
}

fn restrict_files(files: &FileAccess) -> Result<RulesetStatus, landlock::RulesetError> {
    // ABI 3 (Linux 6.2) covers everything that changes a file. Later versions also restrict `ioctl`
    // on devices, which the TUN device needs.
    let abi = ABI::V3;
    let all = AccessFs::from_all(abi);
    let status = Ruleset::default()
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(&files.read, AccessFs::from_read(abi)))?
        .add_rules(path_beneath_rules(&files.write, all))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Sets `no_new_privs` only, on architectures that seccompiler has no filter for.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod syscalls {
    pub(super) fn restrict(
        _extra: &[super::libc::c_long],
        _unix_streams: bool,
    ) -> Result<(), super::ConfineError> {
        rustix::thread::set_no_new_privs(true)
            .map_err(|errno| super::ConfineError::Capabilities(errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Confines a new thread and runs `work` on it, because confinement cannot be undone.
    pub(super) fn run_confined<T: Send>(confinement: &Confinement, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                confinement.apply().unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    pub(super) fn only_capabilities(capabilities: Capabilities) -> Confinement {
        Confinement { capabilities, syscalls: &[], unix_streams: false, files: None }
    }

    #[test]
    fn capabilities_are_dropped_in_the_thread_and_in_executed_programs() {
        let kept = Capabilities::NET_ADMIN & thread::capabilities(None).unwrap().permitted;
        let line = |status: &str, name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap()
        };
        let (own, child) = run_confined(&only_capabilities(Capabilities::NET_ADMIN), || {
            let child = std::process::Command::new("cat").arg("/proc/self/status").output().unwrap();
            (fs::read_to_string("/proc/thread-self/status").unwrap(), child.stdout)
        });
        assert_eq!(line(&own, "CapEff:"), kept.bits());
        assert_eq!(line(&own, "CapPrm:"), kept.bits());
        assert_eq!(line(&String::from_utf8(child).unwrap(), "CapEff:"), kept.bits());
        assert!(own.contains("NoNewPrivs:\t1"), "{own}");
    }

    #[test]
    fn other_files_are_out_of_reach() {
        let dir = tempfile::tempdir().unwrap();
        let [readable, writable, hidden] = ["readable", "writable", "hidden"].map(|name| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), name).unwrap();
            path
        });
        let files = FileAccess {
            read: vec![readable.clone(), dir.path().join("missing")],
            write: vec![writable.clone()],
        };
        let confinement = Confinement { files: Some(files), ..only_capabilities(Capabilities::all()) };
        let results = run_confined(&confinement, || {
            [
                fs::read(readable.join("file")).is_ok(),
                fs::write(writable.join("new"), "").is_ok(),
                fs::write(readable.join("new"), "").is_ok(),
                fs::read(hidden.join("file")).is_ok(),
            ]
        });
        let here = std::thread::spawn(|| restrict_files(&FileAccess::default()).unwrap()).join().unwrap();
        if here == RulesetStatus::FullyEnforced {
            assert_eq!(results, [true, true, false, false]);
        } else {
            assert_eq!(results, [true; 4], "without Landlock nothing is out of reach: {here:?}");
        }
    }
}
