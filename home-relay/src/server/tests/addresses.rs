//! Tests clients whose persistent addresses change while they are connected.

use super::*;

#[tokio::test]
async fn changed_addresses_end_the_session_and_the_next_session_has_them() {
    let relay = TestRelay::start(&Limits::default());
    let key = relay.authorize(2);
    let mut client = TestClient::new(1);
    client.move_to(&relay, &key, 1).await;
    let lease = Lease { ipv4: Some([10, 9, 0, 7].into()), ipv6: None };
    let moved = Client::new("client-2".into(), key.public(), lease, 0);
    relay.registry.add_or_move(&moved).await;
    assert!(relay.registry.sessions().await.is_empty() && relay.registry.is_authorized(&key.public()));
    let mut again = TestClient::new(1);
    again.move_to(&relay, &key, 1).await;
    let to_it = packet("192.0.2.1", "10.9.0.7");
    relay.demux.dispatch(&to_it).unwrap();
    assert_eq!(again.receive().await, to_it);
    relay.registry.add_or_move(&moved).await;
    assert_eq!(relay.registry.sessions().await.len(), 1, "the same again changes nothing");
    assert_eq!(relay.metrics.clients.get(), 1);
}

#[tokio::test]
async fn clients_that_swap_addresses_both_receive_what_is_sent_to_them() {
    let relay = TestRelay::start(&Limits::default());
    let keys = [relay.authorize(2), relay.authorize(3)];
    let mut clients = [TestClient::new(1), TestClient::new(2)];
    for (client, key) in clients.iter_mut().zip(&keys) {
        client.move_to(&relay, key, 1).await;
    }
    // Each client reconnects, with its new address, before the other one is moved.
    for (number, host) in [(0, 3), (1, 2)] {
        let lease = Lease { ipv4: Some([10, 9, 0, host].into()), ipv6: None };
        let public_key = keys[number].public();
        let name = format!("client-{}", number + 2);
        relay.registry.add_or_move(&Client::new(name, public_key, lease, 0)).await;
        clients[number] = TestClient::new(3 + u8::try_from(number).unwrap());
        clients[number].move_to(&relay, &keys[number], 1).await;
    }
    for (number, to) in ["10.9.0.3", "10.9.0.2"].into_iter().enumerate() {
        let to_it = packet("192.0.2.1", to);
        relay.demux.dispatch(&to_it).unwrap();
        assert_eq!(clients[number].receive().await, to_it);
    }
}
