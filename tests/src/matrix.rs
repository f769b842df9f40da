//! What the matrix of sockets needs of the lab: crews of sockets, the server they send to, whoever calls them.

mod watch;

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

pub use watch::{Left, Watch};

use crate::binaries::program;
use crate::lab::{Lab, addr};
use crate::ns::Ns;
use crate::services::{TcpService, UdpService, whoami};
use crate::talk::Talk;
use crate::testbed::Testbed;
use crate::uplink::UplinkName;

/// The numbers of all cells of a lab; the kernel gives none of them to a socket by itself.
pub const NUMBERS: Range<u16> = 20_000..25_000;
/// Between the first numbers of two crews.
const STRIDE: u16 = 100;

/// Where the server answers all of them.
const WHOAMI: u16 = 2001;

/// Link-local neighbours on eth0, beyond fe80::1 and the host itself.
const LINK4: &str = "169.254.77";
const LINK6: &str = "fe80::77";

/// How long whoever calls a listening socket waits.
/// Shorter than TCP's first retransmission, so that a call into the void does not outlast it.
const CALL: Duration = Duration::from_millis(300);
const CALL_AGAIN: Duration = Duration::from_millis(50);

/// The server that tells each socket the address it sees, over TCP, MPTCP, Fast Open and UDP.
pub struct Server {
    _tcp: TcpService,
    _udp: UdpService,
}

impl Server {
    /// Makes the lab one for every kind of socket: link-local neighbours, ping sockets, MPTCP with a subflow on each
    /// uplink, Fast Open, and a way from the server to the persistent addresses.
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
        // Fast Open at both ends, and at the server for every listening socket.
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
        let (first, last) = (NUMBERS.start, NUMBERS.end - 1);
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

/// When the process of a crew is mobile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// From its start.
    Mobile,
    /// From after its sockets were made.
    AttachedAfterSocket,
    /// From after they were connected and had been used.
    AttachedAfterConnect,
    /// Until its sockets were made.
    DetachedAfterSocket,
    /// Until they were connected and had been used.
    DetachedAfterConnect,
    /// Never.
    Ordinary,
}

impl Order {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::Mobile,
        Self::AttachedAfterSocket,
        Self::AttachedAfterConnect,
        Self::DetachedAfterSocket,
        Self::DetachedAfterConnect,
        Self::Ordinary,
    ];
}

/// A process with a socket of every kind.
pub struct Crew {
    /// When it is mobile.
    pub order: Order,
    talk: Talk,
    /// What each socket has come to, in the last step.
    pub reports: Vec<Value>,
}

impl Crew {
    /// Starts the process, which makes no socket yet.
    pub fn start(bed: &Testbed, order: Order) -> Result<Self> {
        let eth = bed.lab.eth();
        let (source4, source6) = match order {
            Order::Ordinary => (eth.address4(), eth.address6()),
            _ => (bed.agent.address4, bed.agent.address6),
        };
        let index = Order::ALL.iter().position(|one| *one == order).context("an order")?;
        let args = [
            format!("base={}", NUMBERS.start + STRIDE * u16::try_from(index)?),
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
        let talk = match order {
            Order::Mobile | Order::DetachedAfterSocket | Order::DetachedAfterConnect => {
                let tool = tool.display().to_string();
                let argv: Vec<&str> =
                    std::iter::once(tool.as_str()).chain(args.iter().map(String::as_str)).collect();
                Talk::start(&mut bed.agent.run(&argv))?
            }
            _ => Talk::start(bed.lab.host.command(tool).args(&args))?,
        };
        Ok(Self { order, talk, reports: Vec::new() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> String {
        self.talk.pid().to_string()
    }

    /// Tells it a step.
    pub fn say(&mut self, step: &str) -> Result<()> {
        self.talk.say(step)
    }

    /// Waits until the last step that it was told is done.
    pub fn wait(&mut self, step: &str) -> Result<()> {
        let mut reports = Vec::new();
        loop {
            let line: Value = serde_json::from_str(&self.talk.hear()?)?;
            match line["done"].as_str() {
                Some(done) if done == step => break,
                Some(_) => reports.clear(),
                None => reports.push(line),
            }
        }
        if reports.is_empty() {
            bail!("a crew without a socket");
        }
        self.reports = reports;
        Ok(())
    }

    /// A step, to its end.
    pub fn step(&mut self, step: &str) -> Result<()> {
        self.say(step)?;
        self.wait(step)
    }
}

/// Somebody at the server who calls a listening socket again and again.
pub struct Caller {
    stop: Arc<AtomicBool>,
    _thread: JoinHandle<()>,
}

impl Caller {
    /// Calls from `ns` from now on.
    #[must_use]
    pub fn start(ns: &Ns, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = ns.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Nobody may be there: that is what the other side says.
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
