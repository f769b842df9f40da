//! Checks the list of functions that a packet passes, in docs/understand/architecture.md.

use anyhow::{Context as _, Result, bail, ensure};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;

use super::sources;

/// The page with the numbered list of functions.
const PAGE: &str = "docs/understand/architecture.md";

/// The number of functions in the list.
const STEPS: usize = 10;

/// The sign after a function that calls the next one.
const CALLS: char = '→';

/// One function of the list.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    function: String,
    file: String,
    calls_next: bool,
}

/// Checks that every function of the list exists in its file, and calls the next one where the list
/// says so.
pub(super) fn check() -> Result<()> {
    let pages = sources::tracked("md")?;
    let page = pages.iter().find(|page| page.name == PAGE).with_context(|| format!("{PAGE} is missing"))?;
    let steps = steps(&page.text);
    ensure!(
        steps.len() == STEPS,
        "{PAGE} names {} functions on the path of a packet, not {STEPS}",
        steps.len()
    );
    let files = sources::tracked("rs")?;
    follow(&steps, |name| files.iter().find(|file| file.name == name).map(|file| file.text.as_str()))
}

/// Returns the numbered lines of the form "1. `function` (file) …".
fn steps(text: &str) -> Vec<Step> {
    let step = |line: &str| {
        let (number, rest) = line.split_once(". `")?;
        number.parse::<usize>().ok()?;
        let (function, rest) = rest.split_once("` (")?;
        let (file, rest) = rest.split_once(')')?;
        let calls_next = rest.ends_with(CALLS);
        Some(Step { function: function.to_owned(), file: file.to_owned(), calls_next })
    };
    text.lines().filter_map(step).collect()
}

fn follow<'a>(steps: &[Step], source: impl Fn(&str) -> Option<&'a str>) -> Result<()> {
    for (at, Step { function, file, calls_next }) in steps.iter().enumerate() {
        let text = source(file).with_context(|| format!("{PAGE}: there is no file {file}"))?;
        let tree = syn::parse_file(text).with_context(|| format!("cannot parse {file}"))?;
        let mut finder = Finder { function, called: None };
        finder.visit_file(&tree);
        let Some(called) = finder.called else { bail!("{PAGE}: {file} has no function {function}") };
        if *calls_next {
            let next = steps.get(at + 1).with_context(|| format!("{PAGE}: nothing follows {function}"))?;
            ensure!(
                called.contains(&next.function),
                "{PAGE}: {function} in {file} does not call {}",
                next.function
            );
        }
    }
    Ok(())
}

/// Finds a function by its name, and the names of the functions that it calls.
struct Finder<'a> {
    function: &'a str,
    called: Option<Vec<String>>,
}

impl Finder<'_> {
    fn look_at(&mut self, signature: &syn::Signature, body: &syn::Block) {
        if signature.ident == self.function {
            let mut names = Names(Vec::new());
            names.visit_block(body);
            self.called.get_or_insert_default().extend(names.0);
        }
    }
}

impl<'a> Visit<'a> for Finder<'_> {
    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        self.look_at(&item.sig, &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.look_at(&item.sig, &item.block);
    }
}

/// The names of the functions and methods that are called.
struct Names(Vec<String>);

impl<'a> Visit<'a> for Names {
    fn visit_expr_method_call(&mut self, call: &'a syn::ExprMethodCall) {
        self.0.push(call.method.to_string());
        syn::visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_call(&mut self, call: &'a syn::ExprCall) {
        if let syn::Expr::Path(path) = &*call.func {
            self.0.extend(path.path.segments.last().map(|segment| segment.ident.to_string()));
        }
        syn::visit::visit_expr_call(self, call);
    }

    fn visit_macro(&mut self, mac: &'a syn::Macro) {
        self.add_tokens(mac.tokens.clone());
    }
}

impl Names {
    fn add_tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Ident(name) => self.0.push(name.to_string()),
                TokenTree::Group(group) => self.add_tokens(group.stream()),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "Text.\n\n1. `read` (a.rs) reads it. →\n2. `put` (b.rs) queues it.\n";

    fn followed(a: &str, b: &str) -> String {
        let source = |name: &str| match name {
            "a.rs" => Some(a),
            "b.rs" => Some(b),
            _ => None,
        };
        follow(&steps(LIST), source).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_function_that_is_gone_or_calls_another_is_found() {
        assert_eq!(followed("fn read() { queue.put(1) }", "impl Queue { fn put(&self) {} }"), "");
        assert_eq!(followed("fn read() { select!(a => put(1)) }", "fn put() {}"), "");
        let gone = followed("fn read() { queue.put(1) }", "fn push() {}");
        assert!(gone.ends_with("b.rs has no function put"), "{gone}");
        let other = followed("fn read() { queue.push(1) } fn more() { put() }", "fn put() {}");
        assert!(other.ends_with("read in a.rs does not call put"), "{other}");
    }
}
