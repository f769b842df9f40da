//! Writes the SHA-256 sums of the built packages and archives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell;

/// Writes SHA256SUMS beside the files, in the format of `sha256sum --check`.
pub(super) fn write(files: &[PathBuf], out: &Path) -> Result<()> {
    let mut sum = Command::new("sha256sum");
    sum.current_dir(out).args(files.iter().filter_map(|file| file.file_name()));
    let sums = shell::output(&mut sum)? + "\n";
    let path = out.join("SHA256SUMS");
    fs::write(&path, sums).with_context(|| format!("cannot write {}", path.display()))
}
