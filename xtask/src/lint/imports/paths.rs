//! The paths that a source file names: in `use` items, in code and among the arguments of macros.

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Attribute, ItemMod, ItemUse, Macro, UseTree};

use crate::lint::sources::File;

/// Returns everything that a file names outside its tests: the module that names it, and the path
/// as it is written. `module` is the path of the file's own module.
pub(super) fn paths(file: &File, module: Vec<String>) -> Result<Vec<(Vec<String>, Vec<String>)>> {
    let tree = syn::parse_file(&file.text).with_context(|| format!("cannot parse {}", file.name))?;
    let mut paths = Paths { module, found: Vec::new() };
    paths.visit_file(&tree);
    Ok(paths.found)
}

/// Collects the paths of one file.
struct Paths {
    /// The module that is visited.
    module: Vec<String>,
    /// The naming module and the path.
    found: Vec<(Vec<String>, Vec<String>)>,
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

/// Returns whether an item is compiled for unit tests only.
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
