//! Tests a driver whose owner does not receive its events.

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
