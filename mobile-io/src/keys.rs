//! Identities: Ed25519 keys, base64 text, one format for both programs.
//!
//! An identity is a key, as in ssh and WireGuard. Public keys travel in configurations and on command lines;
//! private ones stay in a file that nobody but its owner may read.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::ownership;

/// Bytes of an Ed25519 seed, and of a public key.
pub const KEY_LEN: usize = 32;

/// A private key: the 32-byte Ed25519 seed.
///
/// `Debug` shows only the public key, so that the private one cannot leak into a log. When the key
/// is dropped, its memory is overwritten, as is every text and buffer that is made of it here.
#[derive(Clone)]
pub struct PrivateKey {
    seed: Zeroizing<[u8; KEY_LEN]>,
    public: PublicKey,
}

/// A public key: who a peer is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is not there.
    #[error("no key at {path}: make one with `{hint}`")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// The command that makes one.
        hint: &'static str,
    },
    /// The file is there, and would be overwritten.
    #[error("{0} exists already: a key is never overwritten; remove it first if nobody relies on it")]
    Exists(PathBuf),
    /// Somebody else than the owner may read the file.
    #[error("{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file cannot be read or written.
    #[error("cannot use key file {path}: run as root, and see that its directory is there")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file does not hold a key.
    #[error("{path} holds no private key")]
    NotAKey {
        /// The key file.
        path: PathBuf,
        /// What is wrong with the text.
        source: ParseKeyError,
    },
    /// The system gave no randomness.
    #[error("the system gave no random bytes for a new key")]
    NoRandomness,
}

/// Why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// It is not base64.
    #[error("a key is 44 characters of base64, and this is not base64")]
    NotBase64,
    /// It is base64 of something else.
    #[error("a key is 32 bytes in base64 (44 characters), and this holds {0} bytes")]
    WrongLength(usize),
}

impl PrivateKey {
    /// Makes a new key from the system's randomness.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; KEY_LEN]);
        SystemRandom::new().fill(&mut *seed).map_err(|_| KeyError::NoRandomness)?;
        Ok(Self::of(seed))
    }

    /// The key of this seed: every 32 bytes are one.
    #[must_use]
    pub fn from_seed(seed: [u8; KEY_LEN]) -> Self {
        Self::of(Zeroizing::new(seed))
    }

    fn of(seed: Zeroizing<[u8; KEY_LEN]>) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).expect("any 32 bytes are an Ed25519 seed");
        let mut public = [0; KEY_LEN];
        public.copy_from_slice(pair.public_key().as_ref());
        Self { seed, public: PublicKey(public) }
    }

    /// Reads a key file, and refuses one that others can read.
    ///
    /// # Errors
    /// When the file is missing, exposed, unreadable, or holds no key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io_error = |source| KeyError::Io { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                KeyError::Missing { path: path.to_owned(), hint: "mobile keygen` or `home-relay init" }
            }
            _ => io_error(source),
        })?;
        let mode = file.metadata().map_err(io_error)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        // A key is 44 characters: whatever is much longer is another file, and is not read whole.
        let mut text = Zeroizing::new(String::with_capacity(1024));
        io::Read::read_to_string(&mut io::Read::take(file, 1024), &mut text).map_err(io_error)?;
        text.trim().parse().map_err(|source| KeyError::NotAKey { path: path.to_owned(), source })
    }

    /// Writes the key to a new file of mode 0600, owned like its folder; never overwrites.
    ///
    /// # Errors
    /// When the file exists, or cannot be written (then nothing is left of it).
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
            // Half a key is worse than none; the first error is the one to report.
            let _ = fs::remove_file(path);
            KeyError::Io { path: path.to_owned(), source }
        })
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The text of the key, as in its file. It is a secret.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.seed))
    }

    /// The key in PKCS#8, as TLS wants it.
    pub(crate) fn to_pkcs8(&self) -> Vec<u8> {
        // RFC 8410, section 7: SEQUENCE { INTEGER 0, SEQUENCE { OID 1.3.101.112 }, OCTET STRING { OCTET STRING seed } }.
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

/// RFC 8410, section 4: what precedes the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl PublicKey {
    /// A key from its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The SubjectPublicKeyInfo, which is what TLS carries (RFC 7250).
    pub(crate) fn to_spki(self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }

    /// The key of a SubjectPublicKeyInfo, if it is an Ed25519 one.
    pub(crate) fn from_spki(spki: &[u8]) -> Option<Self> {
        spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(Self)
    }
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
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| ParseKeyError::NotBase64)?);
    bytes[..].try_into().map_err(|_| ParseKeyError::WrongLength(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_key_loads_as_the_same_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = PrivateKey::generate().unwrap();
        key.save_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(PrivateKey::load(&path).unwrap().public(), key.public());
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = PrivateKey::generate().unwrap();
        first.save_new(&path).unwrap();
        let refused = PrivateKey::generate().unwrap().save_new(&path);
        assert!(matches!(refused, Err(KeyError::Exists(p)) if p == path));
        assert_eq!(PrivateKey::load(&path).unwrap().public(), first.public());
    }

    #[test]
    fn an_exposed_missing_or_mangled_key_is_named_with_the_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(PrivateKey::load(&path).unwrap_err().to_string().contains("mobile keygen"));
        PrivateKey::generate().unwrap().save_new(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = PrivateKey::load(&path).unwrap_err().to_string();
        assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "aGVsbG8=\n").unwrap();
        let error = PrivateKey::load(&path).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            error.to_string().contains("no private key") && cause.contains("holds 5 bytes"),
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
        assert_eq!("%%".parse::<PublicKey>(), Err(ParseKeyError::NotBase64));
    }
}
