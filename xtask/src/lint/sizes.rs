//! Checks the sizes of files, functions and types. A larger item needs a reason beside it: a line
//! comment that begins with [`REASON`], above the item or in the first lines of the file.

use anyhow::{Context as _, Result, bail};
use syn::visit::Visit;

use super::bounds::{FILE_LINES, FUNCTION_LINES, TYPE_FIELDS};
use super::sources::{self, File};

/// The beginning of a comment that says why an item is larger than its bound.
const REASON: &str = "// Larger than the bound:";

/// Fails if a file, function or type exceeds its bound without a reason beside it.
pub(super) fn check() -> Result<()> {
    let mut found = Vec::new();
    for file in sources::tracked("rs")? {
        found.extend(oversized(&file)?);
    }
    if !found.is_empty() {
        bail!(
            "larger than their bounds (xtask/src/lint/bounds.rs), without a comment `{REASON} …`:\n{}",
            found.join("\n")
        );
    }
    Ok(())
}

/// Returns the items of a file that are larger than their bounds without a reason, one a line.
fn oversized(file: &File) -> Result<Vec<String>> {
    let lines: Vec<&str> = file.text.lines().collect();
    let mut items = Items { file: &file.name, lines: &lines, found: Vec::new() };
    let reason_in_head = lines
        .iter()
        .take_while(|line| line.starts_with("//") || line.is_empty())
        .any(|line| line.starts_with(REASON));
    if lines.len() > FILE_LINES && !reason_in_head {
        items.found.push(format!("    {}: {} lines", file.name, lines.len()));
    }
    let tree = syn::parse_file(&file.text).with_context(|| format!("cannot parse {}", file.name))?;
    items.visit_file(&tree);
    Ok(items.found)
}

/// Finds the items of a file that are larger than their bounds.
struct Items<'a> {
    file: &'a str,
    lines: &'a [&'a str],
    found: Vec<String>,
}

impl Items<'_> {
    /// Returns whether the comments and attributes above a line hold a reason.
    fn has_reason(&self, line: usize) -> bool {
        self.lines[..line.saturating_sub(1)]
            .iter()
            .rev()
            .map(|line| line.trim_start())
            .take_while(|line| line.starts_with("//") || line.starts_with('#'))
            .any(|line| line.starts_with(REASON))
    }

    fn add(&mut self, number: usize, bound: usize, what: &str, name: &syn::Ident) {
        let line = name.span().start().line;
        if number > bound && !self.has_reason(line) {
            self.found.push(format!("    {}:{line}: {name} has {number} {what}", self.file));
        }
    }

    fn add_function(&mut self, signature: &syn::Signature, body: &syn::Block) {
        // Without the lines of the braces.
        let body = body.brace_token.span.close().start().line - body.brace_token.span.open().start().line;
        self.add(body.saturating_sub(1), FUNCTION_LINES, "lines", &signature.ident);
    }
}

impl<'a> Visit<'a> for Items<'_> {
    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        self.add_function(&item.sig, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.add_function(&item.sig, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_struct(&mut self, item: &'a syn::ItemStruct) {
        self.add(item.fields.len(), TYPE_FIELDS, "fields", &item.ident);
        syn::visit::visit_item_struct(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        oversized(&File { name: "a.rs".to_owned(), text: text.to_owned() }).expect("a file")
    }

    #[test]
    fn what_is_too_large_is_found_unless_a_reason_is_beside_it() {
        let long = format!("fn f() {{\n{}}}\n", "g();\n".repeat(FUNCTION_LINES + 1));
        assert_eq!(found(&long), [format!("    a.rs:1: f has {} lines", FUNCTION_LINES + 1)]);
        assert_eq!(found(&format!("{REASON} a table.\n#[inline]\n{long}")), [""; 0]);
        assert_eq!(found(&format!("fn f() {{\n{}}}\n", "g();\n".repeat(FUNCTION_LINES))), [""; 0]);

        let wide = format!("struct S({});\n", "u8, ".repeat(TYPE_FIELDS + 1));
        assert_eq!(found(&wide), [format!("    a.rs:1: S has {} fields", TYPE_FIELDS + 1)]);

        let file = format!("//! A file.\n{}", "use a;\n".repeat(FILE_LINES));
        assert_eq!(found(&file), [format!("    a.rs: {} lines", FILE_LINES + 1)]);
        assert_eq!(found(&format!("//! A file.\n\n{REASON} a table.\n{file}")).len(), 0);
    }
}
