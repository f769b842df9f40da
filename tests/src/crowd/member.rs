//! One client with a session.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mobile_io::driver::{self, DriverEvent, Handle, PacketIo};
use mobile_io::tls;
use mobile_proto::{Event, Limits, Offload, Packet, PathId, PushConfig, Session, SessionId};

use super::{PATIENCE, Way, home, key};

const PATH: PathId = PathId(1);

/// A client whose session is open; it leaves when this is dropped.
#[derive(Debug)]
pub struct Member {
    /// From connect() to WELCOME.
    pub took: Duration,
    /// What the relay assigned.
    pub config: PushConfig,
    received: Arc<AtomicU64>,
    // Nobody listens to what follows, and the driver does not mind.
    _handle: Handle,
}

impl Member {
    /// A full handshake and a new session, with its path active.
    pub(super) async fn open(way: Arc<Way>, number: u32) -> Result<Self> {
        match tokio::time::timeout(PATIENCE, Self::open_slowly(&way, number)).await {
            Ok(opened) => opened,
            Err(_) => bail!("client {number}: no WELCOME within {PATIENCE:?}"),
        }
    }

    async fn open_slowly(way: &Way, number: u32) -> Result<Self> {
        // Made before the clock starts: an agent has it from its start.
        let config = tls::client_config(&key(number), way.key);
        let start = Instant::now();
        let tcp = way.tcp(home(number)).await?;
        let stream = tls::connect(&config, tcp, PATIENCE).await?;
        let received = Arc::new(AtomicU64::new(0));
        let session = Session::client(SessionId(rand::random()), Limits::default());
        let (handle, mut events) = driver::spawn(session, Counter(Arc::clone(&received)));
        handle.open_path(PATH, stream);
        let mut config = None;
        while let Some(event) = events.recv().await {
            match event {
                DriverEvent::Session(Event::Config(assigned)) => config = Some(assigned),
                DriverEvent::Session(Event::PathReady { .. }) => break,
                DriverEvent::PathError { cause, .. } => bail!("client {number}: {cause}"),
                DriverEvent::Session(Event::PathClosed { code, .. }) => bail!("client {number}: {code}"),
                DriverEvent::Session(_) => {}
                DriverEvent::Stopped => bail!("client {number}: its driver stopped"),
            }
        }
        let took = start.elapsed();
        handle.activate(PATH, Vec::new());
        while config.is_none() {
            match events.recv().await {
                Some(DriverEvent::Session(Event::Config(assigned))) => config = Some(assigned),
                Some(_) => {}
                None => break,
            }
        }
        let Some(config) = config else { bail!("client {number}: no addresses were assigned") };
        Ok(Self { took, config, received, _handle: handle })
    }

    /// Packets that came through the tunnel.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// Sends nothing, and counts what comes.
struct Counter(Arc<AtomicU64>);

impl PacketIo for Counter {
    fn poll_recv(&mut self, _cx: &mut Context<'_>, _buf: &mut [u8]) -> Poll<io::Result<(usize, Offload)>> {
        Poll::Pending
    }

    fn send(&mut self, _packet: Packet<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
