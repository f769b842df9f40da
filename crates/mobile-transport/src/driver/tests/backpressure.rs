//! Tests a driver whose owner does not receive its events, and one whose path accepts no bytes.

use super::*;

impl Endpoint {
    /// Waits up to `patience` until `path` is the active path; returns whether it became active.
    async fn moves_to(&self, path: PathId, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.handle.snapshot().await.unwrap().active != Some(path) {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }
}

/// Tests that a peer that switches paths endlessly causes no more events than the owner receives.
#[tokio::test]
async fn no_path_is_read_while_events_wait() {
    let mut pair = Pair::new();
    pair.switch(PathId(1)).await;
    pair.open(PathId(2)).await;
    while pair.relay.events.try_recv().is_ok() {}
    let mut switches = 0;
    let stopped_at = loop {
        let path = PathId(2 - switches % 2);
        pair.client.handle.activate(path, vec![PathId(1), PathId(2)]);
        if !pair.relay.moves_to(path, Duration::from_millis(300)).await {
            break path;
        }
        switches += 1;
        assert!(switches <= 1000, "the relay's driver goes on reading");
    };
    assert_eq!(pair.relay.events.len(), event_queue::CAPACITY);
    pair.client.memory.fill(0, 10);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(pair.relay.memory.received.load(SeqCst), 0);
    let mut reported = 0;
    while let Ok(Some(event)) =
        tokio::time::timeout(Duration::from_millis(300), pair.relay.events.recv()).await
    {
        reported += u32::from(matches!(event, DriverEvent::Session(Event::PathActivated { .. })));
    }
    assert!(reported >= switches, "{reported} of {switches}");
    assert!(pair.relay.moves_to(stopped_at, SOON).await);
    pair.relay.memory.has_received(10).await;
    pair.relay.memory.check(10);
}

#[tokio::test]
async fn a_stalled_path_stops_reading_from_the_device_until_it_recovers() {
    const COUNT: u64 = 60_000;
    let mut pair = Pair::new();
    let (sockets, valve) = valved();
    pair.open_over(PathId(1), sockets.await).await;
    let left = pair.stall(&valve, COUNT).await;
    assert!(left > 0, "40 MB cannot all be taken from the source while nothing moves");
    valve.send(OPEN).unwrap();
    pair.relay.memory.has_received(COUNT).await;
    pair.relay.memory.check(COUNT);
    assert_eq!(pair.client.handle.snapshot().await.unwrap().stats.dropped_queue_full, 0);
}

#[tokio::test]
async fn room_freed_by_sending_is_used_without_an_acknowledgement() {
    // Fewer bytes than may be unacknowledged, because no acknowledgement arrives.
    const COUNT: u64 = 12_000;
    // Every packet fills the queue, and every write empties it.
    let mut pair = Pair::with(Limits { active_queue_bytes: 1, ..limits() });
    let (sockets, valve) = valved();
    pair.open_over(PathId(1), sockets.await).await;
    pair.client.handle.activate(PathId(1), vec![PathId(1)]);
    pair.client.memory.fill(0, 1);
    pair.relay.memory.has_received(1).await;
    valve.send(Valve { forth: true, back: false }).unwrap();
    pair.client.memory.fill(1, COUNT - 1);
    pair.relay.memory.has_received(COUNT).await;
    pair.relay.memory.check(COUNT);
}

#[tokio::test]
async fn a_closed_path_that_cannot_be_written_is_dropped_soon() {
    const COUNT: u64 = 60_000;
    let mut pair = Pair::new();
    let (sockets, valve) = valved();
    pair.open_over(PathId(1), sockets.await).await;
    pair.stall(&valve, COUNT).await;
    pair.client.handle.close_path(PathId(1), CloseCode::Timeout);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(pair.client.handle.snapshot().await.unwrap().paths.is_empty());
}
