//! The files of a package, laid out as they are installed below `/`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Package;
use crate::shell;

/// Copies everything that `package` installs to a folder below `out`, laid out as below `/`, and
/// returns that folder.
pub(super) fn stage(package: &Package, binary: &Path, out: &Path) -> Result<PathBuf> {
    let root = out.join(package.name);
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    let tree = Tree { root };
    let program = tree.put(binary, &format!("usr/bin/{}", package.program), 0o755)?;
    if super::is_for_this_machine(&program)? {
        // Binaries for other architectures were stripped when they were built.
        shell::run(Command::new("strip").args(["--strip-all", "--remove-section=.comment"]).arg(&program))?;
    }
    let dist = shell::root().join(package.folder).join("dist");
    for (file, to) in package.files {
        let to = if Path::new(to).extension().is_some() { (*to).to_owned() } else { format!("{to}/{file}") };
        tree.put(&dist.join(file), &to, 0o644)?;
    }
    tree.manual(package.program, &out.join("gen"))?;
    let doc = format!("usr/share/doc/{}", package.name);
    let copyright = tree.put(&shell::root().join("LICENSE-MIT"), &format!("{doc}/copyright"), 0o644)?;
    let apache =
        "\nOr, as you like, under the Apache License, Version 2.0: /usr/share/common-licenses/Apache-2.0\n";
    append(&copyright, apache)?;
    let changes = tree.put(&shell::root().join("CHANGELOG.md"), &format!("{doc}/changelog"), 0o644)?;
    compress(&changes)?;
    Ok(tree.root)
}

struct Tree {
    root: PathBuf,
}

impl Tree {
    fn put(&self, from: &Path, to: &str, mode: u32) -> Result<PathBuf> {
        let to = self.root.join(to);
        let folder = to.parent().context("a file needs a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {}", to.display()))?;
        Ok(to)
    }

    /// Adds man pages and completions, in the directories where man and each shell look for them.
    fn manual(&self, program: &str, made: &Path) -> Result<()> {
        for file in crate::r#gen::program(program, made)? {
            let name = file.file_name().and_then(|name| name.to_str()).context("a page needs a name")?;
            let kind = file.parent().and_then(Path::file_name).and_then(|kind| kind.to_str());
            let to = match kind {
                Some("man") => "usr/share/man/man8",
                Some("bash") => "usr/share/bash-completion/completions",
                Some("zsh") => "usr/share/zsh/vendor-completions",
                Some("fish") => "usr/share/fish/vendor_completions.d",
                _ => anyhow::bail!("{} is not a kind of file that can be installed", file.display()),
            };
            let installed = self.put(&file, &format!("{to}/{name}"), 0o644)?;
            if kind == Some("man") {
                compress(&installed)?;
            }
        }
        Ok(())
    }
}

fn append(path: &Path, text: &str) -> Result<()> {
    let before = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::write(path, before + text).with_context(|| format!("cannot write {}", path.display()))
}

/// Compresses a file with gzip, without a name or time stamp in the header, so that the same text
/// gives the same bytes.
fn compress(path: &Path) -> Result<()> {
    shell::run(Command::new("gzip").args(["--best", "--no-name", "--force"]).arg(path))
}
