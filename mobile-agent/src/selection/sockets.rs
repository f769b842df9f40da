//! The sockets that a process holds when it becomes mobile or ordinary: those without a peer follow it at once.
//!
//! A connection keeps its route, and a stream that is not connected yet is asked about at
//! connect(). But a datagram takes the mark its socket had before the kernel asks the programs, and
//! for ping and raw sockets, and for what a listening socket accepts, it never asks: so the mark of
//! these changes when their process does.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd},
};

use nix::libc;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use socket2::{Domain, Protocol, Socket, Type};

/// The bits of a socket's mark that are ours, their value on a mobile socket, and the right to
/// change them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// The bits to set.
    pub(crate) mark: u32,
    /// The bits of the mark that are ours.
    pub(crate) mask: u32,
    /// The secret by which the programs let the agent change these bits:
    /// [`mobile_ebpf_common::ProgramConfig::key`].
    pub(crate) key: u64,
}

/// Marks every unconnected datagram, ping, raw, listening and SCTP socket of a process, or clears
/// their marks. Leaves sockets of other network namespaces alone. A kernel before 5.6 cannot
/// duplicate another process's descriptors (`pidfd_getfd`): there the sockets keep their marks.
pub(crate) fn follow(pid: i32, pidfd: BorrowedFd<'_>, ours: Mark, mobile: bool) {
    for (fd, socket) in sockets(pid, pidfd) {
        if let Err(error) = follow_one(&socket, ours, mobile) {
            tracing::debug!(pid, fd, %error, "a socket keeps its mark");
        }
    }
}

/// Whether a process has sockets that could be mobile.
pub(crate) fn has_any(pid: i32, pidfd: BorrowedFd<'_>) -> bool {
    sockets(pid, pidfd).next().is_some()
}

fn follow_one(socket: &Socket, Mark { mark, mask, key }: Mark, mobile: bool) -> io::Result<()> {
    if (is_asked_about(socket)? && !socket.is_listener()?) || socket.peer_addr().is_ok() {
        return Ok(());
    }
    let old = socket.mark()?;
    let marked = old & mask == mark & mask;
    match (mobile, marked) {
        (true, false) => set_mark(socket, (old & !mask) | (mark & mask), key),
        (false, true) => set_mark(socket, old & !mask, key),
        _ => Ok(()),
    }
}

/// Sets SO_MARK, with the key behind the mark; the programs read the key and the kernel ignores it.
fn set_mark(socket: &Socket, mark: u32, key: u64) -> io::Result<()> {
    let value = [mark, key as u32, (key >> 32) as u32];
    // SAFETY: the kernel and the programs read at most the size of `value`, which lives for the
    // call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel asks the programs about its connect(): of streams it does so for these only, not for SCTP.
fn is_asked_about(socket: &Socket) -> io::Result<bool> {
    let asking = [Some(Protocol::TCP), Some(Protocol::MPTCP)];
    Ok(socket.r#type()? == Type::STREAM && asking.contains(&socket.protocol()?))
}

/// The IPv4 and IPv6 sockets of a process in our network namespace. One that is closed meanwhile, or not to be had, is none.
fn sockets(pid: i32, pidfd: BorrowedFd<'_>) -> impl Iterator<Item = (RawFd, Socket)> {
    let own_namespace = mobile_io::netns::cookie().ok();
    socket_fds(pid).into_iter().filter_map(move |fd| {
        let socket = Socket::from(pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).ok()?);
        let is_inet = [Domain::IPV4, Domain::IPV6].contains(&socket.domain().ok()?);
        let namespace = || mobile_io::netns::cookie_of(socket.as_fd()).ok();
        (is_inet && own_namespace.is_some() && namespace() == own_namespace).then_some((fd, socket))
    })
}

/// The descriptors of a process that are sockets.
fn socket_fds(pid: i32) -> Vec<RawFd> {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    fds.flatten()
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")))
        .filter_map(|fd| fd.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;
    use crate::selection::probe::{FOREIGN, Place, Probe};

    #[test]
    fn unconnected_sockets_follow_their_process_and_connections_do_not() {
        Place::with(|place| {
            let mut probe = Probe::start();
            let pidfd = pidfd_open(Pid::from_raw(probe.pid()).unwrap(), PidfdFlags::empty()).unwrap();
            for kind in ["ping4", "ping6", "raw4", "raw6", "udp4", "udp6", "tcp4", "tcp6"] {
                assert_eq!(probe.open(kind), 0, "{kind}");
            }
            probe.listen("tcp6");
            probe.connect("udp4", "127.0.0.1:9");
            probe.set_mark("raw4", 7 & FOREIGN);
            let selector = place.load();
            let ours = Mark { mark: place.marking.mark, mask: place.marking.mask, key: selector.key() };
            for (mobile, mark) in [(true, ours.mark), (true, ours.mark), (false, 0)] {
                follow(probe.pid(), pidfd.as_fd(), ours, mobile);
                for (kind, mark) in [
                    ("ping4", mark),
                    ("ping6", mark),
                    ("raw4", mark | 7),
                    ("udp6", mark),
                    ("udp4", 0),
                    ("tcp4", 0),
                    ("tcp6", mark),
                ] {
                    assert_eq!(probe.look(kind), mark, "{kind}, {mobile}");
                }
            }
        });
    }
}
