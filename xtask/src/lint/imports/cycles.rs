//! Cycles between the modules of one folder.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::crates::Crate;
use super::paths::paths;

/// Modules of one folder that import each other.
pub(super) struct Cycle {
    /// The path of the folder from the root of the workspace.
    pub(super) folder: String,
    pub(super) modules: Vec<String>,
    /// The imports between these modules, one a line with the file.
    pub(super) imports: Vec<String>,
}

/// An import between two entries of one folder.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrow {
    pub(super) from: String,
    pub(super) to: String,
    /// The name of the file that the import is in.
    file: String,
}

/// The modules that each module imports.
type Targets<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Returns every cycle of the crates.
pub(super) fn find(crates: &[Crate]) -> Result<Vec<Cycle>> {
    let mut found = Vec::new();
    for one in crates {
        for (folder, arrows) in arrows(one)? {
            for modules in mutual(&reachable(&arrows)) {
                let is_within =
                    |arrow: &&Arrow| modules.contains(&&*arrow.from) && modules.contains(&&*arrow.to);
                let line = |arrow: &Arrow| format!("    {} -> {} in {}", arrow.from, arrow.to, arrow.file);
                found.push(Cycle {
                    folder: format!("{}/src/{}", one.folder, folder.join("/")),
                    imports: arrows.iter().filter(is_within).map(line).collect(),
                    modules: modules.into_iter().map(str::to_owned).collect(),
                });
            }
        }
    }
    Ok(found)
}

/// Returns the imports within a crate, keyed by the folder (a path of modules) in which the
/// importing and the imported module are two different entries. A module and its submodules are one
/// entry, so that an import from a parent module counts nowhere.
pub(super) fn arrows(one: &Crate) -> Result<BTreeMap<Vec<String>, BTreeSet<Arrow>>> {
    let modules: BTreeSet<Vec<String>> = one.files.iter().filter_map(|file| module_of(&file.name)).collect();
    let mut folders: BTreeMap<Vec<String>, BTreeSet<Arrow>> = BTreeMap::new();
    for file in &one.files {
        let Some(module) = module_of(&file.name) else { continue };
        for (from, path) in paths(file, module)? {
            let Some(path) = absolute(&from, &path, one.library.as_deref()) else { continue };
            // The item is in the deepest module of that name.
            let depth = (0..=path.len()).rev().find(|&depth| modules.contains(&path[..depth]));
            let to = &path[..depth.unwrap_or_default()];
            let shared = from.iter().zip(to).take_while(|(from, to)| from == to).count();
            if let (Some(one), Some(other)) = (from.get(shared), to.get(shared)) {
                let arrow = Arrow { from: one.clone(), to: other.clone(), file: file.name.clone() };
                folders.entry(from[..shared].to_vec()).or_default().insert(arrow);
            }
        }
    }
    Ok(folders)
}

/// Returns the path of the module in a file below `src`; `None` for tests and other programs.
fn module_of(file: &str) -> Option<Vec<String>> {
    let (_, inside) = file.split_once("/src/")?;
    let path = inside.strip_suffix(".rs")?;
    if path == "lib" || path == "main" {
        return Some(Vec::new());
    }
    let module: Vec<String> = path.split('/').map(str::to_owned).collect();
    (!module.iter().any(|name| name == "tests" || name == "bin")).then_some(module)
}

/// Returns a path from the root of the crate with this library; `None` for the path of another
/// crate.
fn absolute(module: &[String], path: &[String], library: Option<&str>) -> Option<Vec<String>> {
    let (first, mut rest) = path.split_first()?;
    let mut root = match first.as_str() {
        "self" => module.to_vec(),
        "super" => parent(module),
        name if name == "crate" || Some(name) == library => Vec::new(),
        _ => return None,
    };
    while let [first, after @ ..] = rest
        && first == "super"
    {
        root = parent(&root);
        rest = after;
    }
    Some([&root, rest].concat())
}

fn parent(module: &[String]) -> Vec<String> {
    module.split_last().map_or_else(Vec::new, |(_, parent)| parent.to_vec())
}

/// Returns the modules that each module imports, directly or through others.
fn reachable(arrows: &BTreeSet<Arrow>) -> Targets<'_> {
    let mut reached = Targets::new();
    for arrow in arrows {
        reached.entry(&arrow.from).or_default().insert(&arrow.to);
    }
    loop {
        let further: Vec<(&str, &str)> = reached
            .iter()
            .flat_map(|(from, to)| {
                to.iter().filter_map(|to| reached.get(to)).flatten().map(|to| (*from, *to))
            })
            .collect();
        let mut grew = false;
        for (from, to) in further {
            grew |= reached.entry(from).or_default().insert(to);
        }
        if !grew {
            return reached;
        }
    }
}

/// Returns the groups of modules that reach each other.
fn mutual<'a>(reached: &Targets<'a>) -> Vec<Vec<&'a str>> {
    let mut groups = Vec::new();
    let mut left: BTreeSet<&str> = reached.keys().copied().collect();
    while let Some(first) = left.pop_first() {
        let reach_each_other =
            |other: &&str| reached[first].contains(other) && reached[other].contains(first);
        let others: Vec<&str> = left.iter().copied().filter(reach_each_other).collect();
        if !others.is_empty() {
            left.retain(|other| !others.contains(other));
            groups.push([vec![first], others].concat());
        }
    }
    groups
}
