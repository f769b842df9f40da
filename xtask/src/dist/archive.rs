//! Archives of the relay for machines without Debian's tools: routers and other distributions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Package, tree};
use crate::musl::Arch;
use crate::shell;

/// Packs the installed files of a package and the files for OpenWrt into an archive, in a folder
/// named like the archive. Returns the archive's path.
pub(super) fn build(
    package: &Package,
    arch: Arch,
    binaries: &Path,
    version: &str,
    out: &Path,
) -> Result<PathBuf> {
    let name = format!("{}-{version}-{}", package.name, arch.target());
    let root = tree::stage(package, &binaries.join(package.program), &out.join(&name))?;
    let from = shell::root().join(package.folder).join("dist/openwrt");
    shell::run(Command::new("cp").arg("--recursive").arg(&from).arg(&root))?;
    let makefile = root.join("openwrt/Makefile");
    let text = fs::read_to_string(&makefile)
        .with_context(|| format!("cannot read {}", makefile.display()))?
        .replace("@VERSION@", version);
    fs::write(&makefile, text).with_context(|| format!("cannot write {}", makefile.display()))?;
    let path = out.join(format!("{name}.tar.xz"));
    let mut tar = Command::new("tar");
    // Fixed order, times and owners make the archive reproducible.
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX"]);
    tar.arg(format!("--mtime=@{}", super::source_date()?))
        .arg(format!("--transform=s,^{},{name},", package.name));
    shell::run(tar.arg("--directory").arg(out.join(&name)).args(["-cJf"]).arg(&path).arg(package.name))?;
    Ok(path)
}
