//! The registry of running daemons, by which a daemon finds out before it makes anything whether
//! another one already uses the same kernel objects and paths.
//!
//! Each daemon has a file in a directory that only root may enter, and holds a lock (`flock`) on it
//! while it runs. The kernel releases the lock when the process ends, however it ends, so a file
//! without a lock is that of a daemon that was killed: the next reader removes it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::netns;

/// The name of the registry's directory below the directory of the daemons' runtime files.
const NAME: &str = "running";

/// The registry of the running daemons of one kind.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

/// One running daemon in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running<T> {
    /// The process ID of the daemon, in the daemon's PID namespace.
    pub pid: u32,
    /// The kernel objects and paths that the daemon uses.
    pub uses: T,
}

/// The reason why a daemon was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError<E> {
    /// The daemon uses what another one uses.
    #[error(transparent)]
    Refused(E),
    /// The registry cannot be read or written.
    #[error("cannot register this process in {dir}: {source}")]
    Io {
        /// The directory of the registry.
        dir: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

/// The registration of this process, which ends on drop or with the process.
#[derive(Debug)]
pub struct Registration {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Registry {
    /// Returns the registry in the runtime directory `dir`, without opening it.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.join(NAME) }
    }

    /// Registers this process and what it uses, unless `admit` refuses because of the other running
    /// daemons. Registrations of several processes happen one after the other.
    ///
    /// # Errors
    /// `Refused` with the error of `admit`; `Io` if the registry cannot be read or written.
    pub fn register<T, E>(
        &self,
        uses: &T,
        admit: impl FnOnce(&T, &[Running<T>]) -> Result<(), E>,
    ) -> Result<Registration, RegistryError<E>>
    where
        T: Serialize + DeserializeOwned,
    {
        let failed = |source| RegistryError::Io { dir: self.dir.clone(), source };
        let _registry = self.lock().map_err(failed)?;
        let others = self.list().map_err(failed)?;
        admit(uses, &others).map_err(RegistryError::Refused)?;
        self.write(uses).map_err(failed)
    }

    /// Returns the running daemons except this process. Only root may read the registry.
    ///
    /// # Errors
    /// When the registry exists and cannot be read.
    pub fn others<T: DeserializeOwned>(&self) -> io::Result<Vec<Running<T>>> {
        match fs::symlink_metadata(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let _registry = self.lock()?;
        let others = self.list();
        // Fails if a daemon is registered.
        let _ = fs::remove_dir(&self.dir);
        others
    }

    /// Locks the directory, which is created if necessary, until the returned value is dropped.
    fn lock(&self) -> io::Result<Flock<File>> {
        loop {
            DirBuilder::new().recursive(true).create(self.dir.parent().unwrap_or(Path::new("/")))?;
            match DirBuilder::new().mode(0o700).create(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let dir = match File::open(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let locked = Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
            // The last daemon may have removed the directory while this process waited.
            if is_at(&locked, &self.dir)? {
                return Ok(locked);
            }
        }
    }

    /// Returns the running daemons except this process, and removes the files of those that were
    /// killed. The directory must be locked.
    fn list<T: DeserializeOwned>(&self) -> io::Result<Vec<Running<T>>> {
        let mut running = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            // A daemon that ends removes its file without locking the directory.
            let Ok(file) = File::open(&path) else { continue };
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(_killed) => drop(fs::remove_file(&path)),
                Err((file, Errno::EWOULDBLOCK)) => running.extend(read(file, &path)),
                Err((_, errno)) => return Err(errno.into()),
            }
        }
        running.retain(|daemon: &Running<T>| daemon.pid != std::process::id());
        running.sort_by_key(|daemon| daemon.pid);
        Ok(running)
    }

    fn write<T: Serialize>(&self, uses: &T) -> io::Result<Registration> {
        let pid = std::process::id();
        let path = self.dir.join(format!("{}-{pid}.json", netns::id()?));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| io::Error::from(errno))?;
        lock.write_all(&serde_json::to_vec(&Running { pid, uses })?)?;
        Ok(Registration { path, _lock: lock })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The lock keeps the directory until a daemon that registers at the moment has done so. A
        // failure does no harm: from now on, the file has no lock.
        let _registry = self.path.parent().map(|dir| Registry { dir: dir.to_owned() }.lock());
        let _ = fs::remove_file(&self.path);
        // Directories that are not empty belong to other daemons too.
        for dir in self.path.ancestors().skip(1).take(2) {
            if fs::remove_dir(dir).is_err() {
                break;
            }
        }
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    Ok(fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (open.dev(), open.ino())))
}

fn read<T: DeserializeOwned>(mut file: File, path: &Path) -> Option<Running<T>> {
    let mut text = String::new();
    let read = file.read_to_string(&mut text).and_then(|_| Ok(serde_json::from_str(&text)?));
    read.inspect_err(|error| {
        tracing::warn!(%error, path = %path.display(), "cannot read what a running daemon uses: ignoring it");
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(own: &String, others: &[Running<String>]) -> Result<(), String> {
        others.iter().find(|other| other.uses == *own).map_or(Ok(()), |other| Err(other.pid.to_string()))
    }

    /// Writes the file of a daemon with process ID 1, and returns the lock that it would hold.
    fn other(registry: &Registry, uses: &str) -> Flock<File> {
        let path = registry.dir.join("1-1.json");
        fs::create_dir_all(&registry.dir).unwrap();
        fs::write(&path, serde_json::to_vec(&Running { pid: 1, uses }).unwrap()).unwrap();
        Flock::lock(File::open(path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap()
    }

    #[test]
    fn what_a_running_daemon_uses_is_refused_until_it_ends_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let registry = Registry::new(&run);
        assert!(registry.others::<String>().unwrap().is_empty());
        let lock = other(&registry, "mobile0");
        let refused = registry.register(&"mobile0".to_owned(), admit);
        assert!(matches!(&refused, Err(RegistryError::Refused(pid)) if pid == "1"), "{refused:?}");
        let beside = registry.register(&"mobile1".to_owned(), admit).unwrap();
        assert_eq!(registry.others::<String>().unwrap(), [Running { pid: 1, uses: "mobile0".to_owned() }]);
        drop(beside);
        // A killed daemon leaves its file, but no lock.
        drop(lock);
        drop(registry.register(&"mobile0".to_owned(), admit).unwrap());
        assert!(!run.exists());
    }

    #[test]
    fn only_the_owner_may_read_the_registry() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(dir.path());
        let _registration = registry.register(&"mobile0".to_owned(), admit).unwrap();
        assert_eq!(fs::metadata(&registry.dir).unwrap().mode() & 0o777, 0o700);
    }
}
