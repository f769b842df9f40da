//! A netlink socket that only receives notifications of changes.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The size of the receive buffer in bytes.
///
/// A notification of the kernel fits one or two pages, except for devices with many virtual
/// functions.
const BUFFER: usize = 32 * 1024;

/// The readiness of the socket to wait for, which includes errors.
///
/// An error may be the only event: if the reader empties the queue while the kernel is about to
/// find it full (`netlink_overrun`), the kernel marks an empty socket as congested and adds nothing
/// until it is read. tokio does not treat an error as readable.
const READY: Interest = Interest::READABLE.add(Interest::ERROR);

/// A netlink socket that is a member of multicast groups of one protocol.
pub(super) struct Subscription {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

/// The result of receiving one datagram from the netlink socket.
pub(super) enum Notification<'a> {
    /// A datagram with messages of the kernel; empty if the datagram was not from the kernel.
    Messages(&'a [u8]),
    /// The receive buffer overflowed, and an unknown number of notifications is lost.
    Overrun,
}

impl Subscription {
    /// Subscribes in this thread's network namespace to the multicast groups in the bit mask
    /// `groups` and to the groups with the numbers in `more`.
    ///
    /// Must be called in a tokio runtime.
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
        // SAFETY: the socket owns its descriptor, which stays the same until the AsyncFd is
        // dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, READY) }?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Receives the next datagram of notifications. This method is cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Notification<'_>> {
        let outcome = loop {
            let mut guard = self.socket.ready(READY).await?;
            self.buffer.clear();
            if let Ok(outcome) = guard.try_io(|socket| socket.get_ref().recv_from(&mut self.buffer, 0)) {
                break outcome;
            }
        };
        match outcome {
            // Any process may send to a netlink socket; port 0 is the kernel.
            Ok((_, from)) if from.port_number() != 0 => Ok(Notification::Messages(&[])),
            Ok(_) => Ok(Notification::Messages(&self.buffer)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Notification::Messages(&[])),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(Notification::Overrun),
            Err(error) => Err(error),
        }
    }

    /// Returns the socket, to set its options.
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

    /// Tests that an error without a datagram wakes the reader. Uses a UDP socket whose datagram is
    /// refused, because an overrun of a netlink socket cannot be provoked reliably.
    #[test]
    fn an_error_on_an_empty_queue_is_reported() {
        in_new_namespace(async {
            ip("link set lo up");
            let refused = UdpSocket::bind("127.0.0.1:0").unwrap();
            refused.connect("127.0.0.1:9").unwrap();
            let sender = refused.try_clone().unwrap();
            // SAFETY: the descriptor is open, and `into_raw_fd` gives up its ownership.
            let socket = unsafe { Socket::from_raw_fd(refused.into_raw_fd()) };
            let mut subscription = Subscription::of(socket).unwrap();
            assert!(timeout(Duration::from_millis(50), subscription.next()).await.is_err());
            sender.send(b"is anybody there").unwrap();
            let received = timeout(Duration::from_secs(5), subscription.next()).await;
            let error =
                received.expect("the error was not reported").err().expect("the datagram was refused");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}
