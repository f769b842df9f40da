//! The state file: a daemon's list of the kernel objects that it creates (devices, rules and
//! others), by which the command `cleanup` finds the objects when the configuration cannot be read
//! or has changed.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf, absolute};

use ring::digest::{SHA256, digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{netns, ownership};

/// The maximum number of attempts to write the file while other daemons remove its directory.
const ATTEMPTS: u32 = 5;

/// The state file of the daemon that uses one configuration file in one network namespace.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
    config: PathBuf,
}

/// The content of a state file. Unknown keys, which later versions may add, are ignored.
#[derive(Serialize, Deserialize)]
struct Content<T> {
    /// The path of the configuration file, for people who read the state file.
    config: PathBuf,
    /// The sets of kernel objects that were created and not removed since.
    objects: Vec<T>,
}

impl StateFile {
    /// Returns the state file in the directory `dir` of the daemon with the configuration file
    /// `config`, without opening either file.
    ///
    /// # Errors
    /// When the network namespace or the working directory cannot be determined.
    pub fn new(dir: &Path, config: &Path) -> io::Result<Self> {
        let config = fs::canonicalize(config).or_else(|_| absolute(config))?;
        let hash = digest(&SHA256, config.as_os_str().as_encoded_bytes());
        let hash: String = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { path: dir.join(format!("objects-{}-{hash}.json", netns::id()?)), config })
    }

    /// Returns the recorded sets of kernel objects; the list is empty if the state file does not
    /// exist.
    ///
    /// # Errors
    /// When the file exists but cannot be read.
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

    /// Records a set of kernel objects that is about to be created; returns false if an equal set
    /// is recorded already.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add<T: Serialize + DeserializeOwned + PartialEq>(&self, objects_in_use: T) -> io::Result<bool> {
        // Replace an unreadable file, which `cleanup` could not use either.
        let mut objects: Vec<T> = self.read().unwrap_or_default();
        if objects.contains(&objects_in_use) {
            return Ok(false);
        }
        objects.push(objects_in_use);
        let text = serde_json::to_vec_pretty(&Content { config: self.config.clone(), objects })?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        // Write a new file and rename it, so that the state file is complete even if the daemon is
        // killed.
        let new = self.path.with_extension(format!("new-{}", std::process::id()));
        let write = || {
            ownership::create_open_directory(dir)?;
            // A killed daemon, or the owner of the directory, may have left this file behind.
            let _ = fs::remove_file(&new);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&new)?;
            // Clients that may not read the configuration find the control socket here.
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            file.write_all(&text)?;
            fs::rename(&new, &self.path)
        };
        let mut written = write();
        for _ in 1..ATTEMPTS {
            match &written {
                // Another daemon has just removed the directory together with the last state file
                // in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => written = write(),
                _ => break,
            }
        }
        written.map(|()| true).map_err(|error| self.failed("write", &error))
    }

    /// Removes the state file, and its directory if that is empty.
    ///
    /// # Errors
    /// When the file exists but cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", &error)),
            _ => {
                // Fails if the directory holds state files or sockets of other daemons.
                let _ = self.path.parent().map(fs::remove_dir);
                Ok(())
            }
        }
    }

    fn failed(&self, action: &str, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("cannot {action} state file {}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_holds_each_set_once_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let state = StateFile::new(&run, &dir.path().join("agent.toml")).unwrap();
        assert!(state.read::<String>().unwrap().is_empty());
        state.remove().unwrap();
        assert!(state.add("mobile0".to_owned()).unwrap());
        assert!(!state.add("mobile0".to_owned()).unwrap());
        assert!(state.add("mobile1".to_owned()).unwrap());
        assert_eq!(state.read::<String>().unwrap(), ["mobile0", "mobile1"]);
        let mode = fs::metadata(&state.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "every user may read the names");
        // Another configuration file has its own state file.
        let other = StateFile::new(&run, &dir.path().join("other.toml")).unwrap();
        assert!(other.read::<String>().unwrap().is_empty());
        state.remove().unwrap();
        assert!(!run.exists());
    }

    #[test]
    fn a_damaged_state_file_cannot_be_read_but_can_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::new(dir.path(), &dir.path().join("agent.toml")).unwrap();
        fs::write(&state.path, "{").unwrap();
        let error = state.read::<String>().unwrap_err().to_string();
        assert!(error.contains("objects-"), "{error}");
        state.add("mobile0".to_owned()).unwrap();
        assert_eq!(state.read::<String>().unwrap(), ["mobile0"]);
    }
}
