//! The replacement of a private key: the next key's file beside the present one, and the proof by
//! which a client changes its key at the relay.
//!
//! A key file `KEY` is replaced in two steps, between which both keys exist: [`create_next`] writes
//! `KEY.next`, and [`adopt_next`] renames it over `KEY`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mobile_proto::enroll::KeyChange;

use crate::keys::{KeyError, PrivateKey, PublicKey};
use crate::tls::TlsStream;

/// The next step when there is no next key.
const NO_NEXT: &str = "begin the rotation first";

/// The label of the keying material that both ends of a connection derive (RFC 8446, section 7.5).
const LABEL: &[u8] = b"EXPORTER-mobile-change-key";

/// Returns the path of the next key of the key file `file`.
#[must_use]
pub fn next_path(file: &Path) -> PathBuf {
    with_suffix(file, ".next")
}

/// Returns the path at which [`adopt_next`] keeps the former key of the key file `file`.
#[must_use]
pub fn old_path(file: &Path) -> PathBuf {
    with_suffix(file, ".old")
}

/// Loads the next key of the key file `file`; `None` if there is none.
///
/// # Errors
/// When the file exists and is unreadable, readable by others, or not a key.
pub fn load_next(file: &Path) -> Result<Option<PrivateKey>, KeyError> {
    match PrivateKey::load(&next_path(file), NO_NEXT) {
        Ok(key) => Ok(Some(key)),
        Err(KeyError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the next key of the key file `file`, and creates it if there is none.
///
/// # Errors
/// When the key cannot be read, made or written.
pub fn create_next(file: &Path) -> Result<PrivateKey, KeyError> {
    if let Some(next) = load_next(file)? {
        return Ok(next);
    }
    let key = PrivateKey::generate()?;
    key.save_new(&next_path(file))?;
    Ok(key)
}

/// Deletes the next key of the key file `file`; returns false if there is none.
///
/// # Errors
/// When the file cannot be deleted.
pub fn discard_next(file: &Path) -> Result<bool, KeyError> {
    let path = next_path(file);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(KeyError::Io { path, source }),
    }
}

/// Puts the next key in the place of the present one, which is kept at [`old_path`] if `keep_old`
/// is true. At each instant, `file` has one of the two keys.
///
/// # Errors
/// When there is no next key, or a file cannot be changed.
pub fn adopt_next(file: &Path, keep_old: bool) -> Result<(), KeyError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| KeyError::Io { path, source }
    };
    // Rename the file itself, not a symbolic link to it.
    let file = fs::canonicalize(file).map_err(failed(file))?;
    let next = next_path(&file);
    PrivateKey::load(&next, NO_NEXT)?;
    if keep_old {
        let old = old_path(&file);
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&old)(error)),
            _ => fs::hard_link(&file, &old).map_err(failed(&old))?,
        }
    }
    fs::rename(&next, &file).map_err(failed(&next))?;
    let dir = file.parent().unwrap_or(Path::new("/"));
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned()).into_os_string();
    name.push(suffix);
    name.into()
}

/// Returns the request to replace the key `old`, which this client has proved on `stream`, by
/// `new`.
///
/// # Errors
/// When TLS provides no keying material.
pub fn prove(stream: &TlsStream, old: &PublicKey, new: &PrivateKey) -> Result<KeyChange, rustls::Error> {
    let signature = new.sign(&signed_data(stream, old, &new.public())?);
    Ok(KeyChange { new_key: *new.public().as_bytes(), signature })
}

/// Returns the new key of a request if the request proves that the client on `stream`, which has
/// proved the key `old`, holds the new key too.
#[must_use]
pub fn verify(stream: &TlsStream, old: &PublicKey, change: &KeyChange) -> Option<PublicKey> {
    let new = PublicKey::from_bytes(change.new_key);
    let data = signed_data(stream, old, &new).ok()?;
    new.verifies(&data, &change.signature).then_some(new)
}

/// Returns what the new key signs. The exported secret is of this connection, so a signature cannot
/// be used again; both keys are in it, because the exporter does not depend on the client's key.
fn signed_data(stream: &TlsStream, old: &PublicKey, new: &PublicKey) -> Result<Vec<u8>, rustls::Error> {
    let secret = match stream {
        TlsStream::Client(stream) => stream.get_ref().1.export_keying_material([0; 32], LABEL, None)?,
        TlsStream::Server(stream) => stream.get_ref().1.export_keying_material([0; 32], LABEL, None)?,
    };
    Ok([LABEL, &secret, old.as_bytes(), new.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_key_is_replaced_in_two_steps_that_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("relay.key");
        let first = PrivateKey::generate().unwrap();
        first.save_new(&file).unwrap();
        assert!(load_next(&file).unwrap().is_none() && !discard_next(&file).unwrap());
        assert!(adopt_next(&file, true).is_err(), "there is no next key");
        let next = create_next(&file).unwrap();
        assert_eq!(create_next(&file).unwrap().public(), next.public());
        assert_eq!(fs::metadata(next_path(&file)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(PrivateKey::load(&file, NO_NEXT).unwrap().public(), first.public());
        adopt_next(&file, true).unwrap();
        assert_eq!(PrivateKey::load(&file, NO_NEXT).unwrap().public(), next.public());
        assert_eq!(PrivateKey::load(&old_path(&file), NO_NEXT).unwrap().public(), first.public());
        create_next(&file).unwrap();
        assert!(discard_next(&file).unwrap());
        create_next(&file).unwrap();
        adopt_next(&file, true).unwrap();
        assert_eq!(PrivateKey::load(&old_path(&file), NO_NEXT).unwrap().public(), next.public());
    }

    #[test]
    fn the_file_behind_a_link_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("real.key"), dir.path().join("link.key"));
        PrivateKey::generate().unwrap().save_new(&file).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let next = create_next(&link).unwrap();
        adopt_next(&link, false).unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(PrivateKey::load(&file, NO_NEXT).unwrap().public(), next.public());
        assert!(!old_path(&file).exists());
    }
}
