//! The backup of a relay: one JSON document with the configuration, the private keys and the
//! content of the database.
//!
//! [`Backup::encode`] and [`Backup::decode`] are the document; `restore` writes the files.

mod restore;

use mobile_transport::keys::{ParseKeyError, PrivateKey, PublicKey};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

pub(crate) use self::restore::Destination;
use crate::store::{Snapshot, StoreError};

/// The value of the field `format`, by which a backup is recognised.
const FORMAT: &str = "home-relay backup";
/// The version of the document. A field that an earlier version would ignore to the relay's harm
/// takes a new version.
const VERSION: u64 = 1;
/// The largest size of a backup, in bytes: some 500,000 clients.
pub(crate) const MAX_SIZE: u64 = 256 << 20;

/// The content of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Backup {
    /// The version of the program that made the backup.
    pub(crate) program: String,
    /// The time of the backup, in seconds since 1970.
    pub(crate) created: u64,
    /// The key by which clients know the relay.
    pub(crate) public_key: PublicKey,
    pub(crate) configuration: Configuration,
    pub(crate) private_keys: PrivateKeys,
    pub(crate) store: Snapshot,
}

/// The configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Configuration {
    /// The path of the file, for people; a restore does not use it.
    pub(crate) path: String,
    /// The permission bits of the file.
    pub(crate) mode: u32,
    pub(crate) text: String,
}

/// The private keys in base64, as their files have them. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PrivateKeys {
    /// The key in `[identity] private_key_file`.
    pub(crate) current: String,
    /// The key in the file with the suffix `.next`, which is about to replace the current one.
    pub(crate) next: Option<String>,
    /// The key in the file with the suffix `.old`, which the current one replaced.
    pub(crate) old: Option<String>,
}

impl std::fmt::Debug for PrivateKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKeys")
    }
}

/// The reason why a file is not used as a backup.
#[derive(Debug, Error)]
pub(crate) enum BackupError {
    /// The file ends in the middle of the document.
    #[error("it is cut off: copy it again, or use another backup")]
    Truncated,
    /// The file is another one.
    #[error("it is not a backup that `home-relay backup` made ({0})")]
    Foreign(String),
    /// The document has a later version.
    #[error(
        "it has version {0}, and this home-relay reads version {VERSION} only: install the version of home-relay that \
         made it"
    )]
    Newer(u64),
    /// The content is not what was backed up.
    #[error("it was changed or damaged since it was made (its checksum differs): use another copy")]
    Damaged,
    /// A private key cannot be parsed.
    #[error("its private key `{0}` is none")]
    Key(&'static str, #[source] ParseKeyError),
    /// The private key does not belong to the public key.
    #[error("its private key does not belong to its public key {0}: use another backup")]
    OtherKey(PublicKey),
    /// The content of the database is invalid.
    #[error("its store cannot be used")]
    Store(#[from] StoreError),
}

impl Backup {
    /// Returns the document.
    pub(crate) fn encode(&self) -> serde_json::Result<String> {
        let content = serde_json::to_value(self)?;
        let document = json!({
            "format": FORMAT,
            "version": VERSION,
            "warning": "This file holds the relay's private key: keep it as secret as the key.",
            "checksum": checksum(&content),
            "content": content,
        });
        Ok(format!("{}\n", serde_json::to_string_pretty(&document)?))
    }

    /// Parses a document, and checks its checksum, keys and store.
    pub(crate) fn decode(document: &[u8]) -> Result<Self, BackupError> {
        let mut document: Value = serde_json::from_slice(document).map_err(|error| {
            // An empty file is cut off too, and so is one that ends in the middle of a number.
            if error.is_eof() { BackupError::Truncated } else { BackupError::Foreign(error.to_string()) }
        })?;
        if document["format"] != FORMAT {
            return Err(BackupError::Foreign(format!("it has no `\"format\": \"{FORMAT}\"`")));
        }
        match document["version"].as_u64() {
            Some(VERSION) => {}
            Some(newer) if newer > VERSION => return Err(BackupError::Newer(newer)),
            _ => return Err(BackupError::Foreign("its version is none".to_owned())),
        }
        let content = document["content"].take();
        if document["checksum"] != checksum(&content).as_str() {
            return Err(BackupError::Damaged);
        }
        let backup: Self =
            serde_json::from_value(content).map_err(|error| BackupError::Foreign(error.to_string()))?;
        backup.check()?;
        Ok(backup)
    }

    fn check(&self) -> Result<(), BackupError> {
        let PrivateKeys { current, next, old } = &self.private_keys;
        for (name, key) in [("next", next), ("old", old)] {
            if let Some(Err(error)) = key.as_deref().map(str::parse::<PrivateKey>) {
                return Err(BackupError::Key(name, error));
            }
        }
        let current: PrivateKey = current.parse().map_err(|error| BackupError::Key("current", error))?;
        if current.public() != self.public_key {
            return Err(BackupError::OtherKey(self.public_key));
        }
        Ok(self.store.check()?)
    }
}

/// Returns the checksum of the content: SHA-256 of its compact JSON with sorted keys, as
/// `jq -cSj .content FILE | sha256sum` computes it.
fn checksum(content: &Value) -> String {
    let hash = digest(&SHA256, content.to_string().as_bytes());
    hash.as_ref().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests;
