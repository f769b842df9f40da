//! Runs checks that have side effects in separate namespaces, so that they do not change the host.

use std::io;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::tun::Tun;
use crate::tunnel_options::Offloading;

/// The name of the device that [`try_tun`] creates in its own network namespace.
const TRIAL_DEVICE: &str = "mobile-check";

/// Runs `work` on a new thread in a separate mount namespace and an empty network namespace.
///
/// The kernel removes both namespaces, and what was created in them, when the thread ends. Requires
/// root.
///
/// # Errors
/// When the namespaces cannot be created.
pub fn run_isolated<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        // Keep mounts made by `work` out of the host's mount table: a check mounts a BPF file
        // system if the host has none.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        Ok(work())
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Opens a TUN device with `IFF_VNET_HDR`, as both programs do, and closes it again.
///
/// The device is created in a separate network namespace. Requires root.
///
/// # Errors
/// When no TUN device can be opened; the error is a text for the user.
pub fn try_tun() -> Result<(), String> {
    run_isolated(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let _entered = runtime.enter();
        Tun::open(TRIAL_DEVICE, false, Offloading::Auto).map(drop).map_err(|error| error.to_string())
    })
    .map_err(|error| format!("cannot create namespaces for the check: {error}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_device_is_invisible_to_the_host() {
        try_tun().unwrap();
        assert!(nix::net::if_::if_nametoindex(TRIAL_DEVICE).is_err());
        let namespace = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(run_isolated(namespace).unwrap(), namespace());
    }
}
