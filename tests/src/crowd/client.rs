//! One authorised client of the crowd, with an open session.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mobile_proto::{Event, InnerPacket, Limits, PacketHeaders, PathId, PushConfig, Session, SessionId};
use mobile_transport::driver::{self, DriverEvent, Handle, PacketIo};
use mobile_transport::tls;

use super::{PATIENCE, RelayTarget, client_address, key};

const PATH: PathId = PathId(1);

/// A client with an open session at the relay, which ends when this value is dropped.
#[derive(Debug)]
pub struct CrowdClient {
    /// The time from `connect()` to the relay's WELCOME message.
    pub took: Duration,
    /// The configuration (addresses, DNS servers) that the relay pushed to the client.
    pub config: PushConfig,
    received: Arc<AtomicU64>,
    // The client ignores all later events; the driver does not need a receiver for them.
    _handle: Handle,
}

impl CrowdClient {
    /// Connects to the relay with a full TLS handshake, opens a new session and activates its path.
    pub(super) async fn open(relay: Arc<RelayTarget>, number: u32) -> Result<Self> {
        match tokio::time::timeout(PATIENCE, Self::open_slowly(&relay, number)).await {
            Ok(opened) => opened,
            Err(_) => bail!("client {number}: no WELCOME within {PATIENCE:?}"),
        }
    }

    async fn open_slowly(relay: &RelayTarget, number: u32) -> Result<Self> {
        // The TLS configuration is made before the clock starts, because an agent makes it once at
        // its start.
        let config = tls::client_config(&key(number), relay.key);
        let start = Instant::now();
        let tcp = relay.tcp(client_address(number)).await?;
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

    /// Returns the number of packets received through the tunnel.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// A replacement for the TUN device that has no packets to send and counts received ones.
struct Counter(Arc<AtomicU64>);

impl PacketIo for Counter {
    fn poll_recv(&mut self, _cx: &mut Context<'_>, _buf: &mut [u8]) -> Poll<io::Result<PacketHeaders>> {
        Poll::Pending
    }

    fn send(&mut self, _packet: InnerPacket<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
