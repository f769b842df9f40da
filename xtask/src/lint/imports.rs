//! The imports between modules: finds cycles between the modules of one folder, and imports from a
//! crate that is not in a lower layer.

mod crates;
mod cycles;
mod layers;
mod paths;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Result, bail};

use super::sources;

/// Fails if modules import each other in a cycle, or if a crate imports from a crate that is not
/// in a lower layer.
pub(super) fn check() -> Result<()> {
    let files = sources::tracked("rs")?;
    let libraries = crates::libraries()?;
    let mut problems = layers::upward(&files, &libraries)?;
    for cycle in cycles::find(&crates::by_folder(files, &libraries))? {
        problems.push(format!(
            "{}: the modules {} import each other:",
            cycle.folder,
            cycle.modules.join(", ")
        ));
        problems.extend(cycle.imports);
    }
    if !problems.is_empty() {
        bail!("imports (xtask/src/lint/imports.rs):\n{}", problems.join("\n"));
    }
    Ok(())
}

/// Returns the imports between the modules of each crate: one line for each module at the crate's
/// root, with the modules at the root that it imports. Cycles follow at the end.
pub(super) fn list() -> Result<String> {
    let crates = crates::by_folder(sources::tracked("rs")?, &crates::libraries()?);
    let mut text = String::new();
    for one in &crates {
        let _ = writeln!(text, "{}", one.folder);
        let arrows = cycles::arrows(one)?.remove(&[][..]).unwrap_or_default();
        let mut targets: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for arrow in &arrows {
            targets.entry(&arrow.from).or_default().insert(&arrow.to);
        }
        for (from, to) in targets {
            let _ = writeln!(text, "    {from} -> {}", to.into_iter().collect::<Vec<_>>().join(", "));
        }
    }
    for cycle in cycles::find(&crates)? {
        let _ = writeln!(text, "cycle in {}: {}", cycle.folder, cycle.modules.join(", "));
    }
    Ok(text)
}
