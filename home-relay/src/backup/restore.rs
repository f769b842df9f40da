//! Writes the files of a backup: all of them, or none.
//!
//! The configuration appears last, and a relay does not start without it. A restore that was cut
//! off by a power failure can therefore be repeated: files that are as in the backup are kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use mobile_host::ownership;
use thiserror::Error;

use super::{Backup, PrivateKeys};
use crate::config::Config;
use crate::store::{Snapshot, Store, StoreError};

/// The suffix of the files that a restore replaced.
const REPLACED: &str = ".before-restore";
/// The suffix of a file that is not complete yet.
const UNFINISHED: &str = ".restoring";

/// The places of a relay's files.
#[derive(Debug)]
pub(crate) struct Destination {
    config: PathBuf,
    key: PathBuf,
    state: PathBuf,
}

/// The files that a restore wrote and moved.
#[derive(Debug)]
pub(crate) struct Restored {
    /// The files that were written.
    pub(crate) written: Vec<PathBuf>,
    /// Each file that was moved out of the way, as its path before and after.
    pub(crate) replaced: Vec<(PathBuf, PathBuf)>,
}

/// The reason why nothing was restored.
#[derive(Debug, Error)]
pub(crate) enum RestoreError {
    /// Files with another content exist.
    #[error(
        "nothing restored: {} {} already there with other content: move {} away, or repeat the command with --force, \
         which renames {} to …{REPLACED}",
        list(.0), if .0.len() == 1 { "is" } else { "are" }, them(.0), them(.0)
    )]
    Exist(Vec<PathBuf>),
    /// A file of an earlier restore would be overwritten.
    #[error("nothing restored: {0} is there from an earlier restore: move it away first")]
    ReplacedExists(PathBuf),
    /// Two files of the relay have the same path.
    #[error("nothing restored: the configuration in the backup puts two files at {0}")]
    SamePath(PathBuf),
    /// The database in the state directory is in use.
    #[error("nothing restored: {0}")]
    InUse(StoreError),
    /// A file cannot be read or written.
    #[error("nothing restored: cannot write {path}: {source}")]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The database cannot be written.
    #[error("nothing restored: cannot write {path}: {source}")]
    Store {
        /// The path of the database.
        path: PathBuf,
        /// The error of the database.
        source: StoreError,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn them(paths: &[PathBuf]) -> &'static str {
    if paths.len() == 1 { "it" } else { "them" }
}

/// A file of the relay and its content in the backup.
struct Part<'a> {
    path: PathBuf,
    content: Content<'a>,
}

enum Content<'a> {
    /// No file: one that is there belongs to another relay.
    Absent,
    Text {
        text: String,
        mode: u32,
    },
    Store(&'a Snapshot),
}

impl Destination {
    /// Returns the destination of a relay whose configuration file `path` has the settings
    /// `config`.
    pub(crate) fn of(path: &Path, config: &Config) -> Self {
        Self {
            config: path.to_owned(),
            key: resolved(&config.identity.private_key_file),
            state: config.state.dir.clone(),
        }
    }

    /// Returns the paths of the next and of the former key of the key file `key`.
    pub(crate) fn keys_beside(key: &Path) -> [PathBuf; 2] {
        [".next", ".old"].map(|suffix| with_suffix(&resolved(key), suffix))
    }

    /// Writes the files of the backup. With `replace`, files that are there get the suffix
    /// `.before-restore`; without it, they are an error.
    ///
    /// After an error everything is as before.
    pub(crate) fn restore(&self, backup: &Backup, replace: bool) -> Result<Restored, RestoreError> {
        let store = backup.store.upgraded().map_err(|source| self.store_error(source))?;
        let mut occupied = Vec::new();
        let mut missing = Vec::new();
        let mut same = Vec::new();
        for part in self.parts(backup, &store)? {
            match part.state()? {
                State::Same => same.push(part),
                State::Missing => missing.push(part),
                State::Different => {
                    occupied.push(part.path.clone());
                    missing.push(part);
                }
            }
        }
        if !replace && !occupied.is_empty() {
            return Err(RestoreError::Exist(occupied));
        }
        // No relay may start after a power failure while other files are replaced, so the
        // configuration leaves even if it stays the same.
        if !occupied.is_empty()
            && let Some(config) = same.pop_if(|part| part.path == self.config)
        {
            occupied.push(config.path.clone());
            missing.push(config);
        }
        if let Some(earlier) =
            occupied.iter().map(|path| with_suffix(path, REPLACED)).find(|path| exists(path))
        {
            return Err(RestoreError::ReplacedExists(earlier));
        }
        missing.retain(|part| !matches!(part.content, Content::Absent));
        let mut undo = Undo::default();
        let done = undo.write(&missing, &occupied);
        if done.is_err() {
            undo.undo();
        }
        done.map(|()| Restored {
            written: missing.into_iter().map(|part| part.path).collect(),
            replaced: occupied.into_iter().map(|path| (path.clone(), with_suffix(&path, REPLACED))).collect(),
        })
    }

    fn store_error(&self, source: StoreError) -> RestoreError {
        RestoreError::Store { path: Store::file_in(&self.state), source }
    }

    /// Returns the files in the order in which they appear.
    fn parts<'a>(&self, backup: &Backup, store: &'a Snapshot) -> Result<Vec<Part<'a>>, RestoreError> {
        let PrivateKeys { current, next, old } = &backup.private_keys;
        let key = |text: &str| Content::Text { text: format!("{}\n", text.trim()), mode: 0o600 };
        let optional = |text: &Option<String>| text.as_deref().map_or(Content::Absent, key);
        let config = &backup.configuration;
        // Nobody else may write the file, and it is no program.
        let text = Content::Text { text: config.text.clone(), mode: config.mode & 0o644 | 0o600 };
        let [next_file, old_file] = Self::keys_beside(&self.key);
        let parts = [
            (Store::file_in(&self.state), Content::Store(store)),
            (old_file, optional(old)),
            (next_file, optional(next)),
            (self.key.clone(), key(current)),
            (self.config.clone(), text),
        ];
        let parts: Vec<Part<'_>> = parts.into_iter().map(|(path, content)| Part { path, content }).collect();
        for (index, part) in parts.iter().enumerate() {
            if parts[..index].iter().any(|other| other.path == part.path) {
                return Err(RestoreError::SamePath(part.path.clone()));
            }
        }
        Ok(parts)
    }
}

/// The file at the path of a part, compared with the backup.
enum State {
    Missing,
    Same,
    Different,
}

impl Part<'_> {
    fn state(&self) -> Result<State, RestoreError> {
        if !exists(&self.path) {
            return Ok(State::Missing);
        }
        let same = match &self.content {
            Content::Absent => false,
            Content::Text { text, .. } => fs::read(&self.path).is_ok_and(|found| found == text.as_bytes()),
            Content::Store(wanted) => {
                let dir = self.path.parent().unwrap_or(Path::new("."));
                match Store::open(dir).and_then(|store| store.snapshot()) {
                    Ok(found) => found == **wanted,
                    Err(busy @ StoreError::Busy { .. }) => return Err(RestoreError::InUse(busy)),
                    Err(_damaged) => false,
                }
            }
        };
        Ok(if same { State::Same } else { State::Different })
    }

    /// Writes the content to a file beside the path, with its owner and mode.
    fn prepare(&self) -> Result<PathBuf, RestoreError> {
        let unfinished = with_suffix(&self.path, UNFINISHED);
        let failed = |source| RestoreError::Io { path: self.path.clone(), source };
        // A restore that was cut off may have left one.
        if exists(&unfinished) {
            fs::remove_file(&unfinished).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let mut file = options.open(&unfinished).map_err(failed)?;
        let mode = match &self.content {
            Content::Absent => 0o600,
            Content::Text { text, mode } => {
                file.write_all(text.as_bytes()).map_err(failed)?;
                *mode
            }
            Content::Store(snapshot) => {
                let failed = |source| RestoreError::Store { path: self.path.clone(), source };
                snapshot.write_to(&unfinished).map_err(failed)?;
                0o600
            }
        };
        ownership::inherit_from_directory(&file, &unfinished).map_err(failed)?;
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        Ok(unfinished)
    }
}

/// The steps that were done, for a restore that fails half-way.
#[derive(Default)]
struct Undo {
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
    /// The renamed files, by their former paths.
    renamed: Vec<PathBuf>,
}

impl Undo {
    fn write(&mut self, parts: &[Part<'_>], occupied: &[PathBuf]) -> Result<(), RestoreError> {
        let mut prepared = Vec::with_capacity(parts.len());
        for part in parts {
            let mode = if matches!(part.content, Content::Store(_)) { 0o700 } else { 0o755 };
            self.create_directory(&directory_of(&part.path), mode)?;
            self.files.push(with_suffix(&part.path, UNFINISHED));
            prepared.push(part.prepare()?);
        }
        // The configuration is last, and leaves first.
        for path in occupied.iter().rev() {
            let replaced = with_suffix(path, REPLACED);
            fs::rename(path, &replaced).map_err(|source| RestoreError::Io { path: replaced, source })?;
            self.renamed.push(path.clone());
            sync(path)?;
        }
        for (part, prepared) in parts.iter().zip(&prepared) {
            let failed = |source| RestoreError::Io { path: part.path.clone(), source };
            // A link overwrites nothing that another program has put there in the meantime.
            fs::hard_link(prepared, &part.path).map_err(failed)?;
            self.files.push(part.path.clone());
            fs::remove_file(prepared).map_err(failed)?;
            sync(&part.path)?;
        }
        Ok(())
    }

    fn create_directory(&mut self, path: &Path, mode: u32) -> Result<(), RestoreError> {
        let missing: Vec<&Path> =
            path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !exists(path)).collect();
        for directory in missing.into_iter().rev() {
            let mode = if directory == path { mode } else { 0o755 };
            fs::DirBuilder::new()
                .mode(mode)
                .create(directory)
                .map_err(|source| RestoreError::Io { path: directory.to_owned(), source })?;
            self.directories.push(directory.to_owned());
            sync(directory)?;
        }
        Ok(())
    }

    /// Undoes the steps, as far as possible.
    fn undo(&self) {
        self.files.iter().rev().for_each(|path| drop(fs::remove_file(path)));
        for path in self.renamed.iter().rev() {
            let _ = fs::rename(with_suffix(path, REPLACED), path);
        }
        self.directories.iter().rev().for_each(|path| drop(fs::remove_dir(path)));
    }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Makes the entry of a file in its directory durable.
fn sync(path: &Path) -> Result<(), RestoreError> {
    let directory = directory_of(path);
    let synced = File::open(&directory).and_then(|directory| directory.sync_all());
    synced.map_err(|source| RestoreError::Io { path: directory, source })
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Returns the path without symbolic links: the other keys are beside the file itself.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests;
