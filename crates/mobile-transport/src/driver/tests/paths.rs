//! Tests the paths of two drivers: switching between them, failures, and paths that are closed.

use super::*;

#[tokio::test]
async fn every_packet_comes_once_and_in_order_over_path_swaps() {
    const COUNT: u64 = 100_000;
    let mut pair = Pair::new();
    pair.switch(PathId(0)).await;
    // Without an active path a session drops what its queue cannot hold, so start only when both
    // have one.
    for side in [&mut pair.client, &mut pair.relay] {
        side.event(|event| matches!(event, DriverEvent::Session(Event::PathActivated { .. })).then_some(()))
            .await;
        side.memory.fill(0, COUNT);
    }
    for swap in 1..5_u32 {
        pair.switch(PathId(swap)).await;
        pair.relay.memory.has_received(COUNT / 5 * u64::from(swap) + 1000).await;
    }
    pair.relay.memory.has_received(COUNT).await;
    pair.client.memory.has_received(COUNT).await;
    pair.relay.memory.check(COUNT);
    pair.client.memory.check(COUNT);
    // The packets may be through before the relay reads the last ACTIVATE.
    let deadline = Instant::now() + SOON;
    let snapshot = loop {
        let snapshot = pair.relay.handle.snapshot().await.unwrap();
        if snapshot.active == Some(PathId(4)) {
            break snapshot;
        }
        assert!(Instant::now() < deadline, "the relay stays on {:?}", snapshot.active);
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(snapshot.paths.len(), 1, "the relay frees what the client left");
}

#[tokio::test]
async fn a_failed_path_is_reported_and_the_next_one_continues() {
    const COUNT: u64 = 20_000;
    // The queue holds all packets, because between two paths nothing limits the source.
    let mut pair = Pair::with(Limits { queue_bytes: 64 << 20, ..limits() });
    let (near, far) = sockets().await;
    // A duplicate of the client's socket, to cut the connection without the driver's involvement.
    let cut = near.into_std().unwrap();
    let near = TcpStream::from_std(cut.try_clone().unwrap()).unwrap();
    pair.open_over(PathId(1), (near, far)).await;
    pair.client.handle.activate(PathId(1), vec![PathId(1)]);
    pair.client.memory.fill(0, COUNT);
    pair.relay.memory.has_received(COUNT / 10).await;
    cut.shutdown(std::net::Shutdown::Both).unwrap();
    let (path, cause) = pair.client.path_error().await;
    assert_eq!(path, PathId(1));
    assert!(matches!(cause, HandshakeFailure::Network(_)), "{cause:?}");
    pair.switch(PathId(2)).await;
    pair.relay.memory.has_received(COUNT).await;
    pair.relay.memory.check(COUNT);
    assert!(pair.client.handle.snapshot().await.unwrap().stats.replayed_packets > 0);
}

#[tokio::test]
async fn closing_one_path_notifies_the_peer_and_keeps_the_other() {
    let mut pair = Pair::new();
    pair.open(PathId(1)).await;
    pair.open(PathId(2)).await;
    pair.client.handle.activate(PathId(2), vec![PathId(1), PathId(2)]);
    pair.client.handle.close_path(PathId(1), CloseCode::Normal);
    assert_eq!(pair.relay.closed().await, (PathId(1), CloseCode::Normal));
    pair.client.memory.fill(0, 100);
    pair.relay.memory.has_received(100).await;
    pair.relay.memory.check(100);
}

#[tokio::test]
async fn a_path_with_the_same_id_replaces_the_old_one() {
    let mut pair = Pair::new();
    pair.switch(PathId(1)).await;
    let second = Endpoint::new(Session::client(SESSION, limits()));
    let mut first = std::mem::replace(&mut pair.client, second);
    pair.switch(PathId(1)).await;
    assert_eq!(pair.relay.closed().await, (PathId(1), CloseCode::Replaced));
    assert_eq!(first.path_error().await.0, PathId(1));
    // The first client has switched once already, so the second one's first ACTIVATE would be
    // stale.
    pair.client.handle.activate(PathId(1), vec![PathId(1)]);
    pair.client.memory.fill(0, 100);
    pair.relay.memory.fill(0, 100);
    pair.relay.memory.has_received(100).await;
    pair.client.memory.has_received(100).await;
    pair.relay.memory.check(100);
    pair.client.memory.check(100);
}

#[tokio::test]
async fn a_refused_key_is_reported_as_refused() {
    for _ in 0..20 {
        let mut client = Endpoint::new(Session::client(SESSION, limits()));
        let (near, far) = sockets().await;
        let (client_config, relay_config) = configs(false);
        let relay = tokio::spawn(async move { tls::accept(&relay_config, far, SOON).await });
        match tls::connect(&client_config, near, SOON).await {
            Ok(near) => {
                client.handle.open_path(PathId(1), near);
                assert_eq!(client.path_error().await, (PathId(1), HandshakeFailure::Refused));
            }
            Err(cause) => assert_eq!(cause, HandshakeFailure::Refused),
        }
        assert!(relay.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_protocol_violation_closes_only_that_path() {
    let mut client = Endpoint::new(Session::client(SESSION, limits()));
    let (near, far) = handshake(sockets().await).await;
    client.handle.open_path(PathId(1), near.unwrap());
    let mut far = far.unwrap();
    far.write_all(&[0x7f; 64]).await.unwrap();
    far.flush().await.unwrap();
    let (path, cause) = client.path_error().await;
    assert_eq!(path, PathId(1));
    assert!(matches!(cause, HandshakeFailure::Protocol(_)), "{cause:?}");
    assert!(client.handle.snapshot().await.is_some());
    // The peer receives a CLOSE, then the end of the stream.
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, far.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(!rest.is_empty());
}
