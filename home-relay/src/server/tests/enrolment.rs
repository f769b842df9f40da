//! Tests enrolment by an invitation, over real TLS.

use super::*;

/// Sends `bytes` on an enrolment connection with an unknown key, and returns the relay's reply.
pub(super) async fn enrolment(relay: &TestRelay, key: &PrivateKey, bytes: &[u8]) -> Option<EnrolmentReply> {
    use tokio::io::AsyncWriteExt as _;
    let tcp = TcpStream::connect(relay.address).await.unwrap();
    let mut stream = tls::connect(&tls::enrolment_config(key, relay.key), tcp, PATIENCE).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut received = Vec::new();
    while enroll::read_reply(&received).unwrap().is_none() {
        let mut buffer = [0; 64];
        match soon(stream.read(&mut buffer)).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => received.extend_from_slice(&buffer[..read]),
        }
    }
    enroll::read_reply(&received).unwrap()
}

#[tokio::test]
async fn a_key_enrols_by_a_token_and_may_connect_at_once() {
    let relay = TestRelay::start(&Limits::default());
    let token = Token::from_bytes([9; 16]);
    let hash = TokenHash::of(&token);
    relay.relay.invite("laptop".into(), hash, PATIENCE, Lease::default()).await.unwrap();
    let (laptop, thief) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let request = enroll::encode_request(&EnrolmentRequest::Enroll(token));
    for _ in 0..2 {
        let answer = enrolment(&relay, &laptop, &request).await;
        assert_eq!(answer, Some(EnrolmentReply::Enrolled("laptop".into())), "also when its answer was lost");
    }
    assert_eq!(
        enrolment(&relay, &thief, &request).await,
        Some(EnrolmentReply::Refused(EnrolmentRefusal::Used))
    );
    let guess = enroll::encode_request(&EnrolmentRequest::Enroll(Token::from_bytes([8; 16])));
    assert_eq!(
        enrolment(&relay, &thief, &guess).await,
        Some(EnrolmentReply::Refused(EnrolmentRefusal::Unknown))
    );
    for (result, count) in
        [(EnrolmentResult::Enrolled, 2), (EnrolmentResult::Used, 1), (EnrolmentResult::Unknown, 1)]
    {
        assert_eq!(relay.metrics.enrolments(result), count, "{result:?}");
    }
    assert_eq!(relay.metrics.clients.get(), 1);
    TestClient::new(1).move_to(&relay, &laptop, 1).await;
}

#[tokio::test]
async fn an_enrolment_connection_opens_no_path_and_concurrent_ones_are_limited() {
    let relay = TestRelay::start(&Limits::default());
    let stranger = PrivateKey::generate().unwrap();
    for bytes in [&[0x10; 40][..], b"GET / HTTP/1.1\r\n\r\n", &[0x20, 0x41, 0x01]] {
        assert_eq!(
            enrolment(&relay, &stranger, bytes).await,
            Some(EnrolmentReply::Refused(EnrolmentRefusal::Malformed))
        );
    }
    assert!(relay.registry.sessions().await.is_empty());
    // Sixteen silent connections, and one more.
    let mut silent = Vec::new();
    for _ in 0..17 {
        let tcp = TcpStream::connect(relay.address).await.unwrap();
        silent.push(tls::connect(&tls::enrolment_config(&stranger, relay.key), tcp, PATIENCE).await.unwrap());
    }
    eventually(async || relay.metrics.enrolments(EnrolmentResult::Busy) == 1).await;
    // Clients are not disturbed.
    let key = relay.authorize(2);
    TestClient::new(1).move_to(&relay, &key, 1).await;
}
