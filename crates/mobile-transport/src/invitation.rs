//! Invitations: one line of text each, with which a laptop reaches and authenticates the relay, and
//! is enrolled once.
//!
//! A token is a secret: the relay stores only its hash, and neither `Debug` nor any error shows it.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mobile_proto::enroll::{TOKEN_LEN, Token};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::keys::{KEY_LEN, KeyError, PublicKey, RelayKeys};
pub use mobile_proto::is_endpoint;

/// The prefix of every invitation; another format would have another number.
const PREFIX: &str = "mobile-invite-1-";
/// The beginning of an invitation that also names the relay's next key, which earlier versions
/// cannot read.
const PREFIX_WITH_NEXT: &str = "mobile-invite-2-";
/// The length in bytes of the checksum that detects an incompletely pasted invitation: the first
/// bytes of the SHA-256 hash of the rest of the invitation.
const CHECK_LEN: usize = 4;

/// The data that a laptop needs to become a client of the relay.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The relay's address as `host:port`.
    pub endpoint: String,
    /// The relay's public key, and the one that is about to replace it.
    pub relay: RelayKeys,
    /// The secret that permits one enrolment.
    pub token: Token,
}

/// The SHA-256 hash of a token, which is all that the relay stores of it.
///
/// A token has 128 random bits, so neither a salt nor a slow hash is needed. Looking a token up by
/// its hash reveals nothing through the time it takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

/// The reason why a text is not a valid invitation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseInvitationError {
    /// The text does not begin with the prefix of an invitation.
    #[error("not an invitation: copy the line that `home-relay invite` printed, which begins with {PREFIX}")]
    Foreign,
    /// The text is incomplete or was altered.
    #[error("the invitation is incomplete or altered: copy the whole line that `home-relay invite` printed")]
    Damaged,
}

/// Creates a new token from the system's random number generator.
///
/// # Errors
/// When the system provides no random bytes.
pub fn new_token() -> Result<Token, KeyError> {
    let mut bytes = Zeroizing::new([0; TOKEN_LEN]);
    SystemRandom::new().fill(&mut *bytes).map_err(|_| KeyError::NoRandomness)?;
    Ok(Token::from_bytes(*bytes))
}

impl TokenHash {
    /// Returns the hash of `token`.
    #[must_use]
    pub fn of(token: &Token) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        Self(hash)
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({self})")
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(deserializer)?).map_err(de::Error::custom)?;
        bytes.try_into().map(Self).map_err(|_| de::Error::custom("a token's hash is 32 bytes"))
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RelayKeys { current, next } = &self.relay;
        let (prefix, next) =
            next.as_ref().map_or((PREFIX, &[][..]), |next| (PREFIX_WITH_NEXT, &next.as_bytes()[..]));
        let parts = [&current.as_bytes()[..], next, self.token.as_bytes(), self.endpoint.as_bytes()];
        let bytes = Zeroizing::new(parts.concat());
        let whole = Zeroizing::new([&bytes[..], &check(&bytes)].concat());
        write!(f, "{prefix}{}", *Zeroizing::new(URL_SAFE_NO_PAD.encode(&whole[..])))
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation(to {} at {})", self.relay, self.endpoint)
    }
}

impl FromStr for Invitation {
    type Err = ParseInvitationError;

    fn from_str(text: &str) -> Result<Self, ParseInvitationError> {
        let damaged = ParseInvitationError::Damaged;
        let text = text.trim();
        let (has_next, encoded) = match text.strip_prefix(PREFIX_WITH_NEXT) {
            Some(encoded) => (true, encoded),
            None => (false, text.strip_prefix(PREFIX).ok_or(ParseInvitationError::Foreign)?),
        };
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| damaged.clone())?);
        let (bytes, found) = bytes.split_last_chunk::<CHECK_LEN>().ok_or(damaged.clone())?;
        if check(bytes) != *found {
            return Err(damaged);
        }
        let (current, mut bytes) = bytes.split_first_chunk::<KEY_LEN>().ok_or(damaged.clone())?;
        let mut relay = RelayKeys::from(PublicKey::from_bytes(*current));
        if has_next {
            let (next, rest) = bytes.split_first_chunk::<KEY_LEN>().ok_or(damaged.clone())?;
            relay.next = Some(PublicKey::from_bytes(*next));
            bytes = rest;
        }
        let (token, endpoint) = bytes.split_first_chunk::<TOKEN_LEN>().ok_or(damaged.clone())?;
        let endpoint = std::str::from_utf8(endpoint).ok().filter(|text| is_endpoint(text)).ok_or(damaged)?;
        Ok(Self { endpoint: endpoint.to_owned(), relay, token: Token::from_bytes(*token) })
    }
}

fn check(bytes: &[u8]) -> [u8; CHECK_LEN] {
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&digest(&SHA256, bytes).as_ref()[..CHECK_LEN]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invitation(endpoint: &str) -> Invitation {
        let token = Token::from_bytes([0xab; TOKEN_LEN]);
        Invitation { endpoint: endpoint.into(), relay: PublicKey::from_bytes([7; KEY_LEN]).into(), token }
    }

    #[test]
    fn an_invitation_is_one_line_without_shell_metacharacters() {
        for endpoint in ["relay.example.org:443", "192.0.2.1:8443", "[2001:db8::1]:443"] {
            let text = invitation(endpoint).to_string();
            assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'), "{text}");
            assert_eq!(format!(" {text}\n").parse(), Ok(invitation(endpoint)));
        }
    }

    #[test]
    fn an_invitation_may_name_the_next_key_too() {
        let mut both = invitation("relay.example.org:443");
        both.relay.next = Some(PublicKey::from_bytes([8; KEY_LEN]));
        let text = both.to_string();
        assert!(text.starts_with(PREFIX_WITH_NEXT), "{text}");
        assert_eq!(text.parse(), Ok(both));
        let one = text.replacen(PREFIX_WITH_NEXT, PREFIX, 1);
        assert_eq!(one.parse::<Invitation>(), Err(ParseInvitationError::Damaged), "no endpoint begins so");
    }

    #[test]
    fn a_damaged_invitation_is_detected() {
        let text = invitation("relay.example.org:443").to_string();
        for end in PREFIX.len()..text.len() {
            assert_eq!(text[..end].parse::<Invitation>(), Err(ParseInvitationError::Damaged), "{end}");
            let mut other = text.clone().into_bytes();
            other[end] = if other[end] == b'A' { b'B' } else { b'A' };
            assert!(String::from_utf8(other).unwrap().parse::<Invitation>().is_err(), "{end}");
        }
        assert_eq!("hello".parse::<Invitation>(), Err(ParseInvitationError::Foreign));
        for endpoint in ["relay", "relay:0", "2001:db8::1:443", ":443", "a b:1", "a\n:1", "\"x:1"] {
            assert!(invitation(endpoint).to_string().parse::<Invitation>().is_err(), "{endpoint:?}");
        }
    }

    #[test]
    fn debug_output_hides_the_token_and_tokens_differ() {
        let token = new_token().unwrap();
        assert_ne!(token.as_bytes(), new_token().unwrap().as_bytes());
        let shown = format!("{:?}", Invitation { token: token.clone(), ..invitation("relay:1") });
        assert_eq!(shown, format!("{:?}", invitation("relay:1")));
        let hash = TokenHash::of(&token);
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(serde_json::from_str::<TokenHash>(&json).unwrap(), hash);
    }
}
