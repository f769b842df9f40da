//! Helpers of the socket matrix (which sockets leak in which state of the agent): processes with
//! one socket of every kind, the server they send to, and threads that connect to listening
//! sockets.

mod egress;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use socket2::Protocol;

pub use egress::{EgressDevices, EgressWatch};

use crate::addr;
use crate::binaries::program;
use crate::lab::Lab;
use crate::line_process::LineProcess;
use crate::ns::Ns;
use crate::services::{TcpService, UdpService, whoami};
use crate::testbed::Testbed;
use crate::uplink::UplinkName;

/// The numbers of all sockets of a lab, outside the kernel's range of ephemeral ports. A socket's
/// number identifies it in its packets, as a port or an ICMP sequence number.
pub const SOCKET_NUMBERS: Range<u16> = 20_000..25_000;
/// The distance between the numbers of the first sockets of two processes.
const STRIDE: u16 = 100;

/// The server's port to which packets to any socket number are redirected, and which answers with
/// the source address.
const WHOAMI: u16 = 2001;

/// The prefix of a link-local IPv4 network on eth0, and a link-local IPv6 address of the router
/// there.
const LINK4: &str = "169.254.77";
const LINK6: &str = "fe80::77";

/// The timeout of one connection attempt to a listening socket, shorter than TCP's first
/// retransmission, so that an attempt without an answer does not outlast the step. `CALL_AGAIN` is
/// the pause until the next attempt.
const CALL: Duration = Duration::from_millis(300);
const CALL_AGAIN: Duration = Duration::from_millis(50);

/// A server that answers with the source address it sees, over TCP, MPTCP, TCP Fast Open and UDP.
pub struct MatrixServer {
    _tcp: TcpService,
    _udp: UdpService,
}

impl MatrixServer {
    /// Prepares the lab for every kind of socket, and starts the server.
    ///
    /// Sets up link-local neighbours, ping sockets, MPTCP with a subflow on each uplink, TCP Fast
    /// Open, and routes from the server to the persistent addresses.
    pub fn start(bed: &Testbed) -> Result<Self> {
        let Lab { host, server, internet, visited, .. } = &bed.lab;
        host.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        host.run(&["ip", "mptcp", "limits", "set", "subflows", "2", "add_addr_accepted", "2"])?;
        for uplink in UplinkName::ALL.map(|name| bed.lab.uplink(name)) {
            for address in [IpAddr::from(uplink.address4()), uplink.address6().into()] {
                host.run(&[
                    "ip",
                    "mptcp",
                    "endpoint",
                    "add",
                    &address.to_string(),
                    "dev",
                    uplink.device(),
                    "subflow",
                ])?;
            }
        }
        // TCP Fast Open at both ends; at the server for every listening socket.
        host.sysctl("net/ipv4/tcp_fastopen", "1")?;
        server.sysctl("net/ipv4/tcp_fastopen", "1027")?;
        visited[1].ip(&[
            &format!("address add {LINK4}.1/16 dev lan0"),
            &format!("address add {LINK6}/64 dev lan0 nodad"),
        ])?;
        host.ip(&["route add 169.254.0.0/16 dev eth0"])?;
        let (four, six) = (bed.agent.address4, bed.agent.address6);
        internet.ip(&[
            &format!("route add {four} via {}", addr::RELAY4),
            &format!("route add {six} via {}", addr::RELAY6),
        ])?;
        let (first, last) = (SOCKET_NUMBERS.start, SOCKET_NUMBERS.end - 1);
        server.feed(
            &["nft", "-f", "-"],
            &format!(
                "table inet numbers {{\n chain prerouting {{\n  type nat hook prerouting priority dstnat\n  \
                 meta l4proto {{ tcp, udp }} th dport {first}-{last} redirect to :{WHOAMI}\n }}\n}}\n"
            ),
        )?;
        Ok(Self {
            _tcp: TcpService::start_over(server, Protocol::MPTCP, WHOAMI, |stream, peer| {
                whoami(&stream, peer);
            })?,
            _udp: UdpService::start(server, WHOAMI, |_, peer| peer.to_string().into_bytes())?,
        })
    }
}

/// The times at which a process has the MOBILE attribute, relative to the creation and the use of
/// its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttachTiming {
    /// Mobile from its start on.
    Mobile,
    /// Made mobile (`mobile attach`) after its sockets were made.
    AttachedAfterSocket,
    /// Made mobile (`mobile attach`) after its sockets were connected and used.
    AttachedAfterConnect,
    /// Mobile at first, made ordinary (`mobile detach`) after its sockets were made.
    DetachedAfterSocket,
    /// Mobile at first, made ordinary (`mobile detach`) after its sockets were connected and used.
    DetachedAfterConnect,
    /// Ordinary at all times.
    Ordinary,
}

impl AttachTiming {
    /// All timings, in the order of the columns in the documented table.
    pub const ALL: [Self; 6] = [
        Self::Mobile,
        Self::AttachedAfterSocket,
        Self::AttachedAfterConnect,
        Self::DetachedAfterSocket,
        Self::DetachedAfterConnect,
        Self::Ordinary,
    ];
}

/// A running `sockets` program, which owns a socket of every kind and address family.
pub struct SocketProcess {
    /// When the process has the MOBILE attribute.
    pub timing: AttachTiming,
    talk: LineProcess,
    /// The JSON report of each socket after the last step.
    pub reports: Vec<Value>,
}

impl SocketProcess {
    /// Starts the `sockets` program, mobile or ordinary as `timing` says; no socket is made yet.
    pub fn start(bed: &Testbed, timing: AttachTiming) -> Result<Self> {
        let eth = bed.lab.eth();
        let (source4, source6) = match timing {
            AttachTiming::Ordinary => (eth.address4(), eth.address6()),
            _ => (bed.agent.address4, bed.agent.address6),
        };
        let index =
            AttachTiming::ALL.iter().position(|one| *one == timing).context("unknown attach timing")?;
        let args = [
            format!("base={}", SOCKET_NUMBERS.start + STRIDE * u16::try_from(index)?),
            format!("server4={}", addr::SERVER4),
            format!("server6={}", addr::SERVER6),
            format!("source4={source4}"),
            format!("source6={source6}"),
            format!("uplink4={}", eth.address4()),
            format!("uplink6={}", eth.address6()),
            format!("device={}", eth.device()),
            format!("link4={LINK4}.1"),
            format!("link6={LINK6}"),
        ];
        let tool = program("sockets")?;
        let talk = match timing {
            AttachTiming::Mobile | AttachTiming::DetachedAfterSocket | AttachTiming::DetachedAfterConnect => {
                let tool = tool.display().to_string();
                let argv: Vec<&str> =
                    std::iter::once(tool.as_str()).chain(args.iter().map(String::as_str)).collect();
                LineProcess::start(&mut bed.agent.run(&argv))?
            }
            _ => LineProcess::start(bed.lab.host.command(tool).args(&args))?,
        };
        Ok(Self { timing, talk, reports: Vec::new() })
    }

    /// Returns the process id as text, for arguments of `mobile`.
    #[must_use]
    pub fn pid(&self) -> String {
        self.talk.pid().to_string()
    }

    /// Starts a step (`open`, `connect MS` or `send MS`) without waiting for its end.
    pub fn start_step(&mut self, step: &str) -> Result<()> {
        self.talk.send_line(step)
    }

    /// Waits until the step `step` has ended, and stores the sockets' reports.
    pub fn wait(&mut self, step: &str) -> Result<()> {
        let mut reports = Vec::new();
        loop {
            let line: Value = serde_json::from_str(&self.talk.next_line()?)?;
            match line["done"].as_str() {
                Some(done) if done == step => break,
                Some(_) => reports.clear(),
                None => reports.push(line),
            }
        }
        if reports.is_empty() {
            bail!("the process reported no socket");
        }
        self.reports = reports;
        Ok(())
    }

    /// Runs a step (`open`, `connect MS` or `send MS`) and waits for its end.
    pub fn step(&mut self, step: &str) -> Result<()> {
        self.start_step(step)?;
        self.wait(step)
    }
}

/// A thread that connects to a listening socket again and again, and stops when dropped.
pub struct Caller {
    stop: Arc<AtomicBool>,
    _thread: JoinHandle<()>,
}

impl Caller {
    /// Starts a thread in `ns` that connects to the address `to` again and again until the value is
    /// dropped.
    #[must_use]
    pub fn start(ns: &Ns, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = ns.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A failed call is not an error here; the listening process reports the outcome.
                let _answered = call(to);
                std::thread::sleep(CALL_AGAIN);
            }
        });
        Self { stop, _thread: thread }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn call(to: SocketAddr) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect_timeout(&to, CALL)?;
    stream.set_read_timeout(Some(CALL))?;
    stream.write_all(b"hello\n")?;
    stream.read(&mut [0; 64])
}
