//! Tests sessions over real TLS and real drivers; only the home virtual device is a list of
//! packets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mobile_proto::enroll::{self, EnrolmentRefusal, EnrolmentReply, EnrolmentRequest, Token};
use mobile_proto::{CloseCode, Event, InnerPacket, PacketHeaders, PathId, PushConfig, Session, SessionId};
use mobile_transport::driver::DriverEvent;
use mobile_transport::invitation::TokenHash;
use mobile_transport::keys::{PrivateKey, PublicKey};
use mobile_transport::{tls, transport};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use self::client::TestClient;
use super::demux::Demux;
use super::device::PacketDevice;
use super::listener::Acceptor;
use super::registry::{Registry, Settings};
use super::source_filter::tests::packet;
use super::{AppliedState, Relay, Store};
use crate::config::{Config, Limits};
use crate::metrics::{DropReason, EnrolmentResult, HandshakeResult, Metrics};
use crate::network::HomeNetwork;
use crate::pool::{Lease, Pools};
use crate::reach::Reach;
use crate::store::{Client, NewClient};

mod abuse;
mod addresses;
mod client;
mod enrolment;
mod log_buffer;
mod rotation;

const PATIENCE: Duration = Duration::from_secs(10);

impl PacketDevice for mpsc::UnboundedSender<Vec<u8>> {
    fn send(&self, packet: InnerPacket<'_>) -> io::Result<()> {
        Self::send(self, packet.to_vec()).map_err(io::Error::other)
    }

    fn try_recv(&self, _buffer: &mut [u8]) -> io::Result<PacketHeaders> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// A relay without a TUN device: the packets that it would write to one are received from `device`.
struct TestRelay {
    relay: Arc<Relay>,
    _state: tempfile::TempDir,
    registry: Arc<Registry>,
    demux: Arc<Demux>,
    metrics: Arc<Metrics>,
    device: mpsc::UnboundedReceiver<Vec<u8>>,
    address: SocketAddr,
    key: PublicKey,
}

impl TestRelay {
    fn start(limits: &Limits) -> Self {
        let pools = Pools::new(Some("10.9.0.0/24".parse().unwrap()), None).unwrap();
        let push = PushConfig { mtu: 1500, dns: vec!["10.9.0.1".parse().unwrap()], ..PushConfig::default() };
        let (queue_bytes, session_idle) = (4096, limits.session_idle);
        let settings = Settings {
            push,
            queue_bytes,
            compression: false,
            fair: true,
            session_idle,
            isolate: true,
            reach: Reach::All,
        };
        let (sink, device) = mpsc::unbounded_channel();
        let (demux, metrics) = (Arc::new(Demux::default()), Arc::new(Metrics::new().unwrap()));
        let registry =
            Registry::new(pools, settings, Arc::clone(&demux), Arc::new(sink), Arc::clone(&metrics));
        let registry = Arc::new(registry);
        let key = PrivateKey::generate().unwrap();
        let state = tempfile::tempdir().unwrap();
        key.save_new(&state.path().join("key")).unwrap();
        let listener = transport::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let path = state.path().join("relay.toml");
        let text = "listen.address = \"127.0.0.1:0\"\nidentity.private_key_file = \"key\"\npool.ipv4 = \"10.9.0.0/24\"";
        std::fs::write(&path, text).unwrap();
        let config = Config { limits: limits.clone(), ..Config::load(&path).unwrap() };
        let home = HomeNetwork::detached(&config, pools);
        let relay = Relay::new(
            key.public().into(),
            path,
            pools,
            AppliedState::new(config, home),
            Store::open(state.path()).unwrap(),
            Arc::clone(&registry),
            Arc::clone(&metrics),
        );
        let relay = Arc::new(relay);
        let recorder = Arc::clone(&relay);
        tokio::spawn(async move { recorder.record_confirmations().await });
        tokio::spawn(Acceptor::new(&key, &relay, &metrics).run(listener));
        Self { relay, registry, demux, metrics, device, address, key: key.public(), _state: state }
    }

    /// Authorises a new key with the address 10.9.0.`host`.
    fn authorize(&self, host: u8) -> PrivateKey {
        let key = PrivateKey::generate().unwrap();
        let lease = Lease { ipv4: Some([10, 9, 0, host].into()), ipv6: None };
        self.registry.add(&Client::new(format!("client-{host}"), key.public(), lease, 0));
        key
    }

    async fn tls(&self, key: &PrivateKey) -> Result<tls::TlsStream, tls::HandshakeFailure> {
        let tcp = transport::connect(self.address, None, PATIENCE).await.unwrap();
        tls::connect(&tls::client_config(key, self.key), tcp, PATIENCE).await
    }

    async fn written(&mut self) -> Vec<u8> {
        soon(self.device.recv()).await.unwrap()
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    soon(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn each_client_sends_and_receives_only_its_own_packets() {
    let mut relay = TestRelay::start(&Limits::default());
    let (key_a, key_b) = (relay.authorize(2), relay.authorize(3));
    let (mut a, mut b) = (TestClient::new(1), TestClient::new(2));
    a.move_to(&relay, &key_a, 1).await;
    b.move_to(&relay, &key_b, 1).await;

    let from_a = packet("10.9.0.2", "192.0.2.1");
    for refused in [packet("10.9.0.3", "192.0.2.1"), packet("10.9.0.2", "10.9.0.3"), b"junk".to_vec()] {
        a.send(refused);
    }
    a.send(from_a.clone());
    assert_eq!(relay.written().await, from_a, "only the good one comes out");
    for reason in [DropReason::Source, DropReason::Isolation, DropReason::Malformed] {
        assert_eq!(relay.metrics.drops(reason), 1, "{reason:?}");
    }

    let (to_a, to_b) = (packet("192.0.2.1", "10.9.0.2"), packet("192.0.2.1", "10.9.0.3"));
    relay.demux.dispatch(&to_b).unwrap();
    relay.demux.dispatch(&to_a).unwrap();
    assert_eq!(a.receive().await, to_a);
    assert_eq!(b.receive().await, to_b);
    let sessions = relay.registry.sessions().await;
    assert_eq!(sessions.iter().map(|s| s.client.as_str()).collect::<Vec<_>>(), ["client-2", "client-3"]);
    assert!(sessions.iter().all(|s| s.paths.len() == 1 && s.paths[0].active && s.paths[0].peer.is_some()));
    assert_eq!((relay.metrics.sessions.get(), relay.metrics.paths.get()), (2, 2));
}

#[tokio::test]
async fn a_new_path_resumes_the_session_and_frees_the_old() {
    let relay = TestRelay::start(&Limits::default());
    let key = relay.authorize(2);
    let mut client = TestClient::new(1);
    assert!(!client.move_to(&relay, &key, 1).await, "the first path begins a session");
    assert!(client.move_to(&relay, &key, 2).await, "the second continues it");
    eventually(async || {
        let sessions = relay.registry.sessions().await;
        sessions.len() == 1 && sessions[0].paths.len() == 1 && sessions[0].paths[0].path == 2
    })
    .await;
    eventually(async || relay.metrics.paths.get() == 1 && relay.metrics.handovers.get() == 1).await;
    assert_eq!(relay.metrics.handshakes(HandshakeResult::Opened), 1);
    assert_eq!(relay.metrics.handshakes(HandshakeResult::Resumed), 1);
}

#[tokio::test]
async fn a_restarted_agent_receives_the_packets_its_predecessor_did_not_acknowledge() {
    let relay = TestRelay::start(&Limits::default());
    let key = relay.authorize(2);
    let mut old = TestClient::new(1);
    old.move_to(&relay, &key, 1).await;
    old.handle.close_path(PathId(1), CloseCode::Normal);
    eventually(async || relay.registry.sessions().await[0].paths.is_empty()).await;
    let waiting = packet("192.0.2.1", "10.9.0.2");
    relay.demux.dispatch(&waiting).unwrap();

    let mut new = TestClient::new(2);
    assert!(!new.move_to(&relay, &key, 1).await, "another session");
    assert_eq!(new.receive().await, waiting);
    assert_eq!(relay.registry.sessions().await.len(), 1, "a client has one session");
    eventually(async || (relay.metrics.sessions.get(), relay.metrics.paths.get()) == (1, 1)).await;
}

#[tokio::test]
async fn a_second_agent_with_the_same_key_takes_over_the_session() {
    let relay = TestRelay::start(&Limits::default());
    let key = relay.authorize(2);
    let mut first = TestClient::new(1);
    first.move_to(&relay, &key, 1).await;
    let mut second = TestClient::new(2);
    second.move_to(&relay, &key, 1).await;
    // The driver of the first agent reports the end of its path, in either of two ways.
    soon(async {
        while !matches!(
            first.events.recv().await,
            Some(DriverEvent::PathError { .. } | DriverEvent::Session(Event::PathClosed { .. }))
        ) {}
    })
    .await;
    let sessions = relay.registry.sessions().await;
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].session, SessionId([2; 16]).to_string());
}

#[tokio::test]
async fn revoking_ends_the_session_at_once_and_refuses_the_key() {
    let relay = TestRelay::start(&Limits::default());
    let key = relay.authorize(2);
    let mut client = TestClient::new(1);
    client.move_to(&relay, &key, 1).await;
    relay.registry.remove(&key.public()).await;
    let closed = client.event(|event| match event {
        Event::PathClosed { code, .. } => Some(*code),
        _ => None,
    });
    assert_eq!(closed.await, CloseCode::Revoked);
    assert!(relay.registry.sessions().await.is_empty());
    assert_eq!(
        (relay.metrics.sessions.get(), relay.metrics.paths.get(), relay.metrics.clients.get()),
        (0, 0, 0)
    );
    assert_eq!(relay.demux.dispatch(&packet("192.0.2.1", "10.9.0.2")), Err(DropReason::NoSession));

    // In TLS 1.3 the client learns of the refusal at the first read after its own handshake.
    let refused = match relay.tls(&key).await {
        Ok(mut stream) => soon(stream.read(&mut [0; 1]))
            .await
            .map_or_else(|error| tls::classify(&error), |_| panic!("the connection was accepted")),
        Err(cause) => cause,
    };
    assert_eq!(refused, tls::HandshakeFailure::Refused);
    eventually(async || relay.metrics.handshakes(HandshakeResult::Unauthorized) == 1).await;
}

#[tokio::test]
async fn a_session_without_a_path_ends_after_the_idle_limit() {
    let relay = TestRelay::start(&Limits { session_idle: Duration::from_secs(1), ..Limits::default() });
    let registry = Arc::clone(&relay.registry);
    tokio::spawn(async move { registry.run_janitor().await });
    let key = relay.authorize(2);
    let mut client = TestClient::new(1);
    client.move_to(&relay, &key, 1).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(relay.registry.sessions().await.len(), 1, "a session with a path is kept");
    client.handle.close_path(PathId(1), CloseCode::Normal);
    eventually(async || relay.metrics.paths.get() == 0).await;
    assert_eq!(relay.metrics.sessions.get(), 1, "the session is kept until the limit");
    eventually(async || relay.metrics.sessions.get() == 0).await;
    assert!(relay.registry.sessions().await.is_empty());
    assert!(!client.move_to(&relay, &key, 2).await, "the returning client begins a new session");
}

#[tokio::test]
async fn half_open_connections_are_bounded_in_number_and_time() {
    let relay = TestRelay::start(&Limits {
        half_open: 2,
        handshake_timeout: Duration::from_secs(1),
        ..Limits::default()
    });
    let mut silent = Vec::new();
    for source in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
        // The last one is refused with a reset, which may arrive before connect() returns.
        silent.extend(abuse::from(&relay, source).await);
    }
    eventually(async || relay.metrics.handshakes(HandshakeResult::Busy) == 1).await;
    eventually(async || relay.metrics.handshakes(HandshakeResult::Timeout) == 2).await;
    for mut tcp in silent {
        assert_eq!(soon(tcp.read(&mut [0; 1])).await.unwrap_or(0), 0, "closed by the relay");
    }
    assert_eq!(relay.metrics.half_open.get(), 0);
    // Afterwards there is room again.
    let key = relay.authorize(2);
    TestClient::new(1).move_to(&relay, &key, 1).await;
}

#[tokio::test]
async fn an_invalid_hello_is_counted_and_affects_no_other_client() {
    use tokio::io::AsyncWriteExt as _;
    let relay = TestRelay::start(&Limits::default());
    let key = relay.authorize(2);
    let mut stream = relay.tls(&key).await.unwrap();
    stream.write_all(&[0x7f; 100]).await.unwrap();
    stream.flush().await.unwrap();
    eventually(async || relay.metrics.handshakes(HandshakeResult::Hello) == 1).await;
    TestClient::new(1).move_to(&relay, &key, 1).await;
}

#[tokio::test]
async fn stopping_closes_the_session_of_every_client() {
    let relay = TestRelay::start(&Limits::default());
    let mut clients = Vec::new();
    for host in 2..5 {
        let key = relay.authorize(host);
        let mut client = TestClient::new(host);
        client.move_to(&relay, &key, 1).await;
        clients.push(client);
    }
    soon(relay.registry.shut_down()).await;
    for mut client in clients {
        let closed = client.event(|event| match event {
            Event::PathClosed { code, .. } => Some(*code),
            _ => None,
        });
        assert_eq!(closed.await, CloseCode::Shutdown);
    }
    assert_eq!((relay.metrics.sessions.get(), relay.metrics.paths.get()), (0, 0));
}

#[tokio::test]
async fn a_revoked_client_leaves_no_known_source_behind() {
    let limits = Limits { handshake_rate_per_source: 1, ..Limits::default() };
    let relay = TestRelay::start(&limits);
    let key = PrivateKey::generate().unwrap();
    let (wanted, reach) = Default::default();
    let new_client = NewClient { name: "laptop".into(), public_key: key.public(), wanted, reach };
    relay.relay.authorize(vec![new_client]).await.unwrap();
    TestClient::new(1).move_to(&relay, &key, 1).await;
    let source = relay.address.ip();
    // A burst of ten for a stranger, and of a hundred for a known source.
    let now = std::time::Instant::now();
    let admitted = |relay: &TestRelay| {
        let mut limiter = relay.relay.limiter().lock().unwrap();
        (0..200).filter(|_| limiter.admit(now, source).map(|ticket| limiter.end(&ticket)).is_ok()).count()
    };
    assert!(admitted(&relay) > 80);
    relay.relay.revoke("laptop".into()).await.unwrap();
    // The rate of a known source would admit some of them again.
    let now = now + Duration::from_millis(900);
    let admitted = relay.relay.limiter().lock().unwrap().admit(now, source).map(|_| ());
    assert_eq!(admitted, Err(HandshakeResult::SourceRate));
}
