//! Changes the owner of files that root creates to the owner of their directory.
//!
//! A package may make a service's user the owner of a directory. Such a service could not read its
//! key if the key file, which an administrator creates there as root, remained owned by root.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

/// Changes the owner of the file at `path`, open as `file`, to the owner of its directory.
///
/// Does nothing unless this process runs as root, since only root may change the owner of files.
///
/// # Errors
/// When the directory cannot be examined or the owner cannot be changed.
pub fn inherit_from_directory(file: &File, path: &Path) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = fs::metadata(folder)?;
    // Use the descriptor, not the path: the directory's owner may have replaced the file.
    fchown(file, Some(folder.uid()), Some(folder.gid()))
}

/// Creates a directory that every user may enter, whatever the umask is. Does nothing if it exists.
///
/// # Errors
/// When the directory cannot be created.
pub(crate) fn create_open_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_created_by_root_gets_the_owner_of_its_directory() {
        if !nix::unistd::geteuid().is_root() {
            // A file created by an ordinary user belongs to that user.
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
