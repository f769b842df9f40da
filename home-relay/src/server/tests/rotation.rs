//! Tests the replacement of a client's key and of the relay's, and announcements, over real TLS.

use std::sync::Mutex;

use mobile_proto::enroll::KeyChange;
use mobile_transport::key_rotation;
use mobile_transport::keys::RelayKeys;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::store::WantedReach;

/// Authorises a new key in the store too.
async fn authorize(relay: &TestRelay, name: &str) -> PrivateKey {
    let key = PrivateKey::generate().unwrap();
    let new_client = NewClient {
        name: name.into(),
        public_key: key.public(),
        wanted: Lease::default(),
        reach: WantedReach::default(),
    };
    relay.relay.authorize(vec![new_client]).await.unwrap();
    key
}

/// Asks the relay to replace `old` by `new`; `alter` may falsify the request.
async fn change_key(
    relay: &TestRelay,
    old: &PrivateKey,
    new: &PrivateKey,
    alter: impl FnOnce(&mut KeyChange),
) -> EnrolmentReply {
    let tcp = TcpStream::connect(relay.address).await.unwrap();
    let mut stream = tls::connect(&tls::enrolment_config(old, relay.key), tcp, PATIENCE).await.unwrap();
    let mut change = key_rotation::prove(&stream, &old.public(), new).unwrap();
    alter(&mut change);
    stream.write_all(&enroll::encode_request(&EnrolmentRequest::ChangeKey(change))).await.unwrap();
    stream.flush().await.unwrap();
    let mut received = Vec::new();
    loop {
        if let Some(reply) = enroll::read_reply(&received).unwrap() {
            return reply;
        }
        let mut buffer = [0; 64];
        let read = soon(stream.read(&mut buffer)).await.unwrap();
        received.extend_from_slice(&buffer[..read]);
    }
}

/// Returns whether the relay accepts a path with this key.
async fn is_accepted(relay: &TestRelay, key: &PrivateKey) -> bool {
    let mut stream = relay.tls(key).await.unwrap();
    stream.shutdown().await.unwrap();
    !matches!(soon(stream.read(&mut [0; 1])).await, Err(error) if tls::classify(&error) == tls::HandshakeFailure::Refused)
}

#[tokio::test]
async fn a_client_replaces_its_key_and_its_session_continues() {
    let relay = TestRelay::start(&Limits::default());
    let (old, other) = (authorize(&relay, "laptop").await, authorize(&relay, "phone").await);
    let new = PrivateKey::generate().unwrap();
    let mut client = TestClient::new(1);
    client.move_to(&relay, &old, 1).await;
    let enrolled = EnrolmentReply::Enrolled("laptop".into());
    for _ in 0..2 {
        assert_eq!(change_key(&relay, &old, &new, |_| {}).await, enrolled, "also when its reply was lost");
    }
    assert!(is_accepted(&relay, &old).await, "until the new key has opened a session");
    assert!(client.move_to(&relay, &new, 2).await, "the session is the client's, not the key's");
    eventually(async || !is_accepted(&relay, &old).await).await;
    assert!(is_accepted(&relay, &new).await && is_accepted(&relay, &other).await);
    relay.demux.dispatch(&packet("192.0.2.1", "10.9.0.2")).unwrap();
    assert_eq!(client.receive().await, packet("192.0.2.1", "10.9.0.2"));
    let clients = relay.relay.clients().await.unwrap();
    let keys: Vec<_> = clients.iter().map(|client| (client.name.as_str(), client.public_key)).collect();
    assert_eq!(keys, [("laptop", Some(new.public())), ("phone", Some(other.public()))]);
    assert_eq!(relay.metrics.clients.get(), 2);
    assert_eq!(relay.metrics.enrolments(EnrolmentResult::KeyChanged), 2);
    relay.relay.revoke("laptop".into()).await.unwrap();
    assert!(!is_accepted(&relay, &new).await);
}

#[tokio::test]
async fn a_key_is_replaced_only_for_a_client_that_holds_both() {
    let relay = TestRelay::start(&Limits::default());
    let (old, other) = (authorize(&relay, "laptop").await, authorize(&relay, "phone").await);
    let (new, stranger) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let refused = EnrolmentReply::Refused;
    assert_eq!(change_key(&relay, &stranger, &new, |_| {}).await, refused(EnrolmentRefusal::NotAClient));
    let forged =
        change_key(&relay, &old, &new, |change| change.new_key = *stranger.public().as_bytes()).await;
    assert_eq!(forged, refused(EnrolmentRefusal::Malformed));
    assert_eq!(change_key(&relay, &old, &old, |_| {}).await, refused(EnrolmentRefusal::Malformed));
    assert_eq!(change_key(&relay, &old, &other, |_| {}).await, refused(EnrolmentRefusal::KeyTaken));
    assert!(!is_accepted(&relay, &new).await && !is_accepted(&relay, &stranger).await);
    // The next key of a client is taken too, and a later request replaces it.
    change_key(&relay, &old, &new, |_| {}).await;
    assert_eq!(change_key(&relay, &other, &new, |_| {}).await, refused(EnrolmentRefusal::KeyTaken));
    change_key(&relay, &old, &stranger, |_| {}).await;
    assert!(!is_accepted(&relay, &new).await && is_accepted(&relay, &old).await);
    relay.relay.revoke("laptop".into()).await.unwrap();
    assert!(!is_accepted(&relay, &stranger).await && !is_accepted(&relay, &old).await, "both are revoked");
    assert_eq!(change_key(&relay, &old, &new, |_| {}).await, refused(EnrolmentRefusal::NotAClient));
}

#[tokio::test]
async fn clients_confirm_the_next_key_and_running_paths_survive_its_adoption() {
    let relay = TestRelay::start(&Limits::default());
    let key = authorize(&relay, "laptop").await;
    authorize(&relay, "tablet").await;
    let file = relay._state.path().join("key");
    let mut client = TestClient::new(1);
    client.move_to(&relay, &key, 1).await;
    let next = key_rotation::create_next(&file).unwrap().public();
    let state = relay.relay.reread_keys().await.unwrap();
    assert_eq!((state.public_key, state.next_public_key), (relay.key, Some(next)));
    let announced = client.event(|event| match event {
        Event::Config(config) => config.relay.clone(),
        _ => None,
    });
    let announced = announced.await;
    assert_eq!(announced.key, Some(*next.as_bytes()));
    let knows = async || {
        let state = relay.relay.identity_state().await.unwrap();
        state.clients.into_iter().map(|client| client.knows_key).collect::<Vec<_>>()
    };
    assert_eq!(knows().await, [false, false]);
    client.handle.confirm(announced);
    eventually(async || knows().await == [true, false]).await;

    key_rotation::adopt_next(&file, true).unwrap();
    let state = relay.relay.reread_keys().await.unwrap();
    assert_eq!((state.public_key, state.next_public_key), (next, None));
    relay.demux.dispatch(&packet("192.0.2.1", "10.9.0.2")).unwrap();
    assert_eq!(client.receive().await, packet("192.0.2.1", "10.9.0.2"), "the path lives on");
    let uninformed = relay.tls(&key).await;
    assert!(matches!(uninformed, Err(tls::HandshakeFailure::WrongRelayKey { .. })), "{uninformed:?}");
    let keys = RelayKeys { current: relay.key, next: Some(next) };
    let tcp = TcpStream::connect(relay.address).await.unwrap();
    let stream = tls::connect(&tls::client_config(&key, keys), tcp, PATIENCE).await.unwrap();
    assert_eq!(tls::peer_key(stream.get_ref().1), Some(next));
}

#[tokio::test]
async fn an_endpoint_is_announced_until_it_is_withdrawn_and_only_its_confirmation_counts() {
    let relay = TestRelay::start(&Limits::default());
    let key = authorize(&relay, "laptop").await;
    assert!(relay.relay.move_to(Some("nowhere".into())).await.is_err());
    let state = relay.relay.move_to(Some("new.example.org:443".into())).await.unwrap();
    assert!(!state.clients[0].knows_endpoint);
    let mut client = TestClient::new(1);
    let seen = Mutex::new(None);
    client.handle.open_path(PathId(1), relay.tls(&key).await.unwrap());
    client
        .event(|event| {
            let Event::Config(config) = event else { return None };
            *seen.lock().unwrap() = config.relay.clone();
            Some(())
        })
        .await;
    let announced = seen.into_inner().unwrap().unwrap();
    assert_eq!(announced.endpoint.as_deref(), Some("new.example.org:443"));
    client.handle.confirm(announced);
    eventually(async || relay.relay.identity_state().await.unwrap().clients[0].knows_endpoint).await;
    let state = relay.relay.move_to(None).await.unwrap();
    assert_eq!((state.endpoint, state.clients[0].knows_endpoint), (None, false));
    let withdrawn = client.event(|event| match event {
        Event::Config(config) => config.relay.clone(),
        _ => None,
    });
    assert_eq!(withdrawn.await.endpoint.as_deref(), Some(""));
}
