//! The services of the correspondent host: echo, whoami, a number sequence, discard, HTTP, telnet,
//! ssh and iperf3.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::{Domain, Protocol, Socket, Type};

use crate::ns::Ns;
use crate::port;
use crate::process::Process;
use crate::pulse::PULSE;

/// The services that need no configuration, started with every lab.
pub struct Services {
    _tcp: Vec<TcpService>,
    _udp: Vec<UdpService>,
}

impl Services {
    /// Starts the services that need no configuration in `ns`.
    pub fn start(ns: &Ns) -> Result<Self> {
        let telnet_ns = ns.clone();
        let tcp = vec![
            TcpService::echo(ns, port::ECHO)?,
            TcpService::start(ns, port::DISCARD, |mut stream, _| {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            })?,
            TcpService::start(ns, port::WHOAMI, |stream, peer| whoami(&stream, peer))?,
            TcpService::start(ns, port::NUMBERS, |stream, _| numbers(&stream))?,
            TcpService::start(ns, port::HTTP, |stream, peer| crate::http::serve(&stream, peer))?,
            TcpService::start(ns, port::TELNET, move |stream, _| telnetd(&telnet_ns, stream))?,
        ];
        let udp = vec![
            UdpService::start(ns, port::ECHO, |datagram, _| datagram.to_vec())?,
            UdpService::start(ns, port::WHOAMI, |_, peer| peer.to_string().into_bytes())?,
        ];
        Ok(Self { _tcp: tcp, _udp: udp })
    }

    /// Starts an iperf3 server in `ns`; its output goes to a file in `dir`.
    pub fn iperf3(ns: &Ns, dir: &Path) -> Result<Process> {
        let mut command = ns.command("iperf3");
        command.args(["--server", "--forceflush"]);
        let mut server = Process::start("iperf3 --server", &mut command, &dir.join("iperf3-server.txt"))?;
        server.wait_output("Server listening", crate::wait::PATIENCE)?;
        Ok(server)
    }

    /// Starts sshd in `ns` with keys made for this run.
    ///
    /// Writes `id` (the client's private key) and `known_hosts` (the server's key under `names`)
    /// into `dir`.
    pub fn sshd(ns: &Ns, dir: &Path, names: &[&str]) -> Result<Process> {
        let path = |name: &str| dir.join(name).display().to_string();
        for key in ["host_key", "id"] {
            ns.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &path(key)])?;
        }
        let host_key = std::fs::read_to_string(path("host_key.pub"))?;
        std::fs::write(path("known_hosts"), format!("{} {host_key}", names.join(",")))?;
        std::fs::copy(path("id.pub"), path("authorized_keys"))?;
        // sshd requires its privilege separation directory, which Debian creates at boot.
        std::fs::create_dir_all("/run/sshd")?;
        let config = format!(
            "Port {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PermitRootLogin yes\nPasswordAuthentication no\nPrintMotd no\nPrintLastLog no\n",
            port::SSH,
            path("host_key"),
            path("authorized_keys"),
        );
        std::fs::write(path("sshd_config"), config)?;
        let mut command = ns.command("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f", &path("sshd_config")]);
        let mut sshd = Process::start("sshd", &mut command, &dir.join("sshd.txt"))?;
        sshd.wait_output("Server listening", crate::wait::PATIENCE)?;
        Ok(sshd)
    }
}

/// A TCP service for IPv4 and IPv6 that serves each connection on its own thread.
pub struct TcpService {
    stop: Arc<EventFd>,
    accepting: Option<JoinHandle<()>>,
    open: Arc<Mutex<HashMap<u64, TcpStream>>>,
}

impl TcpService {
    /// Starts a service on `port` at every address of `ns`, which calls `serve` for each
    /// connection.
    pub fn start(
        ns: &Ns,
        port: u16,
        serve: impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::start_over(ns, Protocol::TCP, port, serve)
    }

    /// Starts a service that sends back all it receives.
    pub fn echo(ns: &Ns, port: u16) -> Result<Self> {
        Self::start(ns, port, |stream, _| echo(&stream))
    }

    /// Starts a service as [`TcpService::start`] does, over `protocol`: TCP, or MPTCP if the kernel
    /// supports it.
    pub fn start_over(
        ns: &Ns,
        protocol: Protocol,
        port: u16,
        serve: impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener: TcpListener = ns.enter(|| -> Result<TcpListener> {
            let socket = dual_stack(Type::STREAM, protocol, port)?;
            socket.listen(128)?;
            Ok(socket.into())
        })?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let open = Arc::new(Mutex::new(HashMap::new()));
        let (serve, stopped, streams) = (Arc::new(serve), Arc::clone(&stop), Arc::clone(&open));
        let accepting = ns.spawn(move || {
            let mut number = 0;
            while readable(listener.as_fd(), &stopped) {
                let Ok((stream, peer)) = listener.accept() else { continue };
                number += 1;
                if let Ok(clone) = stream.try_clone() {
                    lock(&streams).insert(number, clone);
                }
                let (serve, streams, number) = (Arc::clone(&serve), Arc::clone(&streams), number);
                std::thread::spawn(move || {
                    let _ = stream.set_nodelay(true);
                    serve(stream, canonical(peer));
                    lock(&streams).remove(&number);
                });
            }
        });
        Ok(Self { stop, accepting: Some(accepting), open })
    }
}

impl Drop for TcpService {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        for stream in lock(&self.open).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A UDP service for IPv4 and IPv6 that answers each datagram with one datagram.
pub struct UdpService {
    stop: Arc<EventFd>,
    answering: Option<JoinHandle<()>>,
}

impl UdpService {
    /// Starts a service on `port` at every address of `ns`, which sends what `answer` returns for
    /// each datagram.
    pub fn start(
        ns: &Ns,
        port: u16,
        answer: impl Fn(&[u8], SocketAddr) -> Vec<u8> + Send + 'static,
    ) -> Result<Self> {
        let socket: UdpSocket =
            ns.enter(|| -> Result<UdpSocket> { Ok(dual_stack(Type::DGRAM, Protocol::UDP, port)?.into()) })?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let answering = ns.spawn(move || {
            let mut buffer = vec![0; 65_536];
            while readable(socket.as_fd(), &stopped) {
                // An ICMP error for an earlier answer is ignored.
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&answer(&buffer[..length], canonical(peer)), peer);
                }
            }
        });
        Ok(Self { stop, answering: Some(answering) })
    }
}

impl Drop for UdpService {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.answering.take() {
            let _ = thread.join();
        }
    }
}

fn dual_stack(kind: Type, protocol: Protocol, port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket.bind(&address.into()).with_context(|| format!("cannot bind port {port}"))?;
    Ok(socket)
}

/// Waits for `fd` or `stop`: returns true if `fd` is readable, or false once `stop` is signalled.
fn readable(fd: std::os::fd::BorrowedFd<'_>, stop: &EventFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, PollTimeout::NONE);
    fds[1].any() != Some(true)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn echo(mut stream: &TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

pub(crate) fn numbers(mut stream: &TcpStream) {
    for number in 0..=u64::MAX {
        if stream.write_all(&number.to_be_bytes()).is_err() {
            return;
        }
        std::thread::sleep(PULSE);
    }
}

pub(crate) fn whoami(mut stream: &TcpStream, peer: SocketAddr) {
    let mut line = String::new();
    let mut lines = BufReader::new(stream);
    while let Ok(1..) = lines.read_line(&mut line) {
        if writeln!(stream, "{peer}").is_err() {
            return;
        }
        line.clear();
    }
}

/// Serves a telnet connection as inetd does: the socket becomes stdin, stdout and stderr of a
/// telnetd.
fn telnetd(ns: &Ns, stream: TcpStream) {
    let mut command = ns.command("/usr/sbin/telnetd");
    command.args(["--no-hostinfo", "--exec-login=/bin/sh"]);
    let copy = || stream.try_clone().map(|stream| Stdio::from(OwnedFd::from(stream)));
    let (Ok(stdin), Ok(stdout), Ok(stderr)) = (copy(), copy(), copy()) else { return };
    drop(stream);
    match command.stdin(stdin).stdout(stdout).stderr(stderr).spawn() {
        Ok(mut child) => {
            // The thread must live as long as telnetd, which dies with the thread that started it.
            let _ = child.wait();
        }
        Err(error) => eprintln!("cannot start telnetd: {error}"),
    }
}
