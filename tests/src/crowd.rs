//! A crowd of clients in one process, that speak the real protocol to a real relay: TLS with their keys, HELLO, WELCOME,
//! keepalives, packets. Each comes from an IPv6 /64 of its own, so that the relay's limits for a source hold for each
//! alone. Strangers come from other /64s, as many as they like.

mod flood;
mod member;

use std::fmt::Write as _;
use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mobile_io::keys::{PrivateKey, PublicKey};
use mobile_io::transport;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

pub use self::flood::{Attack, Flood, Sources};
pub use self::member::Member;
use crate::lab::Lab;
use crate::ns::Ns;
use crate::product::{RELAY_PORT, Relay};
use crate::topology::veth;

/// The relay, on the link to the crowd.
const RELAY: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xcc, 0, 0, 0, 0, 1);

/// The longest that one handshake may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The machine all of them live on: one link away from the relay, without a router or an emulator in between.
pub struct Crowd {
    runtime: Runtime,
    way: Arc<Way>,
    _ns: Ns,
}

/// How the relay is reached, and how it proves that it is it.
#[derive(Debug)]
struct Way {
    relay: SocketAddr,
    key: PublicKey,
}

impl Crowd {
    /// Brings the machine up; who comes from it is not authorised yet.
    pub fn arrive(lab: &Lab, relay: &Relay) -> Result<Self> {
        // A socket each, more than a login shell may have.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        let ns = lab.machine("crowd")?;
        veth(&ns, "up0", &lab.relay, "crowd0")?;
        lab.relay.ip(&[
            &format!("address add {RELAY}/64 dev crowd0 nodad"),
            "route add 2001:db8:c000::/34 via 2001:db8:cc::2",
        ])?;
        // Every address of it is this machine's own, and can be sent from: IPv6 asks for both.
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
        let way = Arc::new(Way { relay: (RELAY, RELAY_PORT).into(), key });
        Ok(Self { runtime, way, _ns: ns })
    }

    /// Has the relay let the first `count` of them in.
    pub fn authorize(&self, relay: &Relay, lab: &Lab, count: u32) -> Result<()> {
        let mut list = String::new();
        for number in 0..count {
            writeln!(list, "crowd-{number} {}", key(number).public())?;
        }
        let file = lab.dir().join("crowd-clients");
        std::fs::write(&file, list)?;
        let said = relay.cli(&["authorize", "--from", &file.display().to_string()])?.ok()?;
        let named = said.lines().count();
        ensure!(named == count as usize, "{named} of {count} clients were let in");
        Ok(())
    }

    /// Sessions of these clients, as fast as they come, with so many handshakes at once. One that fails fails all.
    pub fn open(
        &self,
        numbers: impl Iterator<Item = u32> + Send + 'static,
        at_once: usize,
    ) -> Result<Vec<Member>> {
        let way = Arc::clone(&self.way);
        self.run(async move {
            let (mut pending, mut members) = (JoinSet::new(), Vec::new());
            for number in numbers {
                if pending.len() >= at_once
                    && let Some(done) = pending.join_next().await
                {
                    members.push(done??);
                }
                pending.spawn(Member::open(Arc::clone(&way), number));
            }
            while let Some(done) = pending.join_next().await {
                members.push(done??);
            }
            Ok(members)
        })
    }

    /// How long a handshake takes: of these clients one after the other, with a pause between; each leaves at once. With
    /// the number of them that failed and were tried again: that time counts.
    pub fn latencies(
        &self,
        numbers: impl Iterator<Item = u32> + Send + 'static,
        pause: Duration,
    ) -> Result<(Vec<Duration>, u64)> {
        let way = Arc::clone(&self.way);
        self.run(async move {
            let (mut took, mut failed) = (Vec::new(), 0);
            for number in numbers {
                let start = Instant::now();
                loop {
                    match Member::open(Arc::clone(&way), number).await {
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

    /// Attempts that no relay should take, so many a second, until the flood is stopped.
    #[must_use]
    pub fn flood(&self, attack: Attack, sources: Sources, rate: u32) -> Flood {
        Flood::start(&self.runtime, Arc::clone(&self.way), attack, sources, rate)
    }

    /// On the machine's own thread, which is in its namespace.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.runtime.block_on(self.runtime.spawn(work))?
    }
}

/// The same key each time: who was authorised is so for all of a lab's life.
fn key(number: u32) -> PrivateKey {
    let mut seed = *b"a member of the crowd, number   ";
    seed[28..].copy_from_slice(&number.to_be_bytes());
    PrivateKey::from_seed(seed)
}

/// Where a client lives; strangers have the upper half of these.
fn home(number: u32) -> Ipv6Addr {
    let [_, a, b, c] = number.to_be_bytes();
    Ipv6Addr::new(0x2001, 0xdb8, 0xc000 | u16::from(a & 0x3f), u16::from_be_bytes([b, c]), 0, 0, 0, 1)
}

impl Way {
    async fn tcp(&self, from: Ipv6Addr) -> Result<TcpStream> {
        let socket = TcpSocket::new_v6()?;
        socket.bind(SocketAddrV6::new(from, 0, 0, 0).into())?;
        let tcp = match tokio::time::timeout(PATIENCE, socket.connect(self.relay)).await {
            Ok(tcp) => tcp?,
            Err(_) => bail!("no answer from the relay to {from} within {PATIENCE:?}"),
        };
        transport::tune(&tcp)?;
        Ok(tcp)
    }
}
