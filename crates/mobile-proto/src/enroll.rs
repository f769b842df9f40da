//! Enrolment: a client's new key is authorised with the token of an invitation, or by the client's
//! present key.
//!
//! Enrolment is one request and one reply. They are sent over a connection of their own with their
//! own ALPN name, so that none of these messages can appear on a path.

use std::fmt;

use zeroize::Zeroizing;

use crate::ProtocolError;
use crate::frame::{self, Decoded, PayloadReader};

/// The ALPN name of enrolment, beside [`ALPN`](crate::ALPN) for paths.
pub const ENROLL_ALPN: &[u8] = b"mobile-enroll/1";
/// Length of a token in bytes, enough that it cannot be guessed.
pub const TOKEN_LEN: usize = 16;
/// Maximum payload of an enrolment message in bytes. The longest one in use is a client's name of
/// 63 bytes.
const MAX_PAYLOAD: usize = 256;

/// Message type, sent by the client: the token of an invitation.
const ENROLL: u8 = 0x20;
/// Message type, sent by the client: the key that is to replace the one it proved.
const CHANGE_KEY: u8 = 0x23;
/// Message type, sent by the relay: the key is enrolled as a client.
const ENROLLED: u8 = 0x21;
/// Message type, sent by the relay: the key is not enrolled, for the reason given.
const REFUSED: u8 = 0x22;

/// The secret of an invitation, which admits one key, once.
///
/// `Debug` does not print the secret, and its memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<[u8; TOKEN_LEN]>);

impl Token {
    /// Creates a token from its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; TOKEN_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Returns the bytes of the token.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; TOKEN_LEN] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// A client's request on an enrolment connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolmentRequest {
    /// Makes the proved key a client, by an invitation's token.
    Enroll(Token),
    /// Replaces the proved key, which is a client's, by another one.
    ChangeKey(KeyChange),
}

/// The key that is to replace a client's present one, with the proof that the client holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The new Ed25519 public key.
    pub new_key: [u8; 32],
    /// The signature by the new key, over data that only the two ends of this connection know.
    pub signature: [u8; 64],
}

/// The relay's reply to an enrolment request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolmentReply {
    /// The key is enrolled under this name.
    Enrolled(String),
    /// The key is not enrolled.
    Refused(EnrolmentRefusal),
}

/// The reason why a key was not enrolled, sent as one byte. A code that only a later version
/// defines is kept as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnrolmentRefusal {
    /// No invitation has this token: it was withdrawn, or it never existed.
    Unknown,
    /// The invitation has expired.
    Expired,
    /// Another key has already redeemed the token.
    Used,
    /// The key is already a client under another name.
    KeyTaken,
    /// The relay's address pool is exhausted.
    NoAddress,
    /// The relay failed for an internal reason, which its log states.
    Failed,
    /// The relay could not parse the request.
    Malformed,
    /// The proved key, which was to be replaced, is no client's.
    NotAClient,
    /// A code that this version does not know.
    Other(u8),
}

impl EnrolmentRefusal {
    /// Returns the code as a byte for the wire.
    #[must_use]
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Unknown => 1,
            Self::Expired => 2,
            Self::Used => 3,
            Self::KeyTaken => 4,
            Self::NoAddress => 5,
            Self::Failed => 6,
            Self::Malformed => 7,
            Self::NotAClient => 8,
            Self::Other(code) => code,
        }
    }

    /// Returns the code for a byte from the wire.
    #[must_use]
    pub fn from_wire(code: u8) -> Self {
        match code {
            1 => Self::Unknown,
            2 => Self::Expired,
            3 => Self::Used,
            4 => Self::KeyTaken,
            5 => Self::NoAddress,
            6 => Self::Failed,
            7 => Self::Malformed,
            8 => Self::NotAClient,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for EnrolmentRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("the relay knows no such invitation: it was withdrawn or replaced"),
            Self::Expired => f.write_str("the invitation has expired by the relay's clock"),
            Self::Used => f.write_str("another key has already used the invitation"),
            Self::KeyTaken => f.write_str("this key is already a client of the relay under another name"),
            Self::NoAddress => f.write_str("the relay's address pool is exhausted"),
            Self::Failed => f.write_str("the relay failed to enrol the key; its log has the cause"),
            Self::Malformed => f.write_str("the relay could not parse the request"),
            Self::NotAClient => {
                f.write_str("this host's key is not a client of the relay: it was revoked, or never enrolled")
            }
            Self::Other(code) => write!(f, "refused with unknown code {code}"),
        }
    }
}

/// Returns the client's request as bytes, which are as secret as the token.
#[must_use]
pub fn encode_request(request: &EnrolmentRequest) -> Zeroizing<Vec<u8>> {
    // Large enough that the buffer is never reallocated, which would leave a copy of the token
    // behind.
    let mut out = Zeroizing::new(Vec::with_capacity(128));
    match request {
        EnrolmentRequest::Enroll(token) => frame::put(&mut out, ENROLL, token.as_bytes()),
        EnrolmentRequest::ChangeKey(KeyChange { new_key, signature }) => {
            frame::put(&mut out, CHANGE_KEY, &[&new_key[..], signature].concat());
        }
    }
    out
}

/// Reads the client's request from all bytes received so far. Returns `None` while it is
/// incomplete.
///
/// # Errors
/// If the bytes cannot become a valid request, as soon as this is certain; 259 bytes are always
/// enough.
pub fn read_request(bytes: &[u8]) -> Result<Option<EnrolmentRequest>, ProtocolError> {
    // Bytes after the known ones belong to a later version.
    Ok(match message(bytes, &[ENROLL, CHANGE_KEY])? {
        None => None,
        Some((ENROLL, payload)) => {
            let token = PayloadReader::new("ENROLL", payload).array()?;
            Some(EnrolmentRequest::Enroll(Token::from_bytes(token)))
        }
        Some((_, payload)) => {
            let mut reader = PayloadReader::new("CHANGE_KEY", payload);
            let (new_key, signature) = (reader.array()?, reader.array()?);
            Some(EnrolmentRequest::ChangeKey(KeyChange { new_key, signature }))
        }
    })
}

/// Returns the relay's reply as bytes.
#[must_use]
pub fn encode_reply(reply: &EnrolmentReply) -> Vec<u8> {
    let mut out = Vec::new();
    match reply {
        EnrolmentReply::Enrolled(name) => frame::put(&mut out, ENROLLED, name.as_bytes()),
        EnrolmentReply::Refused(why) => frame::put(&mut out, REFUSED, &[why.to_wire()]),
    }
    out
}

/// Reads the relay's reply from all bytes received so far. Returns `None` while it is incomplete.
///
/// # Errors
/// If the bytes cannot become a valid reply, as soon as this is certain; 259 bytes are always
/// enough.
pub fn read_reply(bytes: &[u8]) -> Result<Option<EnrolmentReply>, ProtocolError> {
    match message(bytes, &[ENROLLED, REFUSED])? {
        None => Ok(None),
        Some((ENROLLED, payload)) => match std::str::from_utf8(payload) {
            Ok(name) if !name.chars().any(char::is_control) => {
                Ok(Some(EnrolmentReply::Enrolled(name.to_owned())))
            }
            _ => Err(ProtocolError::Malformed { frame: "ENROLLED", what: "the name is not plain text" }),
        },
        Some((_, payload)) => {
            let [code] = PayloadReader::new("REFUSED", payload).array()?;
            Ok(Some(EnrolmentReply::Refused(EnrolmentRefusal::from_wire(code))))
        }
    }
}

fn message<'a>(bytes: &'a [u8], wanted: &[u8]) -> Result<Option<(u8, &'a [u8])>, ProtocolError> {
    let max =
        |kind| if wanted.contains(&kind) { Ok(MAX_PAYLOAD) } else { Err(ProtocolError::UnknownFrame(kind)) };
    match frame::decode_bounded(bytes, max)? {
        Decoded::Frame { kind, payload, .. } => Ok(Some((kind, payload))),
        Decoded::Incomplete { .. } => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret() -> Token {
        Token::from_bytes([0x5a; TOKEN_LEN])
    }

    #[test]
    fn both_messages_are_read_from_any_pieces() {
        let change = KeyChange { new_key: [1; 32], signature: [2; 64] };
        for request in [EnrolmentRequest::Enroll(secret()), EnrolmentRequest::ChangeKey(change)] {
            let wire = encode_request(&request);
            for cut in 0..wire.len() {
                assert_eq!(read_request(&wire[..cut]), Ok(None), "{cut}");
            }
            assert_eq!(read_request(&wire), Ok(Some(request)));
        }
        for reply in
            [EnrolmentReply::Enrolled("laptop".into()), EnrolmentReply::Refused(EnrolmentRefusal::Expired)]
        {
            let wire = encode_reply(&reply);
            for cut in 0..wire.len() {
                assert_eq!(read_reply(&wire[..cut]), Ok(None), "{cut}");
            }
            assert_eq!(read_reply(&wire), Ok(Some(reply)));
        }
    }

    #[test]
    fn every_code_survives_a_round_trip() {
        for code in 0..=u8::MAX {
            assert_eq!(EnrolmentRefusal::from_wire(code).to_wire(), code);
        }
    }

    #[test]
    fn other_messages_are_refused_at_their_first_bytes() {
        assert!(read_request(b"GET / HTTP/1.1").is_err());
        assert!(read_request(&[frame::HELLO]).is_err(), "a path is opened elsewhere");
        assert!(read_request(&[ENROLL, 0x41, 0x01]).is_err(), "257 bytes");
        assert!(read_request(&[ENROLL, 3, 1, 2, 3]).is_err(), "a short token");
        assert!(read_request(&[&[CHANGE_KEY, 32][..], &[1; 32]].concat()).is_err(), "no signature");
        assert!(read_reply(&[ENROLLED, 2, b'a', b'\n']).is_err(), "it would be printed");
        assert!(read_reply(&[REFUSED, 0]).is_err());
        let mut later = Vec::new();
        frame::put(&mut later, ENROLL, &[&secret().0[..], b"more"].concat());
        assert_eq!(read_request(&later), Ok(Some(EnrolmentRequest::Enroll(secret()))));
    }

    #[test]
    fn a_token_is_not_printed() {
        assert_eq!(format!("{:?}", secret()), "Token");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_request(&bytes);
            let _ = read_reply(&bytes);
        }
    }
}
