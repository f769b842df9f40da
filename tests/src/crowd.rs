//! A crowd of clients in one process, for load on a real relay.
//!
//! The clients speak the real protocol: TLS with their own keys, HELLO, WELCOME, keepalives and
//! packets. Each has a source address in an IPv6 /64 of its own, so that the relay's limits per
//! source apply to each alone. Floods of unauthorised attempts come from other /64 prefixes.

mod client;
mod flood;

use std::fmt::Write as _;
use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mobile_transport::keys::{PrivateKey, PublicKey};
use mobile_transport::transport;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

pub use self::client::CrowdClient;
pub use self::flood::{Attack, Flood, Sources};
use crate::lab::Lab;
use crate::ns::Ns;
use crate::product::{RELAY_PORT, Relay};
use crate::topology::veth;

/// The relay's address on the link to the crowd.
const RELAY: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xcc, 0, 0, 0, 0, 1);

/// The timeout of one client's handshake with the relay.
const PATIENCE: Duration = Duration::from_secs(30);

/// The machine of all the crowd's clients, connected to the relay by a direct link, without a
/// router or an emulator in between.
pub struct Crowd {
    runtime: Runtime,
    relay: Arc<RelayTarget>,
    _ns: Ns,
}

/// The address and the public key of the relay under load.
#[derive(Debug)]
struct RelayTarget {
    address: SocketAddr,
    key: PublicKey,
}

impl Crowd {
    /// Sets up the crowd's machine and its link to the relay, without authorising any client.
    pub fn start(lab: &Lab, relay: &Relay) -> Result<Self> {
        // Every client needs a socket; the usual soft limit is too low.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        let ns = lab.machine("crowd")?;
        veth(&ns, "up0", &lab.relay, "crowd0")?;
        lab.relay.ip(&[
            &format!("address add {RELAY}/64 dev crowd0 nodad"),
            "route add 2001:db8:c000::/34 via 2001:db8:cc::2",
        ])?;
        // The machine may send from every address of the prefix: IPv6 needs the local route and the
        // sysctl.
        ns.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
        ns.ip(&[
            "address add 2001:db8:cc::2/64 dev up0 nodad",
            &format!("route add default via {RELAY}"),
            "route add local 2001:db8:c000::/34 dev lo",
        ])?;
        let inside = ns.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("crowd")
            .on_thread_start(move || inside.set_current_thread())
            .enable_all()
            .build()?;
        let key = relay.public_key.parse().context("the relay's key")?;
        let relay = Arc::new(RelayTarget { address: (RELAY, RELAY_PORT).into(), key });
        Ok(Self { runtime, relay, _ns: ns })
    }

    /// Authorises the clients with the numbers 0 to `count` - 1 at the relay.
    pub fn authorize(&self, relay: &Relay, lab: &Lab, count: u32) -> Result<()> {
        let mut list = String::new();
        for number in 0..count {
            writeln!(list, "crowd-{number} {}", key(number).public())?;
        }
        let file = lab.dir().join("crowd-clients");
        std::fs::write(&file, list)?;
        let output = relay.cli(&["authorize", "--from", &file.display().to_string()])?.ok()?;
        let named = output.lines().count();
        ensure!(named == count as usize, "only {named} of {count} clients were authorised");
        Ok(())
    }

    /// Opens a session for each client in `numbers` as fast as possible, with at most `at_once`
    /// handshakes in progress. Fails if one handshake fails.
    pub fn open(
        &self,
        numbers: impl Iterator<Item = u32> + Send + 'static,
        at_once: usize,
    ) -> Result<Vec<CrowdClient>> {
        let relay = Arc::clone(&self.relay);
        self.run(async move {
            let (mut pending, mut members) = (JoinSet::new(), Vec::new());
            for number in numbers {
                if pending.len() >= at_once
                    && let Some(done) = pending.join_next().await
                {
                    members.push(done??);
                }
                pending.spawn(CrowdClient::open(Arc::clone(&relay), number));
            }
            while let Some(done) = pending.join_next().await {
                members.push(done??);
            }
            Ok(members)
        })
    }

    /// Measures the time from connecting to an open session for each client in `numbers`, one after
    /// the other with `pause` between them. Each session ends at once.
    ///
    /// Also returns the number of failed attempts. Each is repeated until it succeeds, and its time
    /// is part of the client's measured time.
    pub fn latencies(
        &self,
        numbers: impl Iterator<Item = u32> + Send + 'static,
        pause: Duration,
    ) -> Result<(Vec<Duration>, u64)> {
        let relay = Arc::clone(&self.relay);
        self.run(async move {
            let (mut took, mut failed) = (Vec::new(), 0);
            for number in numbers {
                let start = Instant::now();
                loop {
                    match CrowdClient::open(Arc::clone(&relay), number).await {
                        Ok(_) => break,
                        Err(error) if start.elapsed() > PATIENCE => return Err(error),
                        Err(_) => failed += 1,
                    }
                }
                took.push(start.elapsed());
                tokio::time::sleep(pause).await;
            }
            Ok((took, failed))
        })
    }

    /// Starts unauthorised connection attempts, `rate` per second, which stop when the flood is
    /// dropped.
    #[must_use]
    pub fn flood(&self, attack: Attack, sources: Sources, rate: u32) -> Flood {
        Flood::start(&self.runtime, Arc::clone(&self.relay), attack, sources, rate)
    }

    /// Runs a future on the crowd's own thread, which is inside the network namespace of the
    /// crowd's machine.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.runtime.block_on(self.runtime.spawn(work))?
    }
}

/// Returns the private key of the client `number`, the same in every call, so that authorisations
/// stay valid.
fn key(number: u32) -> PrivateKey {
    let mut seed = *b"a member of the crowd, number   ";
    seed[28..].copy_from_slice(&number.to_be_bytes());
    PrivateKey::from_seed(seed)
}

/// Returns the source address of the client `number`. Floods use the upper half of the numbers.
fn client_address(number: u32) -> Ipv6Addr {
    let [_, a, b, c] = number.to_be_bytes();
    Ipv6Addr::new(0x2001, 0xdb8, 0xc000 | u16::from(a & 0x3f), u16::from_be_bytes([b, c]), 0, 0, 0, 1)
}

impl RelayTarget {
    async fn tcp(&self, from: Ipv6Addr) -> Result<TcpStream> {
        let socket = TcpSocket::new_v6()?;
        socket.bind(SocketAddrV6::new(from, 0, 0, 0).into())?;
        let tcp = match tokio::time::timeout(PATIENCE, socket.connect(self.address)).await {
            Ok(tcp) => tcp?,
            Err(_) => bail!("no answer from the relay to {from} within {PATIENCE:?}"),
        };
        transport::tune(&tcp)?;
        Ok(tcp)
    }
}
