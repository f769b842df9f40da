//! Merges the sources of the configuration (file, environment and defaults) into one tree, in which
//! each node records the origin of its value.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// The beginning of the origin of a value from the environment.
const VARIABLE: &str = "environment variable";

/// The origin of a value: `FILE:LINE`, an environment variable, or the file alone for a default.
#[derive(Debug, Clone)]
pub(super) struct Origin(Rc<str>);

impl Origin {
    pub(super) fn new(text: String) -> Self {
        Self(text.into())
    }

    pub(super) fn variable(name: &str) -> Self {
        Self::new(format!("{VARIABLE} {name}"))
    }

    fn is_variable(&self) -> bool {
        self.0.starts_with(VARIABLE)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A value of the configuration and its origin.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

#[derive(Debug)]
pub(super) enum Value {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    /// Text from the environment or a default; the deserializer parses it as the type of the target
    /// field.
    Untyped(String),
    /// A word of the file that is not TOML, because its quotes are missing: `fifo`, `24h` or `no`.
    Bare(String),
}

/// Formats a value as it is written in the file, except for lists and tables.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(_) => f.write_str("a table"),
            Self::List(_) => f.write_str("a list"),
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(text) | Self::Untyped(text) => write!(f, "{text:?}"),
            Self::Bare(text) => f.write_str(text),
        }
    }
}

impl Node {
    /// Parses a TOML document; `file` is the name of the document in error messages.
    ///
    /// A word without quotes becomes [`Value::Bare`], so that the error for it can name the
    /// accepted values.
    pub(super) fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let (document, errors) = DeTable::parse_recoverable(text);
        let source = Source { file, text, errors: &errors, bare: RefCell::default() };
        let root = source.table(document.get_ref(), Origin::new(file.to_owned()))?;
        // Errors come in the order of the document: report the first that is not in a bare word.
        let bare = source.bare.borrow();
        let is_bare = |at: usize| bare.iter().any(|word| (word.start..=word.end).contains(&at));
        let is_other = |error: &&toml::de::Error| !error.span().is_some_and(|span| is_bare(span.start));
        let Some(error) = errors.iter().find(is_other) else { return Ok(root) };
        let origin = match error.span() {
            Some(span) => source.origin(span.start),
            None => Origin::new(file.to_owned()),
        };
        Err(ConfigError::new(format!("{}: {}", origin.as_str(), error.message().replace('\n', "; "))))
    }

    /// Sets the value at the path `keys`, creating missing tables along the path.
    pub(super) fn set(&mut self, keys: &[&str], text: String, origin: &Origin) {
        let Some((first, rest)) = keys.split_first() else {
            *self = Self { value: Value::Untyped(text), origin: origin.clone() };
            return;
        };
        if !matches!(self.value, Value::Table(_)) {
            *self = Self { value: Value::Table(BTreeMap::new()), origin: origin.clone() };
        }
        let Value::Table(table) = &mut self.value else { return };
        let child = table
            .entry((*first).to_owned())
            .or_insert_with(|| Self { value: Value::Table(BTreeMap::new()), origin: origin.clone() });
        child.set(rest, text, origin);
    }

    /// Sets the value at the path `keys`, unless there is one.
    pub(super) fn set_missing(&mut self, keys: &[&str], text: String, origin: &Origin) {
        match (keys.split_first(), &mut self.value) {
            (Some((first, rest)), Value::Table(table)) if table.contains_key(*first) => {
                if let Some(child) = table.get_mut(*first) {
                    child.set_missing(rest, text, origin);
                }
            }
            (Some(_), Value::Table(_)) => self.set(keys, text, origin),
            _ => {}
        }
    }

    /// Returns the origin of the setting that a message names as `[section] key`; that of the whole
    /// tree if the message names none that is set.
    pub(super) fn origin_of(&self, message: &str) -> &Origin {
        let named = message.split_once('[').and_then(|(_, rest)| rest.split_once("] "));
        let section = named.and_then(|(section, keys)| Some((self.table()?.get(section)?.table()?, keys)));
        let Some((section, keys)) = section else { return &self.origin };
        let words = keys.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let mut origins = words.filter_map(|word| section.get(word)).map(|node| &node.origin);
        let Some(first) = origins.next() else { return &self.origin };
        if first.is_variable() { first } else { origins.find(|origin| origin.is_variable()).unwrap_or(first) }
    }

    fn table(&self) -> Option<&BTreeMap<String, Self>> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }
}

struct Source<'a> {
    file: &'a str,
    text: &'a str,
    errors: &'a [toml::de::Error],
    /// The places of the words that became [`Value::Bare`].
    bare: RefCell<Vec<Range<usize>>>,
}

impl Source<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(offset);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        Origin::new(format!("{}:{line}", self.file))
    }

    /// Returns the text of a value that is not TOML because its quotes are missing.
    fn bare_word(&self, place: Range<usize>) -> Option<String> {
        let word = self.text.get(place.clone())?;
        let failed = |error: &toml::de::Error| {
            error.span().is_some_and(|span| (place.start..=place.end).contains(&span.start))
        };
        if word.is_empty() || word.starts_with(['"', '\'', '[', '{']) || !self.errors.iter().any(failed) {
            return None;
        }
        let word = word.to_owned();
        self.bare.borrow_mut().push(place);
        Some(word)
    }

    fn table(&self, table: &DeTable<'_>, origin: Origin) -> Result<Node, ConfigError> {
        let mut children = BTreeMap::new();
        for (key, value) in table {
            let child = self.node(value, self.origin(key.span().start))?;
            children.insert(key.get_ref().to_string(), child);
        }
        Ok(Node { value: Value::Table(children), origin })
    }

    fn node(&self, spanned: &Spanned<DeValue<'_>>, origin: Origin) -> Result<Node, ConfigError> {
        let unfit = |what: &str| ConfigError::new(format!("{}: {what}", origin.as_str()));
        if let Some(word) = self.bare_word(spanned.span()) {
            return Ok(Node { value: Value::Bare(word), origin });
        }
        let value = match spanned.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(integer) => {
                let parsed = i64::from_str_radix(integer.as_str(), integer.radix());
                Value::Integer(parsed.map_err(|_| unfit("this number is too large"))?)
            }
            DeValue::Float(float) => {
                Value::Float(float.as_str().parse().map_err(|_| unfit("this number cannot be read"))?)
            }
            DeValue::Boolean(boolean) => Value::Bool(*boolean),
            DeValue::Datetime(datetime) => Value::Text(datetime.to_string()),
            DeValue::Array(array) => {
                let item = |item: &Spanned<DeValue<'_>>| self.node(item, self.origin(item.span().start));
                Value::List(array.iter().map(item).collect::<Result<_, _>>()?)
            }
            DeValue::Table(table) => return self.table(table, origin),
        };
        Ok(Node { value, origin })
    }
}
