//! Tests the driver's part in the liveness check of paths, and an ACTIVATE that the client sends
//! before it has received the WELCOME.

use super::*;

fn suspect(event: &DriverEvent) -> Option<(PathId, Duration)> {
    match event {
        DriverEvent::Session(Event::PathUnresponsive { path, silent_for }) => Some((*path, *silent_for)),
        _ => None,
    }
}

#[tokio::test]
async fn both_ends_have_the_kernels_statistics_of_a_path() {
    let mut pair = Pair::new();
    pair.switch(PathId(1)).await;
    pair.client.memory.fill(0, 100);
    pair.relay.memory.has_received(100).await;
    pair.relay.memory.fill(0, 100);
    pair.client.memory.has_received(100).await;
    for side in [&pair.client, &pair.relay] {
        let snapshot = side.handle.snapshot().await.unwrap();
        let (_, stats) = &snapshot.paths[0];
        let (srtt, rttvar) = (stats.srtt.unwrap(), stats.rttvar.unwrap());
        assert!(srtt > Duration::ZERO && srtt < Duration::from_secs(1), "{srtt:?}");
        assert!(rttvar < Duration::from_secs(1), "{rttvar:?}");
        assert!((0.0..0.5).contains(&stats.loss.unwrap()), "{:?}", stats.loss);
        assert_eq!((snapshot.stats.unresponsive, stats.unresponsive), (0, false));
    }
}

#[tokio::test]
async fn a_path_is_unresponsive_when_only_the_peers_kernel_responds_and_recovers() {
    let mut pair = Pair::new();
    let (sockets, valve) = valved();
    pair.open_over(PathId(1), sockets.await).await;
    pair.client.handle.activate(PathId(1), vec![PathId(1)]);
    pair.client.memory.fill(0, 1);
    pair.relay.memory.has_received(1).await;
    valve.send(Valve { forth: false, back: false }).unwrap();
    let shut = Instant::now();
    pair.client.memory.fill(1, 1);
    let (path, silent_for) = pair.client.event(suspect).await;
    assert_eq!(path, PathId(1));
    assert!(silent_for >= Duration::from_secs(3) && silent_for <= shut.elapsed(), "{silent_for:?}");
    valve.send(OPEN).unwrap();
    let recovered = |event: &DriverEvent| match event {
        DriverEvent::Session(Event::PathRecovered { path }) => Some(*path),
        _ => None,
    };
    assert_eq!(pair.client.event(recovered).await, PathId(1));
    pair.relay.memory.has_received(2).await;
}

#[tokio::test]
async fn data_behind_hello_is_delivered_when_the_path_is_accepted() {
    let mut pair = Pair::new();
    pair.switch(PathId(1)).await;
    pair.client.memory.fill(0, 10);
    pair.relay.memory.has_received(10).await;
    let (near, far) = handshake(sockets().await).await;
    pair.client.handle.open_path(PathId(2), near.unwrap());
    pair.client.handle.activate(PathId(2), vec![]);
    let activated = |event: &DriverEvent| match event {
        DriverEvent::Session(Event::PathActivated { path: PathId(2), .. }) => Some(()),
        _ => None,
    };
    pair.client.event(activated).await;
    pair.client.memory.fill(10, 10);
    while pair.client.memory.remaining() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The relay has not sent anything on this path yet.
    let mut far = far.unwrap();
    let mut reader = HelloReader::new();
    let mut buf = [0; 4096];
    let (hello, leftover) = loop {
        let length = far.read(&mut buf).await.unwrap();
        if let Some(whole) = reader.feed(&buf[..length]).unwrap() {
            break whole;
        }
    };
    assert_eq!(hello.path, PathId(2));
    pair.relay.handle.accept_path(hello, leftover, far);
    pair.relay.memory.has_received(20).await;
    pair.relay.memory.check(20);
    assert_eq!(pair.relay.handle.snapshot().await.unwrap().active, Some(PathId(2)));
}
