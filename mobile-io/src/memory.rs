//! The allocator's habits.

/// Freed memory at the top of the heap that is kept for the next allocation. TLS records and packets come and go by
/// the 64 KiB: with glibc's 128 KiB every other one was given back to the kernel, and cleared and mapped again for the
/// next, a tenth of all processor time of a bulk transfer. What a burst leaves beyond this is given back as before.
#[cfg(target_env = "gnu")]
const KEPT: nix::libc::c_int = 4 << 20;

/// Makes the allocator keep a little of what is freed. Once, at the start of a daemon.
pub fn keep_some() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt takes two integers, and this parameter can be set at any time.
        let done = unsafe { nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, KEPT) };
        if done != 1 {
            tracing::debug!("the allocator keeps its own threshold");
        }
    }
}
