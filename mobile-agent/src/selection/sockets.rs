//! Changes the marks of sockets that a process holds when it becomes mobile or ordinary.
//!
//! A connection keeps its route, and a stream that is not connected yet passes the eBPF programs at
//! connect(). But the kernel reads the mark of a datagram before it runs the programs, and it never
//! runs them for ping and raw sockets and for connections that a listening socket accepts. So the
//! marks of these sockets change together with their process.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd},
};

use nix::libc;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use socket2::{Domain, Protocol, Socket, Type};

/// The agent's bits of a socket's firewall mark, with the key that permits changing them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// The firewall mark to set.
    pub(crate) mark: u32,
    /// The bits of the mark that the agent uses.
    pub(crate) mask: u32,
    /// The key by which the eBPF programs recognise the agent and let it change these bits:
    /// [`mobile_ebpf_common::ProgramConfig::key`].
    pub(crate) key: u64,
}

/// Sets or clears the mark of every unconnected datagram, ping, raw, listening and SCTP socket of a
/// process.
///
/// Leaves sockets of other network namespaces alone. A kernel before 5.6 cannot duplicate another
/// process's descriptors (`pidfd_getfd`); there the sockets keep their marks.
pub(crate) fn set_sockets_mobile(pid: i32, pidfd: BorrowedFd<'_>, ours: Mark, mobile: bool) {
    for (fd, socket) in sockets(pid, pidfd) {
        if let Err(error) = set_socket_mobile(&socket, ours, mobile) {
            tracing::debug!(pid, fd, %error, "cannot change the mark of a socket");
        }
    }
}

/// Returns whether a process has sockets that could become mobile.
pub(crate) fn has_any(pid: i32, pidfd: BorrowedFd<'_>) -> bool {
    sockets(pid, pidfd).next().is_some()
}

fn set_socket_mobile(socket: &Socket, Mark { mark, mask, key }: Mark, mobile: bool) -> io::Result<()> {
    if (connect_runs_programs(socket)? && !socket.is_listener()?) || socket.peer_addr().is_ok() {
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

/// Sets SO_MARK to `mark`, followed by the secret `key`, by which the eBPF programs recognise a
/// change made by the agent. The kernel reads only the mark.
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

/// Returns whether the kernel runs the eBPF programs when this socket calls connect(), as it does
/// for TCP and MPTCP streams but not for SCTP.
fn connect_runs_programs(socket: &Socket) -> io::Result<bool> {
    let protocols = [Some(Protocol::TCP), Some(Protocol::MPTCP)];
    Ok(socket.r#type()? == Type::STREAM && protocols.contains(&socket.protocol()?))
}

/// Returns those IPv4 and IPv6 sockets of a process that are in the agent's network namespace.
/// Skips sockets that are closed during the search or cannot be duplicated.
fn sockets(pid: i32, pidfd: BorrowedFd<'_>) -> impl Iterator<Item = (RawFd, Socket)> {
    let own_namespace = mobile_host::netns::cookie().ok();
    socket_fds(pid).into_iter().filter_map(move |fd| {
        let socket = Socket::from(pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).ok()?);
        let is_inet = [Domain::IPV4, Domain::IPV6].contains(&socket.domain().ok()?);
        let namespace = || mobile_host::netns::cookie_of(socket.as_fd()).ok();
        (is_inet && own_namespace.is_some() && namespace() == own_namespace).then_some((fd, socket))
    })
}

/// Returns the file descriptors of a process that are sockets.
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
    use crate::selection::sandbox::{FOREIGN, Probe, Sandbox};

    #[test]
    fn unconnected_sockets_change_with_their_process_and_connections_do_not() {
        Sandbox::with(|sandbox| {
            let mut probe = Probe::start();
            let pidfd = pidfd_open(Pid::from_raw(probe.pid()).unwrap(), PidfdFlags::empty()).unwrap();
            for kind in ["ping4", "ping6", "raw4", "raw6", "udp4", "udp6", "tcp4", "tcp6"] {
                assert_eq!(probe.open(kind), 0, "{kind}");
            }
            probe.listen("tcp6");
            probe.connect("udp4", "127.0.0.1:9");
            probe.set_mark("raw4", 7 & FOREIGN);
            let selector = sandbox.load();
            let ours = Mark { mark: sandbox.marking.mark, mask: sandbox.marking.mask, key: selector.key() };
            for (mobile, mark) in [(true, ours.mark), (true, ours.mark), (false, 0)] {
                set_sockets_mobile(probe.pid(), pidfd.as_fd(), ours, mobile);
                for (kind, mark) in [
                    ("ping4", mark),
                    ("ping6", mark),
                    ("raw4", mark | 7),
                    ("udp6", mark),
                    ("udp4", 0),
                    ("tcp4", 0),
                    ("tcp6", mark),
                ] {
                    assert_eq!(probe.socket_mark(kind), mark, "{kind}, {mobile}");
                }
            }
        });
    }
}
