//! Which module imports which: circles between the modules of one folder, and imports of a crate
//! from a crate that is not below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Attribute, ItemMod, ItemUse, Macro, UseTree};

use super::sources::{self, File};

/// The crates, those that import nothing of the workspace first. A crate may import from the crates
/// of the lines above its own.
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

/// One module that names an item of another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    /// The name of the file that the import is in.
    file: String,
    /// The importing module and the imported item, from the root of their crate.
    from: Vec<String>,
    to: Vec<String>,
}

/// What one file imports.
#[derive(Default)]
struct Paths {
    /// The module that is visited.
    module: Vec<String>,
    /// The importing module and the path, as it is written.
    found: Vec<(Vec<String>, Vec<String>)>,
}

/// Fails if modules import each other in a circle, or a crate from one that is not below it.
pub(super) fn check() -> Result<()> {
    let mut problems = Vec::new();
    for (folder, circle) in circles(&crates()?)? {
        problems.push(format!("{folder}: the modules {} import each other:", circle.modules.join(", ")));
        problems.extend(circle.imports);
    }
    problems.extend(upward(&sources::tracked("rs")?)?);
    if !problems.is_empty() {
        bail!("imports (xtask/src/lint/imports.rs):\n{}", problems.join("\n"));
    }
    Ok(())
}

/// Returns the picture of the modules below the root of each crate: one line each, with the modules
/// of the same crate that it imports.
pub(super) fn picture() -> Result<String> {
    let mut text = String::new();
    for (name, files) in crates()? {
        let _ = writeln!(text, "{name}");
        let Some((_, arrows)) =
            folders(&imports(&name, &files)?).into_iter().find(|(folder, _)| folder.is_empty())
        else {
            continue;
        };
        let mut targets: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (from, to, _) in &arrows {
            targets.entry(from).or_default().insert(to);
        }
        for (from, to) in targets {
            let _ = writeln!(text, "    {from} -> {}", to.into_iter().collect::<Vec<_>>().join(", "));
        }
    }
    for (folder, circle) in circles(&crates()?)? {
        let _ = writeln!(text, "circle in {folder}: {}", circle.modules.join(", "));
    }
    Ok(text)
}

/// Returns the sources of each crate, by the crate's folder.
fn crates() -> Result<Vec<(String, Vec<File>)>> {
    let mut files: BTreeMap<String, Vec<File>> = BTreeMap::new();
    for file in sources::tracked("rs")? {
        if let Some((name, _)) = file.name.split_once("/src/") {
            files.entry(name.to_owned()).or_default().push(file);
        }
    }
    Ok(files.into_iter().collect())
}

/// Returns the path of the module in a file below `src`; none for tests and other programs.
fn module_of(file: &str) -> Option<Vec<String>> {
    let (_, inside) = file.split_once("/src/")?;
    let path = inside.strip_suffix(".rs")?;
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    if module.iter().any(|name| name == "tests" || name == "bin") {
        return None;
    }
    if module
        .last()
        .is_some_and(|name| name == "mod" || module.len() == 1 && (name == "lib" || name == "main"))
    {
        module.pop();
    }
    Some(module)
}

/// Returns the imports between the modules of one crate.
fn imports(name: &str, files: &[File]) -> Result<BTreeSet<Import>> {
    let modules: BTreeSet<Vec<String>> = files.iter().filter_map(|file| module_of(&file.name)).collect();
    let mut found = BTreeSet::new();
    for file in files {
        let Some(module) = module_of(&file.name) else { continue };
        for (from, path) in paths(file, module)? {
            let Some(path) = absolute(&from, &path, name) else { continue };
            // The item is in the deepest module of that name.
            let depth = (0..=path.len()).rev().find(|&depth| modules.contains(&path[..depth]));
            let to = path[..depth.unwrap_or_default()].to_vec();
            found.insert(Import { file: file.name.clone(), from, to });
        }
    }
    Ok(found)
}

/// Returns the importing module and the path of everything that a file outside its tests names.
fn paths(file: &File, module: Vec<String>) -> Result<Vec<(Vec<String>, Vec<String>)>> {
    let tree = syn::parse_file(&file.text).with_context(|| format!("cannot parse {}", file.name))?;
    let mut paths = Paths { module, found: Vec::new() };
    paths.visit_file(&tree);
    Ok(paths.found)
}

/// Returns a path from the root of the crate; none for the path of another crate.
fn absolute(module: &[String], path: &[String], crate_name: &str) -> Option<Vec<String>> {
    let mut root = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" | "super" => module.to_vec(),
        name if crate_name.rsplit('/').next().is_some_and(|own| own.replace('-', "_") == name) => Vec::new(),
        _ => return None,
    };
    let rest = path.iter().skip_while(|name| {
        match name.as_str() {
            "super" => drop(root.pop()),
            "crate" | "self" => {}
            _ => return false,
        }
        true
    });
    let rest: Vec<String> = rest.cloned().collect();
    root.extend(rest);
    Some(root)
}

/// The imports between the modules of one folder: importing module, imported module, file.
type Arrows = Vec<(String, String, String)>;

/// Sorts imports by the folder in which importing and imported module are two different entries.
/// A module and what is below it are one entry, so that imports from a parent count nowhere.
fn folders(imports: &BTreeSet<Import>) -> BTreeMap<Vec<String>, Arrows> {
    let mut folders: BTreeMap<Vec<String>, Arrows> = BTreeMap::new();
    for Import { file, from, to } in imports {
        let shared = from.iter().zip(to).take_while(|(from, to)| from == to).count();
        if let (Some(one), Some(other)) = (from.get(shared), to.get(shared)) {
            let arrow = (one.clone(), other.clone(), file.clone());
            folders.entry(from[..shared].to_vec()).or_default().push(arrow);
        }
    }
    folders
}

/// Modules of one folder that import each other.
struct Circle {
    modules: Vec<String>,
    /// The imports between these modules, one a line with the file.
    imports: Vec<String>,
}

/// Returns every circle with the folder that it is in.
fn circles(crates: &[(String, Vec<File>)]) -> Result<Vec<(String, Circle)>> {
    let mut found = Vec::new();
    for (name, files) in crates {
        for (folder, arrows) in folders(&imports(name, files)?) {
            let reached = reachable(&arrows);
            let mut modules: Vec<&String> = reached.keys().copied().collect();
            while let Some(first) = modules.pop() {
                let is_in = |other: &&&String| {
                    reached[first].contains(**other)
                        && reached.get(**other).is_some_and(|back| back.contains(first))
                };
                let mut circle: Vec<String> =
                    modules.iter().filter(is_in).map(|name| (*name).clone()).collect();
                if circle.is_empty() {
                    continue;
                }
                circle.push(first.clone());
                modules.retain(|name| !circle.contains(name));
                let within =
                    arrows.iter().filter(|(from, to, _)| circle.contains(from) && circle.contains(to));
                let imports =
                    within.map(|(from, to, file)| format!("    {from} -> {to} in {file}")).collect();
                found.push((format!("{name}/src/{}", folder.join("/")), Circle { modules: circle, imports }));
            }
        }
    }
    Ok(found)
}

/// Returns the modules that each module imports, directly or through others.
fn reachable(arrows: &Arrows) -> BTreeMap<&String, BTreeSet<&String>> {
    let mut reached: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
    for (from, to, _) in arrows {
        reached.entry(from).or_default().insert(to);
    }
    loop {
        let mut grew = false;
        let names: Vec<&String> = reached.keys().copied().collect();
        for name in names {
            let next: Vec<&String> =
                reached[name].iter().filter_map(|next| reached.get(*next)).flatten().copied().collect();
            let Some(known) = reached.get_mut(name) else { continue };
            for next in next {
                grew |= known.insert(next);
            }
        }
        if !grew {
            return reached;
        }
    }
}

/// Returns the imports of a crate from one that is not below it, one a line.
fn upward(files: &[File]) -> Result<Vec<String>> {
    let level = |name: &str| {
        LAYERS.iter().position(|layer| {
            layer.iter().any(|dir| {
                *dir == name
                    || dir.rsplit('/').next().is_some_and(|last| {
                        last.replace('-', "_") == name || name == "mobile_tests" && last == "tests"
                    })
            })
        })
    };
    let mut found = Vec::new();
    for file in files {
        let Some(dir) = LAYERS
            .iter()
            .flat_map(|layer| layer.iter())
            .find(|dir| file.name.starts_with(&format!("{dir}/")))
        else {
            if !file.name.starts_with("fuzz/") {
                found.push(format!("    {}: its crate is in no layer", file.name));
            }
            continue;
        };
        let own = dir.rsplit('/').next().unwrap_or_default().replace('-', "_");
        let own_names = [own.as_str(), if own == "tests" { "mobile_tests" } else { &own }];
        for (_, path) in paths(file, Vec::new())? {
            let Some(name) = path.first() else { continue };
            if own_names.contains(&name.as_str()) || !name.starts_with("mobile_") && name != "libmobile" {
                continue;
            }
            if let Some(there) = level(name)
                && level(dir).is_none_or(|here| there >= here)
            {
                found.push(format!("    {dir} -> {name} in {}", file.name));
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

impl Paths {
    fn add(&mut self, path: &[String]) {
        self.found.push((self.module.clone(), path.to_vec()));
    }

    fn add_tree(&mut self, parents: &[String], tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                let parents = [parents, &[path.ident.to_string()]].concat();
                self.add_tree(&parents, &path.tree);
            }
            UseTree::Name(name) => self.add(&[parents, &[name.ident.to_string()]].concat()),
            UseTree::Rename(name) => self.add(&[parents, &[name.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.add(parents),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(parents, tree)),
        }
    }

    /// Adds the paths among the arguments of a macro.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut colons) = (Vec::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.add(&path);
                        path.clear();
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.add(&path);
                    path.clear();
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream());
                    }
                }
            }
        }
        self.add(&path);
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

impl<'a> Visit<'a> for Paths {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            _ => return syn::visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        self.module.push(item.ident.to_string());
        syn::visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&names);
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'a Macro) {
        self.add_tokens(mac.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> File {
        File { name: name.to_owned(), text: text.to_owned() }
    }

    fn circles_of(files: Vec<File>) -> Vec<(String, Vec<String>)> {
        let found = circles(&[("house".to_owned(), files)]).expect("sources");
        found.into_iter().map(|(folder, circle)| (folder, circle.modules)).collect()
    }

    #[test]
    fn a_circle_is_found_in_use_lines_paths_and_macros() {
        for seed in [
            "use crate::hall::Door;",
            "fn a() { crate::hall::open() }",
            "fn a() { info!(\"{}\", crate::hall::open()) }",
            "use super::{x, hall::{Door, Key}};",
        ] {
            let files = vec![
                file("house/src/main.rs", "mod hall; mod kitchen; use hall::Door;"),
                file("house/src/hall.rs", "use crate::kitchen::stove::Pan; mod key;"),
                file("house/src/hall/key.rs", "use super::Lock;"),
                file("house/src/kitchen.rs", "mod stove;"),
                file("house/src/kitchen/stove.rs", seed.replace("super::{", "super::super::{").as_str()),
            ];
            let modules = vec!["hall".to_owned(), "kitchen".to_owned()];
            assert_eq!(circles_of(files), [("house/src/".to_owned(), modules)], "{seed}");
        }
    }

    #[test]
    fn tests_parents_and_children_make_no_circle() {
        let files = vec![
            file("house/src/lib.rs", "pub mod hall; pub mod kitchen;"),
            file("house/src/hall.rs", "mod key; use crate::kitchen::Pan; use key::Key;"),
            file("house/src/hall/key.rs", "use super::Lock; use crate::Address;"),
            file("house/src/kitchen.rs", "pub struct Pan; #[cfg(test)] mod tests { use crate::hall::Door; }"),
            file("house/src/kitchen/tests.rs", "use crate::hall::Door;"),
        ];
        assert_eq!(circles_of(files), []);
    }

    #[test]
    fn an_import_from_a_crate_that_is_not_below_is_found() {
        let text = "use mobile_host::log; fn a() { warn!(error = mobile_transport::tun::name()) }";
        let up = ["    crates/mobile-host -> mobile_transport in crates/mobile-host/src/log.rs"];
        assert_eq!(upward(&[file("crates/mobile-host/src/log.rs", text)]).expect("sources"), up);
        assert_eq!(upward(&[file("home-relay/src/main.rs", text)]).expect("sources"), [""; 0]);
        let lone = upward(&[file("crates/shed/src/lib.rs", "")]).expect("sources");
        assert_eq!(lone, ["    crates/shed/src/lib.rs: its crate is in no layer"]);
    }
}
