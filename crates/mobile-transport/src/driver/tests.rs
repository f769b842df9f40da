//! Tests two drivers over real TLS on loopback, with packets in memory.

mod backpressure;
mod liveness;
mod paths;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use mobile_proto::{HelloReader, InnerPacket, Limits, PacketHeaders, SessionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::keys::PrivateKey;
use crate::tls;

/// Returns session limits with which no queue drops packets for waiting too long.
fn limits() -> Limits {
    Limits { target_delay: Duration::MAX, ..Limits::default() }
}

const SOON: Duration = Duration::from_secs(30);

/// A device in memory, with a queue of packets to be sent and counters that check the packets that
/// arrive.
#[derive(Default)]
struct MemoryDevice {
    waiting: Mutex<(VecDeque<Vec<u8>>, Option<Waker>)>,
    received: AtomicU64,
    out_of_order: AtomicU64,
    polls: AtomicU64,
    failing: AtomicU64,
}

impl MemoryDevice {
    /// Queues `count` packets of many sizes, numbered from `first`.
    fn fill(&self, first: u64, count: u64) {
        let mut waiting = self.waiting.lock().unwrap();
        for number in first..first + count {
            let mut packet = vec![number as u8; 8 + (number * 7919 % 1400) as usize];
            packet[..8].copy_from_slice(&number.to_be_bytes());
            waiting.0.push_back(packet);
        }
        if let Some(waker) = waiting.1.take() {
            waker.wake();
        }
    }

    fn remaining(&self) -> usize {
        self.waiting.lock().unwrap().0.len()
    }

    async fn has_received(&self, count: u64) {
        let deadline = Instant::now() + SOON;
        while self.received.load(SeqCst) < count {
            assert!(Instant::now() < deadline, "only {} of {count} packets came", self.received.load(SeqCst));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Checks that `count` packets arrived, each once and in order.
    fn check(&self, count: u64) {
        assert_eq!(self.received.load(SeqCst), count);
        assert_eq!(self.out_of_order.load(SeqCst), 0);
    }
}

impl PacketIo for Arc<MemoryDevice> {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<PacketHeaders>> {
        self.polls.fetch_add(1, SeqCst);
        if self.failing.load(SeqCst) > 0 {
            self.failing.fetch_sub(1, SeqCst);
            return Poll::Ready(Err(io::Error::other("the device is down")));
        }
        let mut waiting = self.waiting.lock().unwrap();
        match waiting.0.pop_front() {
            Some(packet) => {
                buf[..packet.len()].copy_from_slice(&packet);
                Poll::Ready(Ok(PacketHeaders::locate(&packet)))
            }
            None => {
                waiting.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn send(&mut self, packet: InnerPacket<'_>) {
        let expected = self.received.fetch_add(1, SeqCst);
        let number = u64::from_be_bytes(packet[..8].try_into().unwrap());
        let intact = packet[8..].iter().all(|byte| *byte == number as u8);
        if number != expected || !intact {
            self.out_of_order.fetch_add(1, SeqCst);
        }
    }
}

struct Endpoint {
    handle: Handle,
    memory: Arc<MemoryDevice>,
    events: mpsc::Receiver<DriverEvent>,
}

impl Endpoint {
    fn new(session: Session) -> Self {
        let memory = Arc::new(MemoryDevice::default());
        let (handle, events) = spawn(session, memory.clone());
        Self { handle, memory, events }
    }

    /// Waits for the first event for which `choose` returns `Some`, and returns that value.
    async fn event<T>(&mut self, choose: impl Fn(&DriverEvent) -> Option<T>) -> T {
        loop {
            let event = tokio::time::timeout(SOON, self.events.recv()).await.expect("no event came").unwrap();
            if let Some(chosen) = choose(&event) {
                return chosen;
            }
        }
    }

    async fn closed(&mut self) -> (PathId, CloseCode) {
        self.event(|event| match event {
            DriverEvent::Session(Event::PathClosed { path, code }) => Some((*path, *code)),
            _ => None,
        })
        .await
    }

    async fn path_error(&mut self) -> (PathId, HandshakeFailure) {
        self.event(|event| match event {
            DriverEvent::PathError { path, cause, .. } => Some((*path, (**cause).clone())),
            _ => None,
        })
        .await
    }
}

/// The two drivers of one session, the client's and the relay's.
struct Pair {
    client: Endpoint,
    relay: Endpoint,
}

const SESSION: SessionId = SessionId([7; 16]);

impl Pair {
    fn new() -> Self {
        Self::with(limits())
    }

    fn with(limits: Limits) -> Self {
        let config = PushConfig { mtu: 1400, ..PushConfig::default() };
        Self {
            client: Endpoint::new(Session::client(SESSION, limits.clone())),
            relay: Endpoint::new(Session::server(SESSION, 1, limits, config)),
        }
    }

    /// Opens a path at both drivers and waits until the client reports that the path is ready.
    async fn open(&mut self, path: PathId) {
        self.open_over(path, sockets().await).await;
    }

    async fn open_over(&mut self, path: PathId, sockets: (TcpStream, TcpStream)) {
        let (near, far) = handshake(sockets).await;
        self.client.handle.open_path(path, near.unwrap());
        let mut far = far.unwrap();
        let mut reader = HelloReader::new();
        let mut buf = [0; 4096];
        let (hello, leftover) = loop {
            let length = far.read(&mut buf).await.unwrap();
            assert!(length > 0);
            if let Some(whole) = reader.feed(&buf[..length]).unwrap() {
                break whole;
            }
        };
        assert_eq!(hello.path, path);
        self.relay.handle.accept_path(hello, leftover, far);
        self.client
            .event(|event| match event {
                DriverEvent::Session(Event::PathReady { path: ready, .. }) => (*ready == path).then_some(()),
                _ => None,
            })
            .await;
    }

    /// Sends `count` packets over path 1, stops the connection after the first, and waits until the
    /// driver reads no more packets; returns how many packets are left.
    async fn stall(&mut self, valve: &watch::Sender<Valve>, count: u64) -> usize {
        self.client.handle.activate(PathId(1), vec![PathId(1)]);
        self.client.memory.fill(0, 1);
        self.relay.memory.has_received(1).await;
        valve.send(Valve { forth: false, back: false }).unwrap();
        self.client.memory.fill(1, count - 1);
        let mut before = usize::MAX;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let left = self.client.memory.remaining();
            if left == before {
                return left;
            }
            before = left;
        }
    }

    async fn switch(&mut self, path: PathId) {
        self.open(path).await;
        self.client.handle.activate(path, vec![path]);
    }
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// The directions in which a test connection passes bytes at the moment.
#[derive(Clone, Copy)]
struct Valve {
    forth: bool,
    back: bool,
}

const OPEN: Valve = Valve { forth: true, back: true };

/// Creates a TCP connection in which a test can stop the bytes of each direction. Both are open at
/// first.
fn valved() -> (impl Future<Output = (TcpStream, TcpStream)>, watch::Sender<Valve>) {
    let (sender, mut valve) = watch::channel(OPEN);
    let wire = async move {
        let (near, mut near_wire) = sockets().await;
        let (mut far_wire, far) = sockets().await;
        tokio::spawn(async move {
            let (mut buf, mut answer) = (vec![0; 65536], vec![0; 65536]);
            loop {
                let Valve { forth, back } = *valve.borrow_and_update();
                tokio::select! {
                    Ok(length @ 1..) = near_wire.read(&mut buf), if forth => far_wire.write_all(&buf[..length]).await.unwrap(),
                    Ok(length @ 1..) = far_wire.read(&mut answer), if back => near_wire.write_all(&answer[..length]).await.unwrap(),
                    Ok(()) = valve.changed() => {}
                    else => return,
                }
            }
        });
        (near, far)
    };
    (wire, sender)
}

fn configs(welcome: bool) -> (Arc<rustls::ClientConfig>, tls::RelayConfig) {
    let (client, relay) = (PrivateKey::from_seed([1; 32]), PrivateKey::from_seed([2; 32]));
    let server = tls::server_config(&relay, Arc::new(move |_| welcome));
    (tls::client_config(&client, relay.public()), server)
}

async fn handshake(
    (near, far): (TcpStream, TcpStream),
) -> (Result<TlsStream, HandshakeFailure>, Result<TlsStream, HandshakeFailure>) {
    let (client, relay) = configs(true);
    let (near, far) = tokio::join!(tls::connect(&client, near, SOON), tls::accept(&relay, far, SOON));
    (near, far.map(|(stream, _)| stream))
}

#[tokio::test]
async fn an_idle_driver_sleeps_and_still_handles_commands() {
    let mut pair = Pair::new();
    pair.switch(PathId(1)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = pair.client.memory.polls.load(SeqCst);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let polls = pair.client.memory.polls.load(SeqCst) - before;
    assert!(polls <= 4, "woke {polls} times in half a second of nothing");
    let snapshot = tokio::time::timeout(Duration::from_millis(100), pair.client.handle.snapshot()).await;
    assert_eq!(snapshot.unwrap().unwrap().active, Some(PathId(1)));
}

#[tokio::test]
async fn the_peer_receives_a_close_at_shutdown() {
    let mut pair = Pair::new();
    pair.switch(PathId(1)).await;
    let begun = Instant::now();
    pair.client.handle.shutdown(CloseCode::Shutdown).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(pair.relay.closed().await, (PathId(1), CloseCode::Shutdown));
    pair.client.event(|event| matches!(event, DriverEvent::Stopped).then_some(())).await;
    assert!(pair.client.handle.is_stopped());
    assert!(pair.client.handle.snapshot().await.is_none());
    // The relay's session continues without a path, and ends when its last handle is dropped.
    assert!(pair.relay.handle.snapshot().await.unwrap().paths.is_empty());
    drop(pair.relay.handle);
    tokio::time::timeout(SOON, async {
        while !matches!(pair.relay.events.recv().await.unwrap(), DriverEvent::Stopped) {}
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn unacknowledged_packets_can_be_taken_over() {
    let pair = Pair::new();
    pair.client.memory.fill(0, 10);
    while pair.client.memory.remaining() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let packets: Vec<_> = pair.client.handle.take_over().await.into_packets().collect();
    assert_eq!(packets.len(), 10);
    assert_eq!(packets[3].bytes[..8], 3_u64.to_be_bytes());
    assert!(pair.client.handle.snapshot().await.is_none());
    assert!(pair.client.handle.take_over().await.is_empty());
}

/// Regression: the future had the session three times, which cost a relay 4 KiB for each client.
#[tokio::test]
async fn the_future_of_a_driver_has_its_session_once() {
    let (_commands, inbox) = mpsc::unbounded_channel();
    let (sender, _events) = mpsc::channel(1);
    let device = Arc::new(MemoryDevice::default());
    let driver = task::run(Session::client(SESSION, limits()), device, inbox, sender);
    let size = size_of_val(&driver);
    assert!(size < size_of::<Session>() * 2, "{size} bytes");
}

/// The channels of an idle session have room for 32 commands and 32 events.
#[test]
fn commands_and_events_are_small() {
    assert!(size_of::<Command>() <= 40, "{}", size_of::<Command>());
    assert!(size_of::<DriverEvent>() <= 56, "{}", size_of::<DriverEvent>());
}

#[tokio::test]
async fn a_failed_device_is_polled_again() {
    let mut pair = Pair::new();
    pair.client.memory.failing.store(1, SeqCst);
    pair.client.memory.fill(0, 10);
    pair.switch(PathId(1)).await;
    pair.relay.memory.has_received(10).await;
    pair.relay.memory.check(10);
}
