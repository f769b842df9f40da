//! The record of a daemon's kernel objects, from which `cleanup` works when the configuration
//! cannot be read or has changed since.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf, absolute};

use ring::digest::{SHA256, digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::netns;

/// How often a record is written again when its directory is removed meanwhile.
const ATTEMPTS: u32 = 5;

/// The record of the daemon of one configuration file in one network namespace.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
    config: PathBuf,
}

/// The content of the file. Keys that a later version adds are ignored.
#[derive(Serialize, Deserialize)]
struct Content<T> {
    /// The path of the configuration file, for people who read the state.
    config: PathBuf,
    /// Every set of objects that was objects_in_use and not removed since.
    objects: Vec<T>,
}

impl StateFile {
    /// Returns the record in `dir` of the daemon that `config` configures.
    ///
    /// # Errors
    /// When the network namespace or the working directory cannot be determined.
    pub fn new(dir: &Path, config: &Path) -> io::Result<Self> {
        let config = fs::canonicalize(config).or_else(|_| absolute(config))?;
        let hash = digest(&SHA256, config.as_os_str().as_encoded_bytes());
        let hash: String = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { path: dir.join(format!("objects-{}-{hash}.json", netns::id()?)), config })
    }

    /// Returns every set of objects on record; none without a state.
    ///
    /// # Errors
    /// When there is a record that cannot be read.
    pub fn read<T: DeserializeOwned>(&self) -> io::Result<Vec<T>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed("read", &error)),
        };
        let content: Content<T> =
            serde_json::from_slice(&text).map_err(|error| self.failed("read", &error.into()))?;
        Ok(content.objects)
    }

    /// Adds a set of objects that is about to be objects_in_use, unless it is on state. Returns whether it
    /// was added.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn add<T: Serialize + DeserializeOwned + PartialEq>(&self, objects_in_use: T) -> io::Result<bool> {
        // `cleanup` could not use an unreadable record either, so replace it.
        let mut objects: Vec<T> = self.read().unwrap_or_default();
        if objects.contains(&objects_in_use) {
            return Ok(false);
        }
        objects.push(objects_in_use);
        let text = serde_json::to_vec_pretty(&Content { config: self.config.clone(), objects })?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        // Renamed into place, so that the record is complete whenever the daemon is killed.
        let new = self.path.with_extension(format!("new-{}", std::process::id()));
        let write = || {
            fs::create_dir_all(dir)?;
            // Left by a daemon that was killed, or objects_in_use by the directory's owner.
            let _ = fs::remove_file(&new);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&new)?;
            file.write_all(&text)?;
            fs::rename(&new, &self.path)
        };
        let mut written = write();
        for _ in 1..ATTEMPTS {
            match &written {
                // Another daemon, whose record was the last one there, has just removed the
                // directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => written = write(),
                _ => break,
            }
        }
        written.map(|()| true).map_err(|error| self.failed("write", &error))
    }

    /// Removes the record, and its directory if that is then empty.
    ///
    /// # Errors
    /// When there is a record that cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", &error)),
            _ => {
                // The directory may hold records and sockets of others.
                let _ = self.path.parent().map(fs::remove_dir);
                Ok(())
            }
        }
    }

    fn failed(&self, action: &str, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("cannot {action} the record {}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_each_set_once_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let state = StateFile::new(&run, &dir.path().join("agent.toml")).unwrap();
        assert!(state.read::<String>().unwrap().is_empty());
        state.remove().unwrap();
        assert!(state.add("mobile0".to_owned()).unwrap());
        assert!(!state.add("mobile0".to_owned()).unwrap());
        assert!(state.add("mobile1".to_owned()).unwrap());
        assert_eq!(state.read::<String>().unwrap(), ["mobile0", "mobile1"]);
        // Another configuration file has a record of its own.
        let other = StateFile::new(&run, &dir.path().join("other.toml")).unwrap();
        assert!(other.read::<String>().unwrap().is_empty());
        state.remove().unwrap();
        assert!(!run.exists());
    }

    #[test]
    fn a_damaged_record_is_an_error_to_read_and_none_to_replace() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::new(dir.path(), &dir.path().join("agent.toml")).unwrap();
        fs::write(&state.path, "{").unwrap();
        let error = state.read::<String>().unwrap_err().to_string();
        assert!(error.contains("objects-"), "{error}");
        state.add("mobile0".to_owned()).unwrap();
        assert_eq!(state.read::<String>().unwrap(), ["mobile0"]);
    }
}
