//! Identifies the network namespace of the calling thread, for the names of files in file systems
//! that several namespaces share.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;

use nix::libc;

/// The socket option that returns the cookie of a network namespace (asm-generic/socket.h, Linux
/// 5.14), which the headers of some C libraries lack.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The inode number of the initial network namespace since Linux 6.18 (`NET_NS_INIT_INO`,
/// linux/nsfs.h).
const INITIAL_INODE: u64 = 0xefff_fff9;

/// The cookie of the initial network namespace on kernels from Linux 5.14 to 6.17: the first cookie
/// that the kernel assigns.
const INITIAL_COOKIE: u64 = 1;

/// Returns the inode number of the calling thread's network namespace, as shown by `lsns -t net`.
///
/// The numbers of namespaces that exist at the same time differ, but a number may be reused later.
///
/// # Errors
/// When /proc is not mounted.
pub fn id() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// Returns `name` in the initial network namespace, and `name-ID` in every other one, where `ID` is
/// the namespace's inode number ([`id`]).
///
/// The suffix is needed because all network namespaces share the file systems of cgroups and of
/// pinned BPF objects.
#[must_use]
pub fn name(name: &str) -> String {
    match id() {
        Ok(id) if id != INITIAL_INODE && !cookie().is_ok_and(|cookie| cookie == INITIAL_COOKIE) => {
            format!("{name}-{id}")
        }
        _ => name.to_owned(),
    }
}

/// Returns the cookie of the calling thread's network namespace, which eBPF programs compare
/// (`bpf_get_netns_cookie`).
///
/// # Errors
/// When the kernel does not support cookies (before Linux 5.14).
pub fn cookie() -> io::Result<u64> {
    cookie_of(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.as_fd())
}

/// Returns the cookie of the network namespace that `socket` belongs to.
///
/// # Errors
/// When the kernel does not support cookies (before Linux 5.14).
pub fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, and both live for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
