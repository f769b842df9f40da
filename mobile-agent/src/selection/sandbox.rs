//! Support for tests: a sandbox for the agent's kernel objects, and probe processes that create and
//! use sockets on command.

mod probe;
mod probe_process;
mod tcp_option;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sched::{CloneFlags, unshare};

pub(super) use self::{probe::Probe, tcp_option::TcpOption};
use super::{
    addresses::Addresses,
    bpf::{self, Marking, Selector},
    cgroup::{Cgroup2, MobileCgroup},
};
use crate::config::OnFailure;

/// Bits of the mark outside the agent's mask, which the eBPF programs must not change.
pub(super) const FOREIGN: u32 = 0x0000_00ff;

/// The interface index that stands for the host virtual device; no device has it.
const DEVICE: u32 = 4096;

/// A pin directory, a mobile cgroup and a network namespace for one test.
pub(super) struct Sandbox {
    pub(super) pin_dir: PathBuf,
    pub(super) cgroup: MobileCgroup,
    pub(super) marking: Marking<'static>,
}

impl Sandbox {
    /// Runs a test in a new sandbox, which is removed whether the test passes or fails.
    pub(super) fn with(test: impl FnOnce(&Self) + Send + 'static) {
        // Use a new thread, because its network namespace must not stay with the thread that runs
        // the next test.
        let result = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; these tests need root");
            run("ip", &["link", "set", "lo", "up"]);
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
            test(&Self::new());
        });
        if let Err(panic) = result.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mobile-unit-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup2 = Cgroup2::find(None).unwrap();
        Self {
            pin_dir: Path::new("/sys/fs/bpf").join(&name),
            cgroup: MobileCgroup::ensure(Some(&cgroup2.mount().join(name))).unwrap(),
            marking: marking(0x4d00_0000),
        }
    }

    pub(super) fn load(&self) -> Selector {
        Selector::load_or_adopt(&self.pin_dir, &self.cgroup, self.marking).unwrap()
    }

    /// Starts a probe, a process that uses sockets on command, and makes it mobile.
    pub(super) fn mobile(&self) -> Probe {
        let probe = Probe::start();
        self.cgroup.attach(probe.pid()).unwrap();
        probe
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for result in [
            bpf::remove(&self.pin_dir).map(drop).map_err(|error| error.to_string()),
            self.cgroup.remove().map_err(|error| error.to_string()),
        ] {
            if let Err(error) = result {
                // A second panic while unwinding would abort and hide the first.
                assert!(std::thread::panicking(), "left behind: {error}");
            }
        }
    }
}

fn marking(mark: u32) -> Marking<'static> {
    let (mask, device, none) = (!FOREIGN, DEVICE, Addresses::default());
    Marking {
        mark,
        mask,
        log: false,
        device,
        bypass: &[],
        resolvers: none,
        persistent: none,
        on_failure: OnFailure::Closed,
    }
}

pub(super) fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}
