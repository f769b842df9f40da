//! A netlink socket that only listens.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Larger than any notification: the kernel makes none over a page or two, but for devices with many functions.
const BUFFER: usize = 32 * 1024;

/// An error is something to hear as well, and may be all there is: when the reader empties the queue while the kernel
/// is about to find it full (`netlink_overrun`), an empty socket is marked as congested, and is given nothing more until
/// it is read. tokio does not take an error for something to read.
const READY: Interest = Interest::READABLE.add(Interest::ERROR);

/// Membership of groups of one netlink family.
pub(super) struct Subscription {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

/// What came.
pub(super) enum Notification<'a> {
    /// One datagram with messages of the kernel; none in it when it is not for us.
    Messages(&'a [u8]),
    /// The socket overran: notifications are lost, nobody knows which.
    Overrun,
}

impl Subscription {
    /// Subscribes, in this thread's network namespace, to the groups of a bit mask and to others by
    /// their number. Must be called in a runtime.
    pub(super) fn new(protocol: isize, groups: u32, more: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, groups))?;
        for group in more {
            socket.add_membership(*group)?;
        }
        Self::of(socket)
    }

    fn of(socket: Socket) -> io::Result<Self> {
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, which stays the same until the AsyncFd is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, READY) }?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// The next datagram. A future dropped before it is ready has taken nothing.
    pub(super) async fn next(&mut self) -> io::Result<Notification<'_>> {
        let outcome = loop {
            let mut guard = self.socket.ready(READY).await?;
            self.buffer.clear();
            if let Ok(outcome) = guard.try_io(|socket| socket.get_ref().recv_from(&mut self.buffer, 0)) {
                break outcome;
            }
        };
        match outcome {
            // Anybody may send to a netlink socket; port 0 is the kernel.
            Ok((_, from)) if from.port_number() != 0 => Ok(Notification::Messages(&[])),
            Ok(_) => Ok(Notification::Messages(&self.buffer)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Notification::Messages(&[])),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(Notification::Overrun),
            Err(error) => Err(error),
        }
    }

    /// The socket, for its options.
    #[cfg(test)]
    pub(super) fn socket(&self) -> &Socket {
        self.socket.get_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::{FromRawFd, IntoRawFd};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::tests::{in_new_namespace, ip};
    use super::*;

    /// The kernel's part cannot be had at will, so another socket has the error: one whose datagram is refused.
    #[test]
    fn an_overrun_that_leaves_an_empty_queue_is_heard() {
        in_new_namespace(async {
            ip("link set lo up");
            let refused = UdpSocket::bind("127.0.0.1:0").unwrap();
            refused.connect("127.0.0.1:9").unwrap();
            let sender = refused.try_clone().unwrap();
            // SAFETY: the descriptor is open, and `into_raw_fd` gives up its owner.
            let socket = unsafe { Socket::from_raw_fd(refused.into_raw_fd()) };
            let mut subscription = Subscription::of(socket).unwrap();
            assert!(timeout(Duration::from_millis(50), subscription.next()).await.is_err());
            sender.send(b"is anybody there").unwrap();
            let heard = timeout(Duration::from_secs(5), subscription.next()).await;
            let error = heard.expect("an error is something to hear").err().expect("nobody listens there");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}
