//! Tests what strangers and broken clients can do at the relay's port, with the real protocol.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket};

use super::enrolment::enrolment;
use super::log_buffer::{lines, log};
use super::*;

/// Connects to the relay from the loopback address `source`.
pub(super) async fn from(relay: &TestRelay, source: &str) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0))?;
    socket.connect(relay.address).await
}

/// Waits until the connection is closed or reset by the other end; returns true.
async fn is_closed(tcp: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    soon(async {
        let mut buffer = [0; 1024];
        while matches!(tcp.read(&mut buffer).await, Ok(1..)) {}
    })
    .await;
    true
}

/// Writes one byte after another, slowly, until the other end closes.
async fn dribble(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
    for byte in bytes {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Returns the first messages that a client sends: the ClientHello of TLS, and the HELLO of the
/// session.
fn first_messages() -> [Vec<u8>; 2] {
    let key = PrivateKey::generate().unwrap();
    let config = tls::client_config(&key, key.public());
    let name = rustls::pki_types::ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let (mut hello, mut session_hello) = (Vec::new(), Vec::new());
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
    let mut session = Session::client(SessionId([1; 16]), mobile_proto::Limits::default());
    let now = Instant::now();
    session.open_path(now, PathId(1));
    session.poll_transmit(now, PathId(1), &mut session_hello, mobile_proto::Budget::new(4096));
    [hello, session_hello]
}

#[tokio::test]
async fn a_slow_sender_has_one_deadline_for_the_whole_handshake() {
    let relay = TestRelay::start(&Limits { handshake_timeout: Duration::from_secs(1), ..Limits::default() });
    let key = relay.authorize(2);
    let [client_hello, hello] = first_messages();
    assert!(client_hello.len() > 20 && hello.len() > 20, "longer than the deadline at this pace");
    let start = Instant::now();
    let mut in_tls = TcpStream::connect(relay.address).await.unwrap();
    let mut in_hello = relay.tls(&key).await.unwrap();
    tokio::join!(dribble(&mut in_tls, &client_hello[..20]), dribble(&mut in_hello, &hello[..20]));
    assert!(is_closed(&mut in_tls).await && is_closed(&mut in_hello).await);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    eventually(async || relay.metrics.handshakes(HandshakeResult::Timeout) == 2).await;
    assert_eq!(relay.metrics.half_open.get(), 0);
    TestClient::new(1).move_to(&relay, &key, 1).await;
}

#[tokio::test]
async fn garbage_is_counted_and_affects_no_client() {
    let relay = TestRelay::start(&Limits::default());
    let [client_hello, _] = first_messages();
    let mut cut = client_hello.clone();
    cut.iter_mut().skip(60).for_each(|byte| *byte ^= 0x5a);
    let random: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
    let all = [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"SSH-2.0-x\r\n",
        &cut,
        &random,
        &[0x16, 3, 1, 0xff, 0xff, 1],
    ];
    for garbage in all {
        let mut tcp = TcpStream::connect(relay.address).await.unwrap();
        tcp.write_all(garbage).await.unwrap();
        tcp.shutdown().await.unwrap();
        assert!(is_closed(&mut tcp).await);
    }
    eventually(async || relay.metrics.handshakes(HandshakeResult::Tls) == all.len() as u64).await;
    let key = relay.authorize(2);
    TestClient::new(1).move_to(&relay, &key, 1).await;
}

/// Checks that a long ClientHello is cut off: rustls would collect 64 KiB from each of a thousand
/// strangers.
#[tokio::test]
async fn a_client_hello_that_is_too_long_is_cut_off_and_counted() {
    let relay = TestRelay::start(&Limits::default());
    let mut tcp = TcpStream::connect(relay.address).await.unwrap();
    // One message of 64 KiB less a byte, which never ends.
    let mut sent = vec![0x16, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0xff];
    sent.resize(5 + 0x3fff, 0);
    tcp.write_all(&sent).await.unwrap();
    assert!(is_closed(&mut tcp).await);
    eventually(async || relay.metrics.handshakes(HandshakeResult::Oversized) == 1).await;
    assert_eq!(relay.metrics.half_open.get(), 0);
    let key = relay.authorize(2);
    TestClient::new(1).move_to(&relay, &key, 1).await;
}

#[tokio::test]
async fn a_replayed_handshake_opens_no_path() {
    let relay = TestRelay::start(&Limits::default());
    let key = relay.authorize(2);
    // A proxy between the two records what the client sends.
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let middle = proxy.local_addr().unwrap();
    let address = relay.address;
    let recording = tokio::spawn(async move {
        let (near, _) = proxy.accept().await.unwrap();
        let far = TcpStream::connect(address).await.unwrap();
        let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
        let back = tokio::spawn(async move { tokio::io::copy(&mut far_in, &mut near_out).await });
        let (mut recorded, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = near_in.read(&mut buffer).await {
            recorded.extend_from_slice(&buffer[..length]);
            far_out.write_all(&buffer[..length]).await.unwrap();
        }
        back.abort();
        recorded
    });
    let mut client = TestClient::new(1);
    let tcp = TcpStream::connect(middle).await.unwrap();
    let stream = tls::connect(&tls::client_config(&key, relay.key), tcp, PATIENCE).await.unwrap();
    client.handle.open_path(PathId(1), stream);
    client.event(|event| matches!(event, Event::PathReady { .. }).then_some(())).await;
    client.move_to(&relay, &key, 2).await;
    let recorded = soon(recording).await.unwrap();
    assert!(recorded.len() > 300, "a whole handshake, and a HELLO: {}", recorded.len());
    let before = relay.registry.sessions().await;

    let mut replay = TcpStream::connect(relay.address).await.unwrap();
    replay.write_all(&recorded).await.unwrap();
    // The replay has nothing more to send.
    replay.shutdown().await.unwrap();
    assert!(is_closed(&mut replay).await);
    eventually(async || relay.metrics.handshakes(HandshakeResult::Tls) == 1).await;
    let after = relay.registry.sessions().await;
    assert_eq!((before[0].session.as_str(), 1), (after[0].session.as_str(), after[0].paths.len()));
    assert_eq!(relay.metrics.handshakes(HandshakeResult::Opened), 1);
}

#[tokio::test]
async fn a_source_over_its_rate_is_refused_before_tls_and_others_are_not() {
    let relay = TestRelay::start(&Limits { handshake_rate_per_source: 1, ..Limits::default() });
    for _ in 0..20 {
        // The relay refuses with a reset, which may arrive before connect() returns.
        if let Ok(mut tcp) = from(&relay, "127.0.0.2").await {
            let _ = tcp.write_all(b"no TLS at all, and long enough to be known as such").await;
            assert!(is_closed(&mut tcp).await);
        }
    }
    eventually(async || {
        let count = |result| relay.metrics.handshakes(result);
        count(HandshakeResult::SourceRate) >= 8
            && count(HandshakeResult::SourceRate) + count(HandshakeResult::Tls) == 20
    })
    .await;
    let key = relay.authorize(2);
    TestClient::new(1).move_to(&relay, &key, 1).await;
}

/// Connects `count` times and returns the time in which 19 of 20 handshakes complete.
async fn p95(relay: &TestRelay, key: &PrivateKey, count: usize) -> Duration {
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let mut stream = relay.tls(key).await.expect("a known source is never refused");
        times.push(start.elapsed());
        stream.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times.sort_unstable();
    times[count * 95 / 100]
}

/// Opens a thousand connections per second from as many sources as possible, each with an
/// unfinished ClientHello, until `over` is set, and returns their number.
fn flood(to: SocketAddr, over: &AtomicBool) -> usize {
    let [client_hello, _] = first_messages();
    let mut sent = 0;
    let start = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let number = u32::try_from(sent).unwrap() % 60_000;
        let source = IpAddr::V4((0x7f02_0001 + number).into());
        let socket = connect_from(SocketAddr::new(source, 0), to);
        if let Ok(mut tcp) = socket {
            let _ = tcp.write_all(&client_hello);
        }
        sent += 1;
        let due = start + Duration::from_millis(sent as u64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

fn connect_from(source: SocketAddr, to: SocketAddr) -> io::Result<std::net::TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(source)?;
        socket.connect(to).await
    })?;
    stream.into_std()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_client_connects_through_a_flood_of_a_thousand_a_second() {
    let relay = TestRelay::start(&Limits { handshake_rate_per_source: 1000, ..Limits::default() });
    let key = relay.authorize(2);
    TestClient::new(1).move_to(&relay, &key, 1).await;
    let idle = p95(&relay, &key, 100).await;
    let over = Arc::new(AtomicBool::new(false));
    let (until, address) = (Arc::clone(&over), relay.address);
    let flooding = std::thread::spawn(move || flood(address, &until));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let busy = p95(&relay, &key, 100).await;
    over.store(true, Ordering::Relaxed);
    let sent = flooding.join().unwrap();
    eprintln!("p95 of a handshake: {idle:?} idle, {busy:?} beside {sent} strangers");
    assert!(relay.metrics.handshakes(HandshakeResult::Rate) > 0, "the strangers were held to their rate");
    // On an idle machine the measured time is at most twice the time without the flood.
    assert!(busy < idle * 10 + Duration::from_millis(50), "{idle:?} {busy:?}");
}

const CHILD: &str = "HOME_RELAY_RECONNECT_CHILD";
const RECONNECTS: u32 = 10_000;

/// Returns the number of open descriptors and the resident KiB of this process.
fn resource_usage() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss = line.trim().trim_end_matches(" kB").parse().unwrap();
    (std::fs::read_dir("/proc/self/fd").unwrap().count(), rss)
}

#[test]
fn ten_thousand_reconnects_leave_nothing_behind() {
    if std::env::var_os(CHILD).is_none() {
        // Use a process of its own, because descriptors and memory are counted for the whole
        // process.
        let name = "server::tests::abuse::ten_thousand_reconnects_leave_nothing_behind";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let done = command.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        eprintln!("{}", String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let relay = TestRelay::start(&Limits { handshake_rate_per_source: 1_000_000, ..Limits::default() });
        let key = relay.authorize(2);
        let mut client = TestClient::new(1);
        let mut early = (0, 0);
        for path in 1..=RECONNECTS {
            client.move_to(&relay, &key, path).await;
            if path == RECONNECTS / 5 {
                early = resource_usage();
            }
        }
        eventually(async || relay.metrics.paths.get() == 1 && relay.metrics.half_open.get() == 0).await;
        let late = resource_usage();
        eprintln!(
            "descriptors and resident KiB after {}: {early:?}, after {RECONNECTS}: {late:?}",
            RECONNECTS / 5
        );
        let sessions = relay.registry.sessions().await;
        assert_eq!((sessions.len(), sessions[0].paths.len()), (1, 1));
        assert_eq!(relay.metrics.handshakes(HandshakeResult::Resumed), u64::from(RECONNECTS) - 1);
        assert!(late.0 <= early.0 + 4, "{early:?} {late:?}");
        // 8,000 more reconnects: a leak of 256 bytes for each would be noticed.
        assert!(late.1 <= early.1 + 2048, "{early:?} {late:?}");
    });
}

#[tokio::test]
async fn a_client_that_switches_paths_continuously_does_not_fill_the_log() {
    let (log, _guard) = log();
    let relay = TestRelay::start(&Limits::default());
    let (key, other) = (relay.authorize(2), relay.authorize(3));
    let mut client = TestClient::new(1);
    let both = vec![PathId(1), PathId(2)];
    for path in &both {
        client.handle.open_path(*path, relay.tls(&key).await.unwrap());
        client.event(|event| matches!(event, Event::PathReady { .. }).then_some(())).await;
    }
    for round in 0..200 {
        let path = both[round % 2];
        client.handle.activate(path, both.clone());
        client
            .event(|event| matches!(event, Event::PathConfirmed { path: now } if *now == path).then_some(()))
            .await;
    }
    eventually(async || relay.metrics.handovers.get() == 199).await;
    assert!((10..=40).contains(&lines(&log, "path active")), "{}", lines(&log, "path active"));
    // Other clients are still logged.
    TestClient::new(2).move_to(&relay, &other, 1).await;
    assert_eq!(lines(&log, "session opened"), 2);
}

#[tokio::test]
async fn guesses_at_tokens_do_not_fill_the_log() {
    let (log, _guard) = log();
    let relay = TestRelay::start(&Limits::default());
    let stranger = PrivateKey::generate().unwrap();
    let guess = enroll::encode_request(&EnrolmentRequest::Enroll(Token::from_bytes([8; 16])));
    let attempt = || enrolment(&relay, &stranger, &guess);
    let answers = tokio::join!(attempt(), attempt(), attempt());
    let refused = Some(EnrolmentReply::Refused(EnrolmentRefusal::Unknown));
    assert_eq!(answers, (refused.clone(), refused.clone(), refused));
    assert_eq!(lines(&log, "enrolment refused"), 1);
}

/// Returns a TLS configuration that offers the key `offered` but signs with another one, like an
/// attacker who knows only the public key.
fn unproved(relay: &TestRelay, offered: PublicKey) -> Arc<rustls::ClientConfig> {
    // RFC 8410: the constant parts of an Ed25519 key, public and private.
    let spki = [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..], offered.as_bytes()].concat();
    let pkcs8 =
        [&b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"[..], &[77; 32]].concat();
    let mut config = (*tls::client_config(&PrivateKey::from_seed([77; 32]), relay.key)).clone();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(pkcs8).into();
    let signer = config.crypto_provider().key_provider.load_private_key(private).unwrap();
    let offer = rustls::sign::CertifiedKey::new(vec![spki.into()], signer);
    config.client_auth_cert_resolver =
        Arc::new(rustls::client::AlwaysResolvesClientRawPublicKeys::new(Arc::new(offer)));
    Arc::new(config)
}

#[tokio::test]
async fn a_prober_cannot_tell_whether_a_key_it_does_not_hold_is_authorised() {
    let (log, _guard) = log();
    let relay = TestRelay::start(&Limits::default());
    let client = relay.authorize(2).public();
    let stranger = PrivateKey::generate().unwrap().public();
    let mut refusals = Vec::new();
    for offered in [client, stranger] {
        let tcp = from(&relay, "127.0.0.9").await.unwrap();
        let refused = match tls::connect(&unproved(&relay, offered), tcp, PATIENCE).await {
            Ok(mut stream) => soon(stream.read(&mut [0; 1]))
                .await
                .map_or_else(|error| tls::classify(&error), |_| panic!("the connection was accepted")),
            Err(cause) => cause,
        };
        refusals.push(refused);
    }
    assert_eq!(refusals[0], refusals[1]);
    assert_ne!(refusals[0], tls::HandshakeFailure::Refused);
    eventually(async || relay.metrics.handshakes(HandshakeResult::Tls) == 2).await;
    assert_eq!(relay.metrics.handshakes(HandshakeResult::Unauthorized), 0);
    assert_eq!(lines(&log, "refused"), 0, "{}", String::from_utf8_lossy(&log.0.lock().unwrap()));

    // A key that is proved but unknown is refused by name and logged.
    let known_to_nobody = PrivateKey::generate().unwrap();
    let mut stream = relay.tls(&known_to_nobody).await.unwrap();
    let refused = soon(stream.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(tls::classify(&refused), tls::HandshakeFailure::Refused);
    eventually(async || relay.metrics.handshakes(HandshakeResult::Unauthorized) == 1).await;
    assert_eq!(lines(&log, "connection refused: the client's key is not authorised"), 1);
}
