//! Runs checks that have side effects in separate namespaces, so that they do not change the host.

use std::io;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_namespace_is_a_new_one() {
        let namespace = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(run_isolated(namespace).unwrap(), namespace());
    }
}
