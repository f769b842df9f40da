//! Attaches a program to a cgroup by a pinned link, with bpf(2) itself, for program kinds whose
//! links aya cannot pin.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::libc;

/// Commands of bpf(2) (`enum bpf_cmd`).
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_LINK_CREATE: libc::c_int = 28;

/// The part of `union bpf_attr` that creates a link.
#[repr(C)]
struct LinkCreate {
    program: RawFd,
    cgroup: RawFd,
    hook: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that pins an object.
#[repr(C)]
struct ObjectPin {
    path: u64,
    object: RawFd,
    flags: u32,
}

/// Attaches a loaded eBPF program to a hook of a cgroup (`enum bpf_attach_type`). The program stays
/// attached as long as the link pinned at `pin` exists.
pub(super) fn pin(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: u32, pin: &Path) -> io::Result<()> {
    let create = LinkCreate { program: program.as_raw_fd(), cgroup: cgroup.as_raw_fd(), hook, flags: 0 };
    let link = bpf(BPF_LINK_CREATE, &create)?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let path = CString::new(pin.as_os_str().as_bytes())?;
    bpf(BPF_OBJ_PIN, &ObjectPin { path: path.as_ptr() as u64, object: link.as_raw_fd(), flags: 0 })?;
    Ok(())
}

/// Calls bpf(2). The attributes must refer only to memory that lives for the call.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of the attributes; both kinds above are
    // integers without padding, and the path in one is a C string that lives for the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, (&raw const *attributes).cast::<libc::c_void>(), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
