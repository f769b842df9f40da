//! What can only be known by trying, tried where nobody notices: in namespaces of its own, which go with their thread.

use std::io;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::tun::Tun;
use crate::tunnel_options::Offloading;

/// What the trial device is called; nobody else sees it.
const TRIAL_DEVICE: &str = "mobile-check";

/// Does `work` in a network namespace without devices and with mounts of its own. Wants root.
///
/// # Errors
/// When the namespaces cannot be made.
pub fn run_isolated<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        // What is mounted in here (a BPF file system, where there is none) is seen in here only.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        Ok(work())
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Opens a TUN as both programs do, with packets whole (IFF_VNET_HDR). Wants root.
///
/// # Errors
/// Why none can be opened, in words.
pub fn try_tun() -> Result<(), String> {
    run_isolated(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let _entered = runtime.enter();
        Tun::open(TRIAL_DEVICE, false, Offloading::Auto).map(drop).map_err(|error| error.to_string())
    })
    .map_err(|error| format!("cannot make namespaces to try in: {error}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_device_is_opened_and_nobody_sees_it() {
        try_tun().unwrap();
        assert!(nix::net::if_::if_nametoindex(TRIAL_DEVICE).is_err());
        let namespace = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(run_isolated(namespace).unwrap(), namespace());
    }
}
