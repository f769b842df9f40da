//! Giving up what a started daemon does not need: capabilities, system calls (seccomp), files (Landlock). Whoever takes
//! the process over through a bug finds no more than that.
//!
//! All three hold for the calling thread and those it starts. So a runtime's threads confine themselves as they start,
//! and the first thread, which sets things up, when it is done.

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

/// What stays allowed.
#[derive(Debug, Clone)]
pub struct Confinement {
    /// Of the capabilities the process has, these are kept.
    pub capabilities: Capabilities,
    /// System calls beyond those that both daemons make.
    pub syscalls: &'static [libc::c_long],
    /// Whether Unix sockets may be connected, for user databases that are served over one.
    pub unix_streams: bool,
    /// Which files; `None` for all that the process's user may.
    pub files: Option<FileAccess>,
}

/// FileAccess and folders, with what is below them. Those that do not exist are passed over.
#[derive(Debug, Clone, Default)]
pub struct FileAccess {
    /// May be read and executed.
    pub read: Vec<PathBuf>,
    /// May be written, made and removed as well.
    pub write: Vec<PathBuf>,
}

/// Why a process cannot be run_confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Capabilities could not be given up.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(#[source] io::Error),
    /// The filter of system calls was refused.
    #[error("cannot give up system calls: {0}")]
    Calls(#[from] seccompiler::BackendError),
    /// The kernel did not take the filter.
    #[error("cannot give up system calls: {0}")]
    Filter(#[from] seccompiler::Error),
    /// Landlock failed on a kernel that has it.
    #[error("cannot give up access to files: {0}")]
    Files(#[from] landlock::RulesetError),
}

impl Confinement {
    /// Confines the calling thread, for good.
    ///
    /// # Errors
    /// When the kernel refuses; not when it is too old to have Landlock, or the processor has no seccomp filter here.
    pub fn apply(&self) -> Result<(), ConfineError> {
        // In this order: giving up capabilities takes one, and calls that the later steps make must still be allowed.
        drop_capabilities(self.capabilities).map_err(|errno| ConfineError::Capabilities(errno.into()))?;
        if let Some(files) = &self.files {
            let status = restrict_files(files)?;
            debug!(landlock = ?status, "confined");
        }
        syscalls::restrict(self.syscalls, self.unix_streams)
    }
}

/// Keeps no more than `wanted`, here and in what is executed from here.
fn drop_capabilities(wanted: Capabilities) -> rustix::io::Result<()> {
    let own = thread::capabilities(None)?;
    if own.effective.contains(Capabilities::SETPCAP) {
        // What root executes would get every capability that is left in the bounding set.
        for capability in Capabilities::all().iter().filter(|one| !wanted.contains(*one)) {
            // A kernel does not know those that are newer than it.
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
    // What kernel 6.2 knows: everything that changes a file. Later ones add calls on devices, which TUN needs.
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

/// Only sets no_new_privs, on processors for which no filter is written.
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

    /// On a thread of its own, since there is no way back.
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
    fn capabilities_are_given_up_here_and_in_what_is_executed() {
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
