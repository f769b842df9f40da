//! Reads the network namespace of a socket, as the number that the programs compare
//! (SO_NETNS_COOKIE).

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use nix::libc;

/// The option's number, which the C library's headers lack on some platforms (asm-generic/socket.h,
/// Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Returns the number that the programs compare with a socket's namespace.
pub(super) fn cookie() -> io::Result<u64> {
    cookie_of(std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?.as_fd())
}

/// Returns the number of the namespace that a socket is in.
pub(super) fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
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
