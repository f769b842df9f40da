//! Finds the mobile process that has a TUN or TAP device open: a VPN client. Its own packets would
//! be routed into the tunnel, so the tunnel cannot run over its device.

use std::fs;
use std::path::{Path, PathBuf};

use mobile_host::text::read_lossy;

use crate::selection::cgroup::MobileCgroup;

/// Returns the mobile process that has the device `name` open, as `command (pid)`.
///
/// Reads `/proc` in time proportional to the number of open files of mobile processes. Skips files
/// that may not be read.
pub(super) fn find(name: &str, cgroup: &MobileCgroup) -> Option<String> {
    let pid =
        cgroup.pids().ok()?.into_iter().find(|pid| holds(&PathBuf::from(format!("/proc/{pid}")), name))?;
    let command = read_lossy(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} ({pid})", command.trim()))
}

/// Returns whether the process has a file descriptor of the device, which `fdinfo` names
/// (`tun_chr_show_fdinfo`).
fn holds(process: &Path, name: &str) -> bool {
    let namespace = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    if namespace(process) != namespace(Path::new("/proc/thread-self")) {
        return false;
    }
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    descriptors
        .flatten()
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("net/tun")))
        .filter_map(|fd| fs::read_to_string(process.join("fdinfo").join(fd.file_name())).ok())
        .any(|info| info.lines().filter_map(|line| line.strip_prefix("iff:")).any(|iff| iff.trim() == name))
}

#[cfg(test)]
mod tests {
    use mobile_transport::tun::{DeviceLifetime, Tun};
    use mobile_transport::tunnel_options::Offloading;
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn the_process_that_has_a_device_open_is_found() {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests run as root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _inside = runtime.enter();
            let tun = Tun::open("feeder0", DeviceLifetime::Process, Offloading::Auto).unwrap();
            let own = Path::new("/proc/thread-self");
            assert!(holds(own, "feeder0") && !holds(own, "feeder1"));
            drop(tun);
            assert!(!holds(own, "feeder0"));
        });
        thread.join().unwrap();
    }
}
