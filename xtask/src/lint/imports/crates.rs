//! The crates of the workspace, their sources and the names by which they are imported.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::lint::sources::File;
use crate::shell;

/// The folders of the crates with a library, by the names by which other crates import them.
pub(super) type Libraries = BTreeMap<String, String>;

/// A crate with the files below its `src`.
pub(super) struct Crate {
    /// The path from the root of the workspace.
    pub(super) folder: String,
    /// The name of the crate's library, by which its other programs import it.
    pub(super) library: Option<String>,
    pub(super) files: Vec<File>,
}

/// Returns the libraries of the workspace, as cargo knows them.
pub(super) fn libraries() -> Result<Libraries> {
    let mut cargo = shell::cargo();
    cargo.args(["metadata", "--no-deps", "--locked", "--format-version=1"]);
    let metadata: Value = serde_json::from_str(&shell::output(&mut cargo)?)?;
    let mut libraries = Libraries::new();
    for package in metadata["packages"].as_array().context("cargo metadata lists no packages")? {
        let manifest = package["manifest_path"].as_str().context("a package without a manifest")?;
        let folder = Path::new(manifest).strip_prefix(shell::root())?.parent().unwrap_or(Path::new(""));
        let targets = package["targets"].as_array().into_iter().flatten();
        let library = targets.filter(|target| target["kind"][0] == "lib").find_map(|it| it["name"].as_str());
        if let Some(name) = library {
            libraries.insert(name.to_owned(), folder.display().to_string());
        }
    }
    Ok(libraries)
}

/// Sorts the files below the `src` folders by their crate.
pub(super) fn by_folder(files: Vec<File>, libraries: &Libraries) -> Vec<Crate> {
    let mut crates: BTreeMap<String, Vec<File>> = BTreeMap::new();
    for file in files {
        if let Some((folder, _)) = file.name.split_once("/src/") {
            crates.entry(folder.to_owned()).or_default().push(file);
        }
    }
    let with_library = |(folder, files)| {
        let library = libraries.iter().find(|(_, its_folder)| **its_folder == folder);
        Crate { library: library.map(|(name, _)| name.clone()), folder, files }
    };
    crates.into_iter().map(with_library).collect()
}
