//! The list of what the programs say: log messages, errors and lines for the user, taken from the
//! syntax tree of the sources.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;
use syn::{Attribute, Expr, ExprCall, ExprMethodCall, ItemFn, ItemMod, Lit, LitStr, Macro};

use super::sources;
use crate::shell;

/// The file in which the list of messages is committed.
pub(crate) const FILE: &str = "docs/messages.txt";

/// The crates whose messages a user reads.
const CRATES: [&str; 8] = [
    "crates/libmobile/src/",
    "crates/mobile-control/src/",
    "crates/mobile-host/src/",
    "crates/mobile-netlink/src/",
    "crates/mobile-proto/src/",
    "crates/mobile-transport/src/",
    "home-relay/src/",
    "mobile-agent/src/",
];

/// The macros that have a message as an argument, each with the message's kind in the list.
const MACROS: [(&str, &str); 10] = [
    ("anyhow", "error"),
    ("bail", "error"),
    ("debug", "debug"),
    ("ensure", "error"),
    ("eprintln", "stderr"),
    ("error", "log error"),
    ("info", "info"),
    ("trace", "trace"),
    ("warn", "warn"),
    ("event", "log"),
];

/// Writes the list of messages to [`FILE`].
pub(crate) fn write() -> Result<()> {
    let path = shell::root().join(FILE);
    fs::write(&path, list()?).with_context(|| format!("cannot write {}", path.display()))
}

/// Returns the list of messages: one a line with its crate and kind, sorted.
pub(super) fn list() -> Result<String> {
    let mut found = BTreeSet::new();
    for file in sources::tracked("rs")? {
        let Some(dir) = CRATES.iter().find(|dir| file.name.starts_with(**dir)) else { continue };
        if file.name.contains("/tests/") || file.name.ends_with("/tests.rs") {
            continue;
        }
        let tree = syn::parse_file(&file.text).with_context(|| format!("cannot parse {}", file.name))?;
        let mut messages = Messages::default();
        messages.visit_file(&tree);
        let name = dir.trim_start_matches("crates/").trim_end_matches("/src/");
        found.extend(messages.0.into_iter().map(|(kind, text)| format!("{name}: {kind}: {text}\n")));
    }
    Ok(found.into_iter().collect())
}

/// The messages of one file, with their kinds.
#[derive(Default)]
struct Messages(BTreeSet<(&'static str, String)>);

impl Messages {
    fn add(&mut self, kind: &'static str, text: &LitStr) {
        let text = text.value().split_whitespace().collect::<Vec<_>>().join(" ");
        if text.chars().any(char::is_alphabetic) && text != "{error}" {
            self.0.insert((kind, text));
        }
    }

    /// Adds the first argument of a macro that is a string literal.
    fn add_argument(&mut self, kind: &'static str, arguments: TokenStream) {
        let mut is_start = true;
        for token in arguments {
            if is_start
                && let TokenTree::Literal(literal) = &token
                && let Ok(text) = syn::parse_str::<LitStr>(&literal.to_string())
            {
                return self.add(kind, &text);
            }
            is_start = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == ',');
        }
    }

    /// Adds the message of a macro in [`MACROS`], or the messages of the macros among its
    /// arguments, as in `select!`.
    fn add_macro(&mut self, name: &str, arguments: TokenStream) {
        if let Some((_, kind)) = MACROS.iter().find(|(macro_name, _)| *macro_name == name) {
            return self.add_argument(kind, arguments);
        }
        let (mut name, mut is_call) = (String::new(), false);
        for token in arguments {
            match token {
                TokenTree::Ident(ident) => (name, is_call) = (ident.to_string(), false),
                TokenTree::Punct(punct) => is_call = punct.as_char() == '!',
                TokenTree::Group(group) if is_call => self.add_macro(&name, group.stream()),
                TokenTree::Group(group) => self.add_macro("", group.stream()),
                TokenTree::Literal(_) => is_call = false,
            }
        }
    }

    /// Adds the text of an error that an expression makes: a string, `format!`, a conversion of
    /// one, or a closure that returns one.
    fn add_error(&mut self, expression: &Expr) {
        match expression {
            Expr::Lit(literal) => {
                if let Lit::Str(text) = &literal.lit {
                    self.add("error", text);
                }
            }
            Expr::Macro(call) if call.mac.path.is_ident("format") => {
                self.add_argument("error", call.mac.tokens.clone());
            }
            Expr::MethodCall(call) => self.add_error(&call.receiver),
            Expr::Closure(closure) => self.add_error(&closure.body),
            _ => {}
        }
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

impl<'a> Visit<'a> for Messages {
    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'a ItemFn) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }

    fn visit_attribute(&mut self, attribute: &'a Attribute) {
        if attribute.path().is_ident("error")
            && let Ok(list) = attribute.meta.require_list()
        {
            self.add_argument("error", list.tokens.clone());
        }
    }

    fn visit_macro(&mut self, mac: &'a Macro) {
        let name = mac.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        self.add_macro(&name, mac.tokens.clone());
    }

    fn visit_expr_method_call(&mut self, call: &'a ExprMethodCall) {
        if ["context", "with_context"].contains(&call.method.to_string().as_str())
            && let Some(argument) = call.args.first()
        {
            self.add_error(argument);
        }
        syn::visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_call(&mut self, call: &'a ExprCall) {
        if let (Expr::Path(function), Some(argument)) = (&*call.func, call.args.first())
            && function.path.is_ident("Err")
        {
            self.add_error(argument);
        }
        syn::visit::visit_expr_call(self, call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_and_those_of_tests_are_not() {
        let source = r#"
            #[derive(Error)]
            enum E { #[error("no {0}")] No(u8) }
            fn a() -> Result<(), String> {
                tokio::select! { () = wait => tracing::warn!(error = story(&e), "lost {}", 1) }
                tracing::info!(?addresses, "the relay assigns");
                ensure!(a == 1, "a is {a}");
                b().with_context(|| format!("cannot b {a}"))?;
                c().context("cannot c")?;
                if x { return Err("no x".to_owned()); }
                Err(format!("y {a}"))
            }
            #[cfg(test)]
            mod tests { fn a() { bail!("not this") } }
        "#;
        let mut messages = Messages::default();
        messages.visit_file(&syn::parse_file(source).expect("a file"));
        let found: Vec<_> = messages.0.iter().map(|(kind, text)| format!("{kind}: {text}")).collect();
        assert_eq!(
            found,
            [
                "error: a is {a}",
                "error: cannot b {a}",
                "error: cannot c",
                "error: no x",
                "error: no {0}",
                "error: y {a}",
                "info: the relay assigns",
                "warn: lost {}",
            ]
        );
    }
}
