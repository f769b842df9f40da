//! Whose a new file is. What root makes in a folder that a package gave to a service's user must be that user's too, or
//! the service cannot read its own key.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

/// Gives a file, just made at `path` and open as `file`, to the owner of the folder it lies in. Changes nothing for
/// anybody but root, who alone may.
///
/// # Errors
/// When the folder cannot be looked at or the file not be given away.
pub fn inherit_from_directory(file: &File, path: &Path) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = fs::metadata(folder)?;
    // By the open file, not its name: whoever owns the folder may put something else in its place meanwhile.
    fchown(file, Some(folder.uid()), Some(folder.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_made_by_root_belongs_to_whom_the_folder_belongs() {
        if !nix::unistd::geteuid().is_root() {
            // What an ordinary user makes is theirs.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(4321), Some(1234)).unwrap();
        let path = dir.path().join("key");
        let file = File::create_new(&path).unwrap();
        inherit_from_directory(&file, &path).unwrap();
        let made = fs::metadata(&path).unwrap();
        assert_eq!((made.uid(), made.gid()), (4321, 1234));
    }
}
