//! Builds a Debian package from a folder that has the installed files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Package;
use crate::shell;

/// The maintainer scripts that a package may have (Debian Policy, chapter 6).
const SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];

/// Builds the Debian package whose installed files are below the folder `root`, and returns its
/// path.
pub(super) fn build(
    package: &Package,
    root: &Path,
    architecture: &str,
    version: &str,
    out: &Path,
) -> Result<PathBuf> {
    let source = shell::root().join(package.folder).join("dist/debian");
    let control = root.join("DEBIAN");
    fs::create_dir_all(&control).with_context(|| format!("cannot make {}", control.display()))?;
    let text = read(&source.join("control"))?;
    let text = text.replace("@VERSION@", version).replace("@ARCHITECTURE@", architecture);
    write(&control.join("control"), &text, 0o644)?;
    for script in SCRIPTS {
        let from = source.join(script);
        if from.exists() {
            write(&control.join(script), &read(&from)?, 0o755)?;
        }
    }
    let path = out.join(format!("{}_{version}_{architecture}.deb", package.name));
    // gzip takes one second where xz takes ten, and every dpkg reads it.
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zgzip", "--build"]).arg(root).arg(&path);
    shell::output(build.env("SOURCE_DATE_EPOCH", super::source_date()?))?;
    Ok(path)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}
