//! One socket of the matrix: a kind of socket and an address family, from `socket()` to the answer.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{self, in_pktinfo, in6_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Config;
use crate::icmp;
use crate::kind::{Family, SocketKind};

/// The interval at which a datagram is sent again while no answer arrives.
const AGAIN: Duration = Duration::from_millis(100);
/// The number of datagrams that a socket of a kind without answers sends.
const ONE_WAY: u32 = 3;
/// The payload of a stream or datagram; the server answers each line.
const LINE: &[u8] = b"who am I?\n";
/// The socket option of linux/tcp.h that defers the handshake to the first write; libc lacks the
/// constant on some platforms.
const TCP_FASTOPEN_CONNECT: libc::c_int = 30;
/// The protocol IPPROTO_RAW, with which the sender writes the IP header itself.
const RAW: i32 = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The step (`open`, `connect` or a send without answers) has succeeded.
    Ok,
    /// The other end has answered.
    Answered,
    /// The socket has received neither an answer nor an error yet.
    Waiting,
    /// A system call on the socket has failed.
    Refused,
}

pub(crate) struct SocketCell {
    kind: SocketKind,
    family: Family,
    number: u16,
    socket: Option<Socket>,
    /// A second socket: the one that receives answers for a send-only socket, or the one that a
    /// listening socket has accepted.
    other: Option<Socket>,
    outcome: Outcome,
    refusal: Option<(&'static str, io::Error)>,
    seen: Option<String>,
    sent: u32,
    last: Option<Instant>,
}

impl SocketCell {
    pub(crate) fn new(kind: SocketKind, family: Family, number: u16) -> Self {
        Self {
            kind,
            family,
            number,
            socket: None,
            other: None,
            outcome: Outcome::Ok,
            refusal: None,
            seen: None,
            sent: 0,
            last: None,
        }
    }

    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    pub(crate) fn report(&self) -> Value {
        let outcome = match self.outcome {
            Outcome::Ok => "ok",
            Outcome::Answered => "answered",
            Outcome::Waiting => "waiting",
            Outcome::Refused => "refused",
        };
        let mut line = json!({
            "kind": self.kind.name(), "family": self.family.name(), "number": self.number, "outcome": outcome,
        });
        if let Some((call, error)) = &self.refusal {
            line["call"] = json!(call);
            let errno = error.raw_os_error().map(|code| format!("{:?}", Errno::from_raw(code)));
            line["errno"] = json!(errno.unwrap_or_else(|| error.to_string()));
        }
        if let Some(seen) = &self.seen {
            line["seen"] = json!(seen);
        }
        line
    }

    /// Makes the socket, and binds it if its kind requires that.
    pub(crate) fn open(&mut self, config: &Config) {
        let result = self.make(config);
        self.end("open", result.map(|()| Outcome::Ok));
    }

    fn make(&mut self, config: &Config) -> io::Result<()> {
        let domain = if self.family == Family::Ipv4 { Domain::IPV4 } else { Domain::IPV6 };
        let icmp = if self.family == Family::Ipv4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let (kind, protocol) = match self.kind {
            SocketKind::Mptcp => (Type::STREAM, Protocol::MPTCP),
            SocketKind::TcpListening => (Type::STREAM, Protocol::TCP),
            kind if kind.is_stream() => (Type::STREAM, Protocol::TCP),
            SocketKind::Ping | SocketKind::PingOnDevice => (Type::DGRAM, icmp),
            SocketKind::Raw => (Type::RAW, icmp),
            SocketKind::RawHeader => (Type::RAW, Protocol::from(RAW)),
            _ => (Type::DGRAM, Protocol::UDP),
        };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if self.kind.is_on_device() {
            socket.bind_device(Some(config.device.as_bytes()))?;
        }
        let any = if self.family == Family::Ipv4 {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let bound = match self.kind {
            SocketKind::TcpListening | SocketKind::UdpOfPort => Some(SocketAddr::new(any, self.number)),
            SocketKind::UdpOfSource => Some(SocketAddr::new(config.source.of(self.family), 0)),
            SocketKind::UdpOfUplink => Some(SocketAddr::new(config.uplink.of(self.family), 0)),
            _ => None,
        };
        if let Some(address) = bound {
            socket.bind(&address.into())?;
        }
        match self.kind {
            SocketKind::TcpListening => socket.listen(16)?,
            SocketKind::FastOpenConnect => fast_open_connect(&socket)?,
            SocketKind::RawHeader => {
                let hears = Socket::new(domain, Type::RAW, Some(icmp))?;
                hears.set_nonblocking(true)?;
                self.other = Some(hears);
            }
            _ => {}
        }
        self.socket = Some(socket);
        Ok(())
    }

    /// Connects the socket if its kind requires that.
    pub(crate) fn connect(&mut self, config: &Config) {
        let Some(socket) = &self.socket else { return };
        let target = config.target(self.kind, self.family, self.number).into();
        let result = match self.kind {
            // Without a cookie the kernel requests one first, and the data must be sent again.
            SocketKind::FastOpenSendto => {
                socket.send_to_with_flags(LINE, &target, libc::MSG_FASTOPEN).map(|_| Outcome::Waiting)
            }
            // These send nothing until there is data.
            SocketKind::FastOpenConnect | SocketKind::UdpConnected => {
                socket.connect(&target).map(|()| Outcome::Ok)
            }
            kind if kind.is_stream() => socket.connect(&target).map(|()| Outcome::Waiting),
            _ => Ok(Outcome::Ok),
        };
        let result = match result {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Outcome::Waiting),
            result => result,
        };
        self.end("connect", result);
    }

    /// Checks whether the handshake of a connecting stream has completed or failed.
    pub(crate) fn watch_connect(&mut self) {
        let Some(socket) = &self.socket else { return };
        let result = match socket.take_error() {
            Ok(None) if socket.peer_addr().is_ok() => Ok(Outcome::Ok),
            Ok(None) => Ok(Outcome::Waiting),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        self.end("connect", result);
    }

    /// Prepares the socket for a new `send` step: discards answers to earlier packets.
    pub(crate) fn restart(&mut self) {
        if self.socket.is_none() {
            return;
        }
        if self.kind == SocketKind::TcpListening {
            self.other = None;
        }
        while matches!(self.receive(), Ok(Some(_))) {}
        (self.outcome, self.refusal, self.seen, self.sent, self.last) =
            (Outcome::Waiting, None, None, 0, None);
    }

    /// Sends if a packet is due, and reads an answer if one has arrived.
    pub(crate) fn send(&mut self, config: &Config) {
        match self.try_send(config) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return self.end("send", Err(error)),
            Ok(()) => {}
        }
        match self.receive() {
            Ok(Some(seen)) => {
                self.seen = Some(seen).filter(|seen| !seen.is_empty());
                self.end("hear", Ok(Outcome::Answered));
            }
            Ok(None) if self.kind.is_one_way() && self.sent == ONE_WAY => self.end("send", Ok(Outcome::Ok)),
            Ok(None) => {}
            Err(error) => self.end("hear", Err(error)),
        }
    }

    fn try_send(&mut self, config: &Config) -> io::Result<()> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        let target = config.target(self.kind, self.family, self.number);
        let due = self.last.is_none_or(|last| last.elapsed() >= AGAIN);
        let _datagrams_go_whole: usize = match self.kind {
            SocketKind::TcpListening => {
                if self.other.is_none()
                    && let Ok((stream, _)) = socket.accept()
                {
                    stream.set_nonblocking(true)?;
                    self.other = Some(stream);
                }
                return Ok(());
            }
            kind if kind.is_stream() => {
                if self.sent > 0 {
                    return Ok(());
                }
                if let Some(error) = socket.take_error()? {
                    return Err(error);
                }
                match socket.write(LINE) {
                    // The handshake is not complete.
                    Err(error)
                        if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::ENOTCONN)) =>
                    {
                        return Ok(());
                    }
                    result => result?,
                }
            }
            _ if !due => return Ok(()),
            SocketKind::UdpConnected => socket.send(LINE)?,
            SocketKind::UdpFromSource => send_from(socket, target, config.source.of(self.family), 0)?,
            SocketKind::UdpFromDevice => {
                let any = match self.family {
                    Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
                    Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
                    Family::Mapped => Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(),
                };
                send_from(socket, target, any, config.device_index())?
            }
            SocketKind::RawHeader => {
                let packet = icmp::packet(self.number, config.source.of(self.family), target.ip());
                socket.send_to(&packet, &target.into())?
            }
            kind if kind.is_icmp() => {
                let request = icmp::request(self.number, None, self.family == Family::Ipv6);
                socket.send_to(&request, &target.into())?
            }
            _ => socket.send_to(LINE, &target.into())?,
        };
        self.sent += 1;
        self.last = Some(Instant::now());
        Ok(())
    }

    /// Reads an answer. Returns the source address that the answer reports (empty if it reports
    /// none), or `None` if none has arrived.
    fn receive(&mut self) -> io::Result<Option<String>> {
        let from = match self.kind {
            SocketKind::TcpListening | SocketKind::RawHeader => self.other.as_mut(),
            _ => self.socket.as_mut(),
        };
        let Some(from) = from else { return Ok(None) };
        let mut buffer = [0; 2048];
        let length = if self.kind.is_icmp() {
            let mut room = [MaybeUninit::uninit(); 2048];
            // A raw socket also receives answers to other sockets.
            loop {
                match from.recv(&mut room) {
                    Ok(length) => {
                        // SAFETY: the kernel has written that many bytes.
                        let bytes = unsafe { room[..length].assume_init_ref() };
                        if icmp::answers(bytes, self.number) {
                            return Ok(Some(String::new()));
                        }
                    }
                    Err(error) => break Err(error),
                }
            }
        } else {
            from.read(&mut buffer)
        };
        match length {
            Ok(0) if self.kind.is_stream() => Err(ErrorKind::UnexpectedEof.into()),
            // The caller timed out while the handshake completed: wait for the next call.
            Ok(0) if self.kind == SocketKind::TcpListening => {
                self.other = None;
                Ok(None)
            }
            Ok(0) => Ok(None),
            Ok(_) if self.kind == SocketKind::TcpListening => {
                let peer = from.peer_addr()?.as_socket();
                from.write_all(LINE)?;
                Ok(Some(peer.map_or_else(String::new, |peer| peer.to_string())))
            }
            Ok(length) => Ok(Some(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            // The stream is not connected yet.
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
            Err(error)
                if error.kind() == ErrorKind::ConnectionReset && self.kind == SocketKind::TcpListening =>
            {
                self.other = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn end(&mut self, call: &'static str, result: io::Result<Outcome>) {
        match result {
            Ok(outcome) => self.outcome = outcome,
            Err(error) => {
                (self.outcome, self.refusal) = (Outcome::Refused, Some((call, error)));
                // A socket that failed to open or connect is closed; a failed send may be repeated.
                if call == "open" || call == "connect" {
                    self.socket = None;
                }
            }
        }
    }
}

fn fast_open_connect(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads the four bytes of `on`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_FASTOPEN_CONNECT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a datagram from the address `source` over the device with the index `device` by
/// IP_PKTINFO; an unspecified address and index 0 leave the choice to the kernel.
fn send_from(socket: &Socket, target: SocketAddr, source: IpAddr, device: u32) -> io::Result<usize> {
    // SAFETY: both structures consist of integers only, for which zero means "any".
    let (mut four, mut six): (in_pktinfo, in6_pktinfo) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let named = match source {
        IpAddr::V4(source) => {
            four.ipi_ifindex = device as i32;
            four.ipi_spec_dst.s_addr = u32::from(source).to_be();
            ControlMessage::Ipv4PacketInfo(&four)
        }
        IpAddr::V6(source) => {
            six.ipi6_ifindex = device;
            six.ipi6_addr.s6_addr = source.octets();
            ControlMessage::Ipv6PacketInfo(&six)
        }
    };
    let (data, to) = ([IoSlice::new(LINE)], SockaddrStorage::from(target));
    Ok(sendmsg(socket.as_raw_fd(), &data, &[named], MsgFlags::empty(), Some(&to))?)
}

#[cfg(test)]
mod tests;
