//! Enrolment: a key that nobody knows yet redeems an invitation's token. One question, one answer, on a connection of
//! its own with its own ALPN name, so that nothing of it can be said on a path.

use std::fmt;

use zeroize::Zeroizing;

use crate::ProtocolError;
use crate::frame::{self, Decoded, Reader};

/// The protocol's name in TLS, beside [`ALPN`](crate::ALPN).
pub const ENROLL_ALPN: &[u8] = b"mobile-enroll/1";
/// Bytes of a token: as many as nobody guesses.
pub const TOKEN_LEN: usize = 16;
/// The longest payload. The longest real one is a name of 63 bytes.
const MAX_PAYLOAD: usize = 256;

/// Client: here is the token.
const ENROLL: u8 = 0x20;
/// Relay: this key is a client from now on.
const ENROLLED: u8 = 0x21;
/// Relay: it is not, and why.
const REFUSED: u8 = 0x22;

/// The secret of an invitation, which admits one key, once. `Debug` does not show it, and its
/// memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<[u8; TOKEN_LEN]>);

impl Token {
    /// A token from its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; TOKEN_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes.
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

/// What the relay says to a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolmentReply {
    /// The key is a client now, under this name.
    Enrolled(String),
    /// It is not.
    Refused(EnrolmentRefusal),
}

/// Why a key was not enrolled: one byte on the wire. A code of a later version is kept as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnrolmentRefusal {
    /// No invitation has this token: it was withdrawn, or never was.
    Unknown,
    /// The invitation's time is over.
    Expired,
    /// The token was redeemed, by another key.
    Used,
    /// The key is a client already, under another name.
    KeyTaken,
    /// The relay has no address left to give.
    NoAddress,
    /// The relay could not do it for a reason of its own; its log says which.
    Failed,
    /// The relay could not read the question.
    Malformed,
    /// A code that this version does not know.
    Other(u8),
}

impl EnrolmentRefusal {
    /// The byte on the wire.
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
            Self::Other(code) => code,
        }
    }

    /// The meaning of a byte from the wire.
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
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for EnrolmentRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("the relay knows no such invitation: it was withdrawn or replaced"),
            Self::Expired => f.write_str("the invitation has expired"),
            Self::Used => f.write_str("the invitation was used already, by another key"),
            Self::KeyTaken => f.write_str("this key is a client of the relay already, under another name"),
            Self::NoAddress => f.write_str("the relay's address pool is exhausted"),
            Self::Failed => f.write_str("the relay could not do it, and its log says why"),
            Self::Malformed => f.write_str("the relay could not read the request"),
            Self::Other(code) => write!(f, "refused with unknown code {code}"),
        }
    }
}

/// Returns the client's request as bytes, which are as secret as the token.
#[must_use]
pub fn encode_request(token: &Token) -> Zeroizing<Vec<u8>> {
    // Large enough that the buffer is never reallocated, which would leave a copy behind.
    let mut out = Zeroizing::new(Vec::with_capacity(TOKEN_LEN + 8));
    frame::put(&mut out, ENROLL, token.as_bytes());
    out
}

/// Reads the client's question from all that has come so far; `None` while it is not whole.
///
/// # Errors
/// As soon as it cannot become one; nothing beyond 259 bytes is ever needed.
pub fn read_request(bytes: &[u8]) -> Result<Option<Token>, ProtocolError> {
    let Some((ENROLL, payload)) = message(bytes, &[ENROLL])? else { return Ok(None) };
    // What follows the token is a later version's.
    Reader::new("ENROLL", payload).array().map(|token| Some(Token::from_bytes(token)))
}

/// The relay's answer, as bytes.
#[must_use]
pub fn encode_reply(reply: &EnrolmentReply) -> Vec<u8> {
    let mut out = Vec::new();
    match reply {
        EnrolmentReply::Enrolled(name) => frame::put(&mut out, ENROLLED, name.as_bytes()),
        EnrolmentReply::Refused(why) => frame::put(&mut out, REFUSED, &[why.to_wire()]),
    }
    out
}

/// Reads the relay's answer from all that has come so far; `None` while it is not whole.
///
/// # Errors
/// As soon as it cannot become one; nothing beyond 259 bytes is ever needed.
pub fn read_reply(bytes: &[u8]) -> Result<Option<EnrolmentReply>, ProtocolError> {
    match message(bytes, &[ENROLLED, REFUSED])? {
        None => Ok(None),
        Some((ENROLLED, payload)) => match std::str::from_utf8(payload) {
            Ok(name) if !name.chars().any(char::is_control) => {
                Ok(Some(EnrolmentReply::Enrolled(name.to_owned())))
            }
            _ => Err(ProtocolError::Malformed { frame: "ENROLLED", what: "its name is no plain text" }),
        },
        Some((_, payload)) => {
            let [code] = Reader::new("REFUSED", payload).array()?;
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
    fn both_messages_come_whole_whatever_the_pieces() {
        let wire = encode_request(&secret());
        for cut in 0..wire.len() {
            assert_eq!(read_request(&wire[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(read_request(&wire), Ok(Some(secret())));
        for said in
            [EnrolmentReply::Enrolled("laptop".into()), EnrolmentReply::Refused(EnrolmentRefusal::Expired)]
        {
            let wire = encode_reply(&said);
            for cut in 0..wire.len() {
                assert_eq!(read_reply(&wire[..cut]), Ok(None), "{cut}");
            }
            assert_eq!(read_reply(&wire), Ok(Some(said)));
        }
    }

    #[test]
    fn every_code_survives_the_round_trip() {
        for code in 0..=u8::MAX {
            assert_eq!(EnrolmentRefusal::from_wire(code).to_wire(), code);
        }
    }

    #[test]
    fn anything_else_is_refused_at_its_first_bytes() {
        assert!(read_request(b"GET / HTTP/1.1").is_err());
        assert!(read_request(&[frame::HELLO]).is_err(), "a path is opened elsewhere");
        assert!(read_request(&[ENROLL, 0x41, 0x01]).is_err(), "257 bytes");
        assert!(read_request(&[ENROLL, 3, 1, 2, 3]).is_err(), "a short token");
        assert!(read_reply(&[ENROLLED, 2, b'a', b'\n']).is_err(), "it would be printed");
        assert!(read_reply(&[REFUSED, 0]).is_err());
        let mut later = Vec::new();
        frame::put(&mut later, ENROLL, &[&secret().0[..], b"more"].concat());
        assert_eq!(read_request(&later), Ok(Some(secret())));
    }

    #[test]
    fn a_token_is_not_shown() {
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
