//! Checks directories before they are needed.

use std::io;
use std::path::Path;

use nix::unistd::{AccessFlags, access};

/// Checks, without changing anything, that files can be created in `dir`, which is created if it is
/// missing.
///
/// # Errors
/// When the nearest existing ancestor is no directory or may not be written.
pub fn check_creatable(dir: &Path) -> io::Result<()> {
    let existing = dir.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok()).unwrap_or(dir);
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    if !existing.metadata()?.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            format!("{} is not a directory", existing.display()),
        ));
    }
    access(existing, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("cannot write to {}: {error}", existing.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_existing_ancestor_decides() {
        let dir = tempfile::tempdir().unwrap();
        check_creatable(&dir.path().join("a/b")).unwrap();
        assert!(!dir.path().join("a").exists());
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = check_creatable(&dir.path().join("file/b")).unwrap_err().to_string();
        assert!(error.contains("file is not a directory"), "{error}");
    }
}
