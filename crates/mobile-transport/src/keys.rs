//! Ed25519 keys in base64, which identify the relay and its clients.
//!
//! An identity is a key, as in SSH and WireGuard. Public keys appear in configurations and on
//! command lines. A private key stays in a file that only its owner can read.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mobile_host::ownership;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// The length of an Ed25519 seed, and of a public key, in bytes.
pub const KEY_LEN: usize = 32;

/// The length of a key in base64, in characters.
const KEY_CHARACTERS: usize = KEY_LEN.div_ceil(3) * 4;

/// A private key: the 32-byte Ed25519 seed.
///
/// `Debug` shows only the public key, so that the private key cannot leak into a log. The memory of
/// the key, and of every text and buffer made from it here, is overwritten when dropped.
#[derive(Clone)]
pub struct PrivateKey {
    seed: Zeroizing<[u8; KEY_LEN]>,
    public: PublicKey,
}

/// A public key, which identifies a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

/// The reason why a key cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key file does not exist.
    #[error("no key at {path}: {next_step}")]
    Missing {
        /// The expected path of the key file.
        path: PathBuf,
        /// How the user of this program gets a key.
        next_step: String,
    },
    /// The key file exists and would have to be overwritten.
    #[error("{0} exists already and is never overwritten: remove it first if its key is no longer used")]
    Exists(PathBuf),
    /// Users other than the owner may read the key file.
    #[error("{path} can be read by other users (mode {mode:04o}): run `chmod 600 {path}`")]
    Exposed {
        /// The path of the key file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The key file cannot be read or written.
    #[error("cannot read or write key file {path}: run as root, and check that its directory exists")]
    Io {
        /// The path of the key file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The file does not contain a valid key.
    #[error("{path} does not contain a private key")]
    NotAKey {
        /// The path of the key file.
        path: PathBuf,
        /// The reason why the text is not a key.
        source: ParseKeyError,
    },
    /// The system provided no random bytes.
    #[error("the system provided no random bytes for a new key")]
    NoRandomness,
}

/// The reason why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// The text has the given number of characters, which is not that of a key.
    #[error("a key is 44 characters of base64, this text has {0}")]
    WrongLength(usize),
    /// The text has the length of a key, but is not base64.
    #[error("a key is 44 characters of base64 (A-Z, a-z, 0-9, + and /, one = at the end), this text is not")]
    NotBase64,
}

impl PrivateKey {
    /// Generates a new key from the system's random number generator.
    ///
    /// # Errors
    /// When the system provides no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; KEY_LEN]);
        SystemRandom::new().fill(&mut *seed).map_err(|_| KeyError::NoRandomness)?;
        Ok(Self::of(seed))
    }

    /// Creates the key with the given seed; any 32 bytes are valid.
    #[must_use]
    pub fn from_seed(seed: [u8; KEY_LEN]) -> Self {
        Self::of(Zeroizing::new(seed))
    }

    fn of(seed: Zeroizing<[u8; KEY_LEN]>) -> Self {
        let mut public = [0; KEY_LEN];
        public.copy_from_slice(key_pair(&seed).public_key().as_ref());
        Self { seed, public: PublicKey(public) }
    }

    /// Loads a key file, unless other users can read it. `next_step` completes the error for a
    /// missing file, such as "make one with `keygen`".
    ///
    /// # Errors
    /// When the file is missing, readable by others, unreadable, or not a key.
    pub fn load(path: &Path, next_step: &str) -> Result<Self, KeyError> {
        let io_error = |source| KeyError::Io { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                KeyError::Missing { path: path.to_owned(), next_step: next_step.to_owned() }
            }
            _ => io_error(source),
        })?;
        let mode = file.metadata().map_err(io_error)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        // A key has 44 characters, so do not read all of a much longer file.
        let mut text = Zeroizing::new(String::with_capacity(1024));
        io::Read::read_to_string(&mut io::Read::take(file, 1024), &mut text).map_err(io_error)?;
        text.trim().parse().map_err(|source| KeyError::NotAKey { path: path.to_owned(), source })
    }

    /// Saves the key to a new file with mode 0600 and the owner of its directory; never overwrites
    /// a file.
    ///
    /// # Errors
    /// When the file exists (it is left alone), or when writing fails (the incomplete new file is
    /// removed).
    pub fn save_new(&self, path: &Path) -> Result<(), KeyError> {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|source| {
                match source.kind() {
                    io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
                    _ => KeyError::Io { path: path.to_owned(), source },
                }
            })?;
        let written = writeln!(file, "{}", *self.to_base64())
            .and_then(|()| ownership::inherit_from_directory(&file, path))
            .and_then(|()| file.sync_all());
        written.map_err(|source| {
            // Remove the incomplete key, and report the first error.
            let _ = fs::remove_file(path);
            KeyError::Io { path: path.to_owned(), source }
        })
    }

    /// Returns the public key that belongs to this key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Returns the signature of `message` by this key.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(key_pair(&self.seed).sign(message).as_ref());
        signature
    }

    /// Returns the private key in base64, as stored in its file.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.seed))
    }

    /// Returns the key in PKCS#8, as rustls expects it.
    pub(crate) fn to_pkcs8(&self) -> Vec<u8> {
        // RFC 8410, section 7: SEQUENCE { INTEGER 0, SEQUENCE { OID 1.3.101.112 }, OCTET STRING {
        // OCTET STRING seed } }.
        const PREFIX: [u8; 16] =
            [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        [&PREFIX[..], &self.seed[..]].concat()
    }
}

impl FromStr for PrivateKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        decode(text).map(Zeroizing::new).map(Self::of)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public)
    }
}

/// The bytes before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl PublicKey {
    /// Creates a key from its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Returns the SubjectPublicKeyInfo that TLS sends (RFC 7250).
    pub(crate) fn to_spki(self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }

    /// Parses a SubjectPublicKeyInfo; returns `None` unless it holds an Ed25519 key.
    pub(crate) fn from_spki(spki: &[u8]) -> Option<Self> {
        spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(Self)
    }

    /// Returns whether `signature` is one of `message` by this key.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

/// The keys by which a client recognises its relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayKeys {
    /// The relay's present key.
    pub current: PublicKey,
    /// The key that replaces it, once the relay has announced one.
    pub next: Option<PublicKey>,
}

impl RelayKeys {
    /// Returns whether a relay with this key is the one.
    #[must_use]
    pub fn accept(&self, key: &PublicKey) -> bool {
        self.current == *key || self.next == Some(*key)
    }
}

impl From<PublicKey> for RelayKeys {
    fn from(current: PublicKey) -> Self {
        Self { current, next: None }
    }
}

impl fmt::Display for RelayKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.current)?;
        self.next.map_or(Ok(()), |next| write!(f, " or {next}"))
    }
}

fn key_pair(seed: &[u8; KEY_LEN]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are an Ed25519 seed")
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        decode(text).map(Self)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn decode(text: &str) -> Result<[u8; KEY_LEN], ParseKeyError> {
    let text = text.trim();
    let characters = text.chars().count();
    if characters != KEY_CHARACTERS {
        return Err(ParseKeyError::WrongLength(characters));
    }
    let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| ParseKeyError::NotBase64)?);
    bytes[..].try_into().map_err(|_| ParseKeyError::NotBase64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT_STEP: &str = "make one";

    #[test]
    fn a_saved_key_loads_as_the_same_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = PrivateKey::generate().unwrap();
        key.save_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(PrivateKey::load(&path, NEXT_STEP).unwrap().public(), key.public());
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = PrivateKey::generate().unwrap();
        first.save_new(&path).unwrap();
        let refused = PrivateKey::generate().unwrap().save_new(&path);
        assert!(matches!(refused, Err(KeyError::Exists(p)) if p == path));
        assert_eq!(PrivateKey::load(&path, NEXT_STEP).unwrap().public(), first.public());
    }

    #[test]
    fn an_exposed_missing_or_mangled_key_is_named_with_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let missing = PrivateKey::load(&path, NEXT_STEP).unwrap_err().to_string();
        assert_eq!(missing, format!("no key at {}: make one", path.display()));
        PrivateKey::generate().unwrap().save_new(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = PrivateKey::load(&path, NEXT_STEP).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "aGVsbG8=\n").unwrap();
        let error = PrivateKey::load(&path, NEXT_STEP).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            error.to_string().contains("not contain a private key")
                && cause.contains("44 characters of base64, this text has 8"),
            "{error}: {cause}"
        );
    }

    #[test]
    fn the_public_key_is_the_one_of_rfc_8032() {
        // RFC 8032, section 7.1, test 1.
        let seed = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=".parse::<PrivateKey>().unwrap();
        assert_eq!(seed.public().to_string(), "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
        assert!(!format!("{seed:?}").contains("nWGx"), "a private key must not reach a log");
    }

    #[test]
    fn a_public_key_survives_text_json_and_spki() {
        let key = PrivateKey::generate().unwrap().public();
        assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
        assert_eq!(PublicKey::from_spki(&key.to_spki()), Some(key));
        assert_eq!(PublicKey::from_spki(&key.to_spki()[1..]), None);
        let text = key.to_string();
        assert_eq!(text[1..].parse::<PublicKey>(), Err(ParseKeyError::WrongLength(43)));
        for bad in ["%".repeat(44), text.replace('=', "A")] {
            assert_eq!(bad.parse::<PublicKey>(), Err(ParseKeyError::NotBase64));
        }
    }
}
