//! The allocator, and its habits.

/// In place of musl's, which gives what is freed back to the kernel at once, so that each TLS record is mapped and cleared
/// anew: a bulk transfer took a fifth to three quarters more processor time than with glibc's.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: outlined::Dlmalloc = outlined::Dlmalloc;

#[cfg(target_env = "musl")]
mod outlined {
    use std::alloc::{GlobalAlloc, Layout};

    use dlmalloc::GlobalDlmalloc;

    /// As it comes, its lock becomes a part of each of the thousands of places that free something: a fifth of a megabyte.
    pub(super) struct Dlmalloc;

    // SAFETY: all of it is passed on as it is to an allocator that keeps the same contract.
    unsafe impl GlobalAlloc for Dlmalloc {
        #[inline(never)]
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: as above.
            unsafe { GlobalDlmalloc.alloc(layout) }
        }

        #[inline(never)]
        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: as above.
            unsafe { GlobalDlmalloc.dealloc(pointer, layout) }
        }

        #[inline(never)]
        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: as above.
            unsafe { GlobalDlmalloc.alloc_zeroed(layout) }
        }

        #[inline(never)]
        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: as above.
            unsafe { GlobalDlmalloc.realloc(pointer, layout, size) }
        }
    }
}

/// Freed memory at the top of the heap that is kept for the next allocation. TLS records and packets come and go by
/// the 64 KiB: with glibc's 128 KiB every other one was given back to the kernel, and cleared and mapped again for the
/// next, a tenth of all processor time of a bulk transfer. What a burst leaves beyond this is given back as before.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: nix::libc::c_int = 4 << 20;

/// Makes the allocator keep a little of what is freed. Once, at the start of a daemon.
pub fn retain_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt takes two integers, and this parameter can be set at any time.
        let done = unsafe { nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD) };
        if done != 1 {
            tracing::debug!("the allocator keeps its own threshold");
        }
    }
}
