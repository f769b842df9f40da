//! Chooses and tunes the memory allocator.

/// Replaces musl's allocator with dlmalloc.
///
/// musl returns freed memory to the kernel at once, so that the kernel maps and clears new memory
/// for each TLS record: a bulk transfer took a fifth to three quarters more processor time than
/// with glibc's allocator.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: outlined::Dlmalloc = outlined::Dlmalloc;

#[cfg(target_env = "musl")]
mod outlined {
    use std::alloc::{GlobalAlloc, Layout};

    use dlmalloc::GlobalDlmalloc;

    /// The dlmalloc allocator with calls that are not inlined.
    ///
    /// Inlined, its lock is repeated in each of the thousands of places that free something, which
    /// adds a fifth of a megabyte to the program.
    pub(super) struct Dlmalloc;

    // SAFETY: every call is forwarded unchanged to an allocator that keeps the same contract.
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

/// The amount of freed memory, in bytes, that glibc keeps at the top of the heap.
///
/// TLS records and packets are allocated in blocks of up to 64 KiB. With glibc's default of 128 KiB
/// every second block was returned to the kernel and then mapped and cleared again, which took a
/// tenth of all processor time of a bulk transfer. Memory of a burst beyond this amount is still
/// returned.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: nix::libc::c_int = 4 << 20;

/// Makes the allocator keep some freed memory instead of returning it to the kernel; a daemon calls
/// this once when it starts.
pub fn retain_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: `mallopt` takes two integers, and this parameter may be set at any time.
        let done = unsafe { nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD) };
        if done != 1 {
            tracing::debug!("cannot set the allocator's trim threshold: freed memory is returned sooner");
        }
    }
}
