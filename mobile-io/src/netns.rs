//! Identifies a network namespace, for names and records in file systems that several namespaces
//! share.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;

use nix::libc;

/// The number of SO_NETNS_COOKIE, which the C library's headers lack on some platforms
/// (asm-generic/socket.h, Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The inode number of the machine's own network namespace since Linux 6.18 (`NET_NS_INIT_INO`,
/// linux/nsfs.h).
const INITIAL_INODE: u64 = 0xefff_fff9;

/// The cookie of that namespace on older kernels, from Linux 5.14 on: the first that the kernel
/// assigns.
const INITIAL_COOKIE: u64 = 1;

/// Returns the inode number of the calling thread's network namespace, as `lsns -t net` shows it.
///
/// Namespaces that exist at the same time have different numbers; a number may be reused later.
///
/// # Errors
/// When /proc is not mounted.
pub fn id() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// Returns `name` for the machine's own network namespace, and `name-ID` for every other one.
///
/// All network namespaces share the file systems of cgroups and pins.
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
/// When the kernel has none (before Linux 5.14).
pub fn cookie() -> io::Result<u64> {
    cookie_of(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.as_fd())
}

/// Returns the cookie of the network namespace that a socket is in.
///
/// # Errors
/// When the kernel has none (before Linux 5.14).
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
