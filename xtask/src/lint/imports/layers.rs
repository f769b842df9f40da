//! The layers of the workspace: a crate imports only from crates of the layers below its own.

use std::collections::BTreeSet;

use anyhow::Result;

use super::crates::Libraries;
use super::paths::paths;
use crate::lint::sources::File;

/// The folders of the crates by layer, the lowest layer first. A crate may import from the crates
/// of lower layers.
const LAYERS: [&[&str]; 5] = [
    &[
        "crates/mobile-control",
        "crates/mobile-ebpf-common",
        "crates/mobile-host",
        "crates/mobile-netlink",
        "crates/mobile-proto",
    ],
    &["crates/libmobile", "crates/mobile-transport", "mobile-ebpf"],
    &["home-relay", "mobile-agent"],
    &["tests"],
    &["xtask"],
];

/// Returns the imports from a crate that is not in a lower layer, one a line.
pub(super) fn upward(files: &[File], libraries: &Libraries) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for file in files {
        let Some(own) = folders().find(|folder| file.name.starts_with(&format!("{folder}/"))) else {
            // The fuzz targets are a workspace of their own.
            if !file.name.starts_with("fuzz/") {
                found.insert(format!("    {}: its crate is in no layer", file.name));
            }
            continue;
        };
        for (_, path) in paths(file, Vec::new())? {
            let Some((name, imported)) = path.first().and_then(|name| libraries.get_key_value(name)) else {
                continue;
            };
            if imported != own && layer(imported) >= layer(own) {
                found.insert(format!("    {own} -> {name} in {}", file.name));
            }
        }
    }
    Ok(found.into_iter().collect())
}

fn folders() -> impl Iterator<Item = &'static str> {
    LAYERS.into_iter().flatten().copied()
}

/// Returns the number of the layer that a crate is in; a crate in no layer counts as above all.
fn layer(folder: &str) -> usize {
    LAYERS.iter().position(|layer| layer.contains(&folder)).unwrap_or(LAYERS.len())
}
