//! Identifies the process at the other end of a Unix socket.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::kill;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

/// The peer of a Unix socket, as the kernel recorded it when the peer connected.
#[derive(Debug)]
pub struct Peer {
    /// The process id of the peer.
    pub pid: i32,
    /// The user id of the peer.
    pub uid: u32,
    /// The group id of the peer.
    pub gid: u32,
    /// A pidfd, which identifies the process even after its pid is reused; `None` if the process
    /// has terminated.
    pub pidfd: Option<OwnedFd>,
}

impl Peer {
    pub(super) fn of(stream: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(stream, PeerCredentials)?;
        let (pid, uid, gid) = (credentials.pid(), credentials.uid(), credentials.gid());
        Ok(Self { pid, uid, gid, pidfd: pidfd_of(stream, pid) })
    }
}

/// Returns whether the service to which a client has connected no longer exists.
///
/// The listening socket of a killed service can outlive the service: a child between `fork` and
/// `exec` still holds every descriptor of its parent, so that the kernel accepts connections that
/// nobody answers. The kernel reports the process that called `listen`.
pub(super) fn service_has_ended(stream: &impl AsFd) -> bool {
    // The kernel reports 0 for a process outside this PID namespace.
    getsockopt(stream, PeerCredentials).is_ok_and(|service| {
        service.pid() > 0 && kill(Pid::from_raw(service.pid()), None) == Err(Errno::ESRCH)
    })
}

/// Returns a pidfd of the process that connected; `None` if the process has terminated.
///
/// The socket option `SO_PEERPIDFD` (Linux 6.5) identifies exactly that process. Older kernels only
/// report the pid, which another process may have taken over since.
fn pidfd_of(stream: &impl AsFd, pid: i32) -> Option<OwnedFd> {
    match peer_pidfd(stream) {
        Ok(fd) => Some(fd),
        Err(Errno::ENOPROTOOPT) => pidfd_open(pid).ok(),
        // ESRCH: the process has terminated.
        Err(_) => None,
    }
}

fn peer_pidfd(stream: &impl AsFd) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;

    let mut fd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let socket = stream.as_fd().as_raw_fd();
    // SAFETY: the socket is open while `stream` is borrowed; `fd` and `length` are writable and
    // have the stated sizes.
    let outcome = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut length)
    };
    Errno::result(outcome)?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and accesses no memory.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = libc::c_int::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_a_pidfd_yield_the_same_process() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        for fd in [peer_pidfd(&near).ok(), pidfd_open(pid).ok()].into_iter().flatten() {
            use std::os::fd::AsRawFd;
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
            let line = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
            assert_eq!(line.trim(), pid.to_string());
        }
        assert!(pidfd_open(pid).is_ok());
    }
}
