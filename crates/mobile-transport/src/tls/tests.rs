use std::sync::atomic::{AtomicUsize, Ordering};

use mobile_proto::enroll::KeyChange;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;

use super::*;
use crate::key_rotation;

const SOON: Duration = Duration::from_secs(5);

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed([seed; 32])
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

async fn handshake(
    client: Arc<ClientConfig>,
    server: RelayConfig,
) -> (Result<TlsStream, HandshakeFailure>, Result<(TlsStream, PublicKey), HandshakeFailure>) {
    let (near, far) = sockets().await;
    tokio::join!(connect(&client, near, SOON), accept(&server, far, SOON))
}

#[tokio::test]
async fn both_sides_prove_their_keys() {
    let known = key(2).public();
    let (client, server) = handshake(
        client_config(&key(2), key(1).public()),
        server_config(&key(1), Arc::new(move |k| *k == known)),
    )
    .await;
    let (mut client, (mut server, client_key)) = (client.unwrap(), server.unwrap());
    assert_eq!(client_key, key(2).public());
    assert_eq!(peer_key(client.get_ref().1), Some(key(1).public()));
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut buf = [0; 5];
    server.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"hello");
}

#[tokio::test]
async fn the_fastest_cipher_of_this_processor_is_negotiated() {
    let (client, server) =
        handshake(client_config(&key(2), key(1).public()), server_config(&key(1), Arc::new(|_| true))).await;
    let (client, server) = (client.unwrap(), server.unwrap().0);
    let agreed = client.get_ref().1.negotiated_cipher_suite();
    assert_eq!(agreed, Some(cipher_suites(has_aes())[0]));
    assert_eq!(server.get_ref().1.negotiated_cipher_suite(), agreed);
}

#[tokio::test]
async fn an_unauthorised_client_learns_that_it_is_refused() {
    let (client, server) =
        handshake(client_config(&key(2), key(1).public()), server_config(&key(1), Arc::new(|_| false))).await;
    assert!(server.is_err());
    // In TLS 1.3 the client's handshake completes before the server checks its key.
    let refusal = match client {
        Err(cause) => cause,
        Ok(mut stream) => classify(&stream.read(&mut [0; 1]).await.unwrap_err()),
    };
    assert_eq!(refusal, HandshakeFailure::Refused);
    assert!(refusal.to_string().contains("`home-relay authorize NAME KEY`"));
}

/// Returns the configuration of a client that offers another client's public key but can only sign
/// with its own.
fn unproved_config(offered: PublicKey, held: &PrivateKey, relay: PublicKey) -> Arc<ClientConfig> {
    let mut config = (*client_config(held, relay)).clone();
    let signer = Arc::clone(&identity(held).key);
    let offer = CertifiedKey::new(vec![CertificateDer::from(offered.to_spki())], signer);
    config.client_auth_cert_resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(offer)));
    Arc::new(config)
}

#[tokio::test]
async fn an_unproved_key_is_not_looked_up_and_nothing_is_revealed_about_it() {
    let (known, unknown) = (key(2).public(), key(3).public());
    let mut reasons = Vec::new();
    for offered in [known, unknown] {
        let lookups = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&lookups);
        let authorise = move |key: &PublicKey| {
            count.fetch_add(1, Ordering::Relaxed);
            *key == known
        };
        let server = server_config(&key(1), Arc::new(authorise));
        let (client, accepted) = handshake(unproved_config(offered, &key(4), key(1).public()), server).await;
        assert!(matches!(accepted, Err(HandshakeFailure::Protocol(_))), "{accepted:?}");
        reasons.push(match client {
            Err(cause) => cause,
            Ok(mut stream) => classify(&stream.read(&mut [0; 1]).await.unwrap_err()),
        });
        assert_eq!(lookups.load(Ordering::Relaxed), 0, "the list of clients was asked");
    }
    assert_ne!(reasons[0], HandshakeFailure::Refused);
    assert_eq!(reasons[0], reasons[1], "the reply distinguishes an authorised key");
}

#[tokio::test]
async fn an_unknown_key_may_only_enrol() {
    let server = server_config(&key(1), Arc::new(|_| false));
    let (client, accepted) = handshake(enrolment_config(&key(2), key(1).public()), server.clone()).await;
    let (accepted, client_key) = accepted.unwrap();
    assert_eq!(client_key, key(2).public(), "it proves its key all the same");
    assert!(is_enrolment(&accepted) && is_enrolment(&client.unwrap()));
    // A client that offers both protocols is taken for an enrolment.
    let mut both = (*client_config(&key(2), key(1).public())).clone();
    both.alpn_protocols.push(ENROLL_ALPN.to_vec());
    let (_, accepted) = handshake(Arc::new(both), server.clone()).await;
    assert!(is_enrolment(&accepted.unwrap().0));
    let (client, accepted) = handshake(enrolment_config(&key(2), key(9).public()), server).await;
    assert!(matches!(client, Err(HandshakeFailure::WrongRelayKey { .. })) && accepted.is_err());
}

#[tokio::test]
async fn a_wrong_relay_key_is_reported_with_the_expected_one() {
    let (client, server) =
        handshake(client_config(&key(2), key(9).public()), server_config(&key(1), Arc::new(|_| true))).await;
    let cause = client.unwrap_err();
    assert_eq!(
        cause,
        HandshakeFailure::WrongRelayKey { expected: key(9).public().into(), offered: key(1).public() }
    );
    let text = cause.to_string();
    assert!(text.contains(&key(9).public().to_string()) && text.contains(&key(1).public().to_string()));
    assert!(matches!(server, Err(HandshakeFailure::Protocol(_))), "{server:?}");
}

#[tokio::test]
async fn a_relay_changes_its_key_while_it_serves_and_a_client_that_knows_accepts_both() {
    let server = server_config(&key(1), Arc::new(|_| true));
    let informed =
        || client_config(&key(2), RelayKeys { current: key(1).public(), next: Some(key(3).public()) });
    for now in [1, 3] {
        server.set_key(&key(now));
        let (client, _) = handshake(informed(), server.clone()).await;
        assert_eq!(peer_key(client.unwrap().get_ref().1), Some(key(now).public()));
    }
    let (client, _) = handshake(client_config(&key(2), key(1).public()), server.clone()).await;
    assert!(matches!(client, Err(HandshakeFailure::WrongRelayKey { .. })), "{client:?}");
    server.set_key(&key(4));
    let (client, _) = handshake(informed(), server).await;
    assert!(client.unwrap_err().to_string().contains(&format!("{} or {}", key(1).public(), key(3).public())));
}

#[tokio::test]
async fn a_new_key_is_proved_for_one_connection_and_one_old_key() {
    let server = server_config(&key(1), Arc::new(|_| false));
    let connected = async || {
        let (client, accepted) = handshake(enrolment_config(&key(2), key(1).public()), server.clone()).await;
        (client.unwrap(), accepted.unwrap())
    };
    let (client, (accepted, old)) = connected().await;
    let change = key_rotation::prove(&client, &old, &key(5)).unwrap();
    assert_eq!(key_rotation::verify(&accepted, &old, &change), Some(key(5).public()));
    assert_eq!(key_rotation::verify(&accepted, &key(6).public(), &change), None, "another old key");
    let other = KeyChange { new_key: *key(6).public().as_bytes(), ..change };
    assert_eq!(key_rotation::verify(&accepted, &old, &other), None, "another new key");
    let (_, (later, _)) = connected().await;
    assert_eq!(key_rotation::verify(&later, &old, &change), None, "another connection");
}

#[tokio::test]
async fn a_client_without_a_key_or_the_protocol_is_refused() {
    let server = server_config(&key(1), Arc::new(|_| true));
    let mut other = (*client_config(&key(2), key(1).public())).clone();
    other.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (_, refused) = handshake(Arc::new(other.clone()), server.clone()).await;
    assert!(matches!(refused, Err(HandshakeFailure::Protocol(_))), "{refused:?}");
    other.alpn_protocols.clear();
    let (_, refused) = handshake(Arc::new(other), server.clone()).await;
    assert!(matches!(refused, Err(HandshakeFailure::Protocol(_))), "{refused:?}");
    let provider = provider();
    let anonymous = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedRelayVerifier::new(
            key(1).public().into(),
            &provider,
        )))
        .with_no_client_auth();
    let (_, refused) = handshake(Arc::new(anonymous), server).await;
    assert!(matches!(refused, Err(HandshakeFailure::Protocol(_))), "{refused:?}");
}

/// Tests that a ClientHello of 64 KiB, which rustls would buffer, is cut off.
#[tokio::test]
async fn a_handshake_that_is_too_long_is_cut_off() {
    let server = server_config(&key(1), Arc::new(|_| true));
    let (mut near, far) = sockets().await;
    let length: u32 = 65_000;
    let mut flight = Vec::new();
    let hello = [&[1][..], &length.to_be_bytes()[1..], &vec![0; length as usize]].concat();
    for part in hello.chunks(16_000) {
        flight.extend_from_slice(&[22, 3, 1]);
        flight.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
        flight.extend_from_slice(part);
    }
    let stranger = tokio::spawn(async move {
        // The relay may disconnect during the write.
        let _ = near.write_all(&flight).await;
        let _ = near.read(&mut [0; 1]).await;
    });
    let refused = accept(&server, far, SOON).await.map(|(_, key)| key);
    assert_eq!(refused, Err(HandshakeFailure::Oversized));
    stranger.await.unwrap();
}

/// Tests that data which a client sends together with the end of its handshake does not count
/// towards the limit on handshake bytes.
#[tokio::test]
async fn data_right_after_the_handshake_is_not_limited() {
    const LENGTH: usize = 1_000_000;
    let (mut near, far) = sockets().await;
    let config = client_config(&key(2), key(1).public());
    let server = server_config(&key(1), Arc::new(|_| true));
    let client = async move {
        let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
        let mut tls = rustls::ClientConnection::new(config, name).unwrap();
        tls.set_buffer_limit(None);
        let mut flight = Vec::new();
        tls.write_tls(&mut flight).unwrap();
        near.write_all(&flight).await.unwrap();
        while tls.is_handshaking() {
            let mut piece = [0; 4096];
            let length = near.read(&mut piece).await.unwrap();
            tls.read_tls(&mut &piece[..length]).unwrap();
            tls.process_new_packets().unwrap();
        }
        io::Write::write_all(&mut tls.writer(), &[5; LENGTH]).unwrap();
        flight.clear();
        while tls.wants_write() {
            tls.write_tls(&mut flight).unwrap();
        }
        near.write_all(&flight).await.unwrap();
        near
    };
    let relay = async {
        let (mut stream, _) = accept(&server, far, SOON).await.unwrap();
        let mut got = vec![0; LENGTH];
        stream.read_exact(&mut got).await.unwrap();
        assert!(got == [5; LENGTH]);
    };
    tokio::join!(client, relay);
}

#[tokio::test]
async fn a_network_error_is_distinguished_from_a_refusal() {
    let (near, far) = sockets().await;
    drop(far);
    let config = client_config(&key(2), key(1).public());
    let cause = connect(&config, near, SOON).await.unwrap_err();
    assert!(matches!(cause, HandshakeFailure::Network(_)), "{cause:?}");
    let (near, _silent) = sockets().await;
    let cause = connect(&config, near, Duration::from_millis(20)).await.unwrap_err();
    assert!(matches!(&cause, HandshakeFailure::Network(text) if text.contains("20ms")), "{cause:?}");
}
