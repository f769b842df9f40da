//! Fuzzes invitations: a pasted text, and an invitation made of the same bytes, whose checksum is
//! valid.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mobile_proto::enroll::{TOKEN_LEN, Token};
use mobile_transport::invitation::{Invitation, is_endpoint};
use mobile_transport::keys::{KEY_LEN, PublicKey, RelayKeys};

fuzz_target!(init: mobile_fuzz::seeds(seeds), |data: &[u8]| {
    let text = mobile_fuzz::text(data);
    if let Ok(invitation) = text.parse::<Invitation>() {
        assert_eq!(invitation.to_string(), text.trim(), "an invitation has one text form");
    }
    let Some((key, rest)) = data.split_first_chunk::<KEY_LEN>() else { return };
    let Some((token, rest)) = rest.split_first_chunk::<TOKEN_LEN>() else { return };
    let made = invitation(*key, *token, &mobile_fuzz::text(rest));
    let read = made.to_string().parse::<Invitation>();
    assert_eq!(read.as_ref().ok(), is_endpoint(&made.endpoint).then_some(&made), "{:?}", made.endpoint);
});

fn invitation(key: [u8; KEY_LEN], token: [u8; TOKEN_LEN], endpoint: &str) -> Invitation {
    // Half of the invitations name the relay's next key too.
    let next = (token[0].is_multiple_of(2)).then(|| PublicKey::from_bytes(key.map(|byte| !byte)));
    let (relay, token) = (RelayKeys { current: PublicKey::from_bytes(key), next }, Token::from_bytes(token));
    Invitation { endpoint: endpoint.to_owned(), relay, token }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for endpoint in
        ["relay.example.org:443", "192.0.2.1:8443", "[2001:db8::1]:443", "2001:db8::1:443", "relay:0"]
    {
        seeds.push(invitation([7; KEY_LEN], [0xab; TOKEN_LEN], endpoint).to_string().into_bytes());
        seeds.push(invitation([7; KEY_LEN], [0xac; TOKEN_LEN], endpoint).to_string().into_bytes());
        seeds.push([&[7; KEY_LEN][..], &[0xab; TOKEN_LEN], endpoint.as_bytes()].concat());
    }
    seeds
}
