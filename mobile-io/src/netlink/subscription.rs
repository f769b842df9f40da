//! A netlink socket that only listens.

use std::io;
use std::task::{Context, Poll, ready};

#[cfg(test)]
use netlink_sys::Socket;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use nix::errno::Errno;

/// Larger than any notification: the kernel makes none over a page or two, but for devices with many functions.
const BUFFER: usize = 32 * 1024;

/// Membership of groups of one netlink family.
pub(super) struct Subscription {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

/// What came.
pub(super) enum Heard<'a> {
    /// One datagram with messages of the kernel; none in it when it is not for us.
    Messages(&'a [u8]),
    /// The socket overran: notifications are lost, nobody knows which.
    Overrun,
}

impl Subscription {
    /// Subscribes, in this thread's network namespace, to the groups of a bit mask and to one by its number. Wants a
    /// runtime.
    pub(super) fn new(protocol: isize, groups: u32, group: u32) -> io::Result<Self> {
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        socket.socket_mut().add_membership(group)?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// The next datagram. Pending only when none was taken from the socket.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Heard<'_>>> {
        self.buffer.clear();
        Poll::Ready(match ready!(self.socket.poll_recv_from(cx, &mut self.buffer)) {
            // Anybody may send to a netlink socket; port 0 is the kernel.
            Ok(from) if from.port_number() != 0 => Ok(Heard::Messages(&[])),
            Ok(_) => Ok(Heard::Messages(&self.buffer)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Heard::Messages(&[])),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(Heard::Overrun),
            Err(error) => Err(error),
        })
    }

    /// The socket, for its options.
    #[cfg(test)]
    pub(super) fn socket(&self) -> &Socket {
        self.socket.socket_ref()
    }
}
