//! DNS resolvers that answer every query with one fixed address, and a client for them.
//!
//! The address in an answer tells which resolver was queried. The client also reports the source
//! address of the answer.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::Lab;
use crate::mount_namespace::in_mount_namespace;
use crate::ns::Ns;
use crate::port;
use crate::services::{TcpService, UdpService};

/// The length of a DNS message's header in bytes.
const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// A DNS resolver over UDP and TCP at every address of its namespace.
pub struct Resolver {
    _udp: UdpService,
    _tcp: TcpService,
    clients: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Resolver {
    /// Starts a resolver that answers every query of type A with `ipv4` and every one of type AAAA
    /// with `ipv6`.
    pub fn start(ns: &Ns, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<Self> {
        let clients = Arc::new(Mutex::new(Vec::new()));
        let answer = move |query: &[u8]| answer(query, ipv4, ipv6);
        let (over_udp, over_tcp) = (Arc::clone(&clients), Arc::clone(&clients));
        Ok(Self {
            _udp: UdpService::start(ns, port::DNS, move |query, peer| {
                lock(&over_udp).push(peer);
                answer(query).unwrap_or_default()
            })?,
            _tcp: TcpService::start(ns, port::DNS, move |stream, peer| {
                lock(&over_tcp).push(peer);
                while let Ok(query) = read_message(&stream) {
                    if write_message(&stream, &answer(&query).unwrap_or_default()).is_err() {
                        return;
                    }
                }
            })?,
            clients,
        })
    }

    /// Returns the source addresses of all queries since the last call.
    pub fn asked_by(&self) -> Vec<IpAddr> {
        lock(&self.clients).drain(..).map(|client| client.ip()).collect()
    }
}

/// The transport protocol of a DNS query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP over an unconnected socket.
    Udp,
    /// UDP over a connected socket.
    UdpConnected,
    /// DNS over a TCP connection.
    Tcp,
}

impl Transport {
    /// Every transport protocol of a query.
    pub const ALL: [Self; 3] = [Self::Udp, Self::UdpConnected, Self::Tcp];

    /// Returns the name by which [`Transport::named`] identifies the transport.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::UdpConnected => "udp-connected",
            Self::Tcp => "tcp",
        }
    }

    /// Returns the transport with this name, or `None` for an unknown name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|transport| transport.name() == name)
    }
}

/// Queries `resolver` and returns the address in the answer and the answer's source address.
///
/// The query is of type A for an IPv4 resolver (also an IPv4-mapped one), of type AAAA for an IPv6
/// resolver.
pub fn ask(transport: Transport, resolver: SocketAddr) -> Result<(IpAddr, SocketAddr)> {
    /// The timeout of an answer, longer than any outage of a case.
    const PATIENCE: Duration = Duration::from_secs(20);
    let kind = if resolver.ip().to_canonical().is_ipv4() { TYPE_A } else { TYPE_AAAA };
    let query = query("name.example", kind);
    if transport == Transport::Tcp {
        let stream = TcpStream::connect(resolver).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write_message(&stream, &query).context("send")?;
        let answer = read_message(&stream).context("receive")?;
        return Ok((address(&answer)?, stream.peer_addr()?));
    }
    let any: SocketAddr = if resolver.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if transport == Transport::UdpConnected {
        socket.connect(resolver).context("connect")?;
        let peer = socket.peer_addr()?;
        // The kernel reports no scope id for a link-local peer, so only address and port are
        // compared.
        ensure!((peer.ip(), peer.port()) == (resolver.ip(), resolver.port()), "the peer is {peer}");
        socket.send(&query).context("send")?;
    } else {
        socket.send_to(&query, resolver).context("send")?;
    }
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).context("receive")?;
    Ok((address(&buffer[..length])?, from))
}

/// Returns a command line that runs `argv` with an `/etc/resolv.conf` whose only name server is
/// `resolver`.
///
/// The file is bind-mounted in a mount namespace that the command line creates.
pub fn with_resolver(lab: &Lab, resolver: IpAddr, argv: &[&str]) -> Result<Vec<String>> {
    let file = lab.dir().join(format!("resolv-{}.conf", resolver.to_string().replace(':', "-")));
    std::fs::write(&file, format!("nameserver {resolver}\n"))?;
    let under = in_mount_namespace(&format!("mount --bind {} /etc/resolv.conf", file.display()));
    Ok(under.into_iter().chain(argv.iter().map(|&arg| arg.to_owned())).collect())
}

/// Makes glibc's resolver use TCP for the queries of `command`.
pub fn over_tcp(command: &mut Command) -> &mut Command {
    command.env("RES_OPTIONS", "use-vc")
}

fn answer(query: &[u8], ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Option<Vec<u8>> {
    let question = question(query)?;
    let kind = u16::from_be_bytes(question[question.len() - 4..question.len() - 2].try_into().ok()?);
    let data = match kind {
        TYPE_A => ipv4.octets().to_vec(),
        TYPE_AAAA => ipv6.octets().to_vec(),
        _ => Vec::new(),
    };
    let mut message = query[..2].to_vec();
    // Flags of a response with recursion desired and available, one question, at most one answer.
    message.extend([0x81, 0x80, 0, 1, 0, u8::from(!data.is_empty()), 0, 0, 0, 0]);
    message.extend(question);
    if !data.is_empty() {
        // A pointer to the question's name, then class IN and a TTL of 60 s.
        message.extend([0xc0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60, 0, u8::try_from(data.len()).ok()?]);
        message.extend(data);
    }
    Some(message)
}

/// Returns the question section of a DNS message with one question (its name, type and class), or
/// `None` if the message is too short.
fn question(message: &[u8]) -> Option<&[u8]> {
    let mut end = HEADER;
    loop {
        let label = usize::from(*message.get(end)?);
        end += 1 + label;
        if label == 0 {
            return message.get(HEADER..end + 4);
        }
    }
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0x4d, 0x4d, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// Returns the address in a DNS answer that [`Resolver`] has sent.
fn address(message: &[u8]) -> Result<IpAddr> {
    let question = question(message).context("no question in the answer")?;
    // The address follows name (a pointer), type, class, TTL and length.
    match message.get(HEADER + question.len() + 12..) {
        Some(data) if data.len() == 4 => Ok(IpAddr::from(<[u8; 4]>::try_from(data)?)),
        Some(data) if data.len() == 16 => Ok(IpAddr::from(<[u8; 16]>::try_from(data)?)),
        _ => bail!("no address in the answer"),
    }
}

fn read_message(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(mut stream: &TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).unwrap_or(0);
    stream.write_all(&[&length.to_be_bytes()[..], message].concat())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
