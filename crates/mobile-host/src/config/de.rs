//! Deserializes the merged tree of configuration values into the type that the caller wants.
//!
//! serde passes the names of a struct's fields to the deserializer, so unknown keys are detected,
//! and the nearest known key suggested, without a separate list of names.

use std::collections::btree_map;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::node::{Node, Value};

/// The reason why a configuration cannot be used, with its place: file and line, or variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    message: String,
    /// The name of a missing key, for a message that is still to be completed with the table that
    /// lacks the key; `None` if the message is complete or the error is another.
    missing: Option<&'static str>,
    /// Whether the message already names the place of the error, such as file and line.
    has_origin: bool,
}

impl ConfigError {
    /// Creates an error for a check beyond the names and types of keys; `message` is shown
    /// unchanged.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), missing: None, has_origin: true }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

impl de::Error for ConfigError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), missing: None, has_origin: false }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let advice = match nearest(variant, expected) {
            Some(name) => format!("did you mean `{name}`?"),
            None => {
                let names: Vec<_> = expected.iter().map(|name| format!("`{name}`")).collect();
                format!("known values are {}", names.join(", "))
            }
        };
        Self::custom(format!("unknown value `{variant}`; {advice}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self { message: String::new(), missing: Some(field), has_origin: false }
    }
}

pub(super) fn deserialize<T: DeserializeOwned>(root: &Node) -> Result<T, ConfigError> {
    T::deserialize(NodeAt { node: root, path: "" })
}

/// A node of the configuration tree, with the path of keys from the root to it (empty at the root).
#[derive(Clone, Copy)]
struct NodeAt<'a> {
    node: &'a Node,
    path: &'a str,
}

impl NodeAt<'_> {
    /// Returns the node's name for an error message, such as `[relay] endpoint: `.
    fn label(&self) -> String {
        match self.path.split_once('.') {
            _ if self.path.is_empty() => String::new(),
            None => format!("[{}]: ", self.path),
            Some((section, key)) => format!("[{section}] {key}: "),
        }
    }

    /// Adds the node's origin (file and line, or variable) to the message of an error, unless
    /// the message already names the origin of a nested node.
    fn with_origin(&self, error: ConfigError) -> ConfigError {
        let origin = self.node.origin.as_str();
        match error.missing {
            _ if error.has_origin => error,
            Some(field) if self.path.is_empty() => {
                ConfigError::new(format!("{origin}: the section [{field}] is missing"))
            }
            Some(field) => ConfigError::new(format!("{origin}: [{}] needs the key `{field}`", self.path)),
            None => ConfigError::new(format!("{origin}: {}{}", self.label(), error.message)),
        }
    }

    fn refuse_unknown(&self, fields: &'static [&'static str]) -> Result<(), ConfigError> {
        let Value::Table(table) = &self.node.value else { return Ok(()) };
        let Some((key, node)) = table.iter().find(|(key, _)| !fields.contains(&key.as_str())) else {
            return Ok(());
        };
        let section = self.path.is_empty() && matches!(node.value, Value::Table(_));
        let quoted = |name: &str| if section { format!("[{name}]") } else { format!("`{name}`") };
        let what = if section { "section" } else { "key" };
        let inside = if self.path.is_empty() { String::new() } else { format!(" in [{}]", self.path) };
        let advice = match nearest(key, fields) {
            Some(name) => format!("did you mean {}?", quoted(name)),
            None => {
                let names: Vec<_> = fields.iter().map(|name| quoted(name)).collect();
                format!("known {what}s are {}", names.join(", "))
            }
        };
        let origin = node.origin.as_str();
        Err(ConfigError::new(format!("{origin}: unknown {what} {}{inside}; {advice}", quoted(key))))
    }
}

/// Returns the known name that is most similar to `key`, if it may be a misspelling.
///
/// A Jaro similarity of 0.8 accepts a dropped, doubled or swapped letter and a missing underscore,
/// and rejects names that only begin alike.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let similarity = |name: &str| strsim::jaro(key, name);
    let best = known.iter().copied().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(best) >= 0.8).then_some(best)
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
            match &self.node.value {
                Value::Untyped(text) => {
                    let parsed = match text.strip_prefix("0x") {
                        Some(hex) => <$type>::from_str_radix(hex, 16),
                        None => text.parse::<$type>(),
                    };
                    let number = parsed.map_err(|_| {
                        self.with_origin(de::Error::invalid_value(de::Unexpected::Str(text), &visitor))
                    });
                    visitor.$visit(number?)
                }
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for NodeAt<'_> {
    type Error = ConfigError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let outcome = match &self.node.value {
            Value::Table(table) => {
                visitor.visit_map(TableAccess { table: table.iter(), next: None, path: self.path })
            }
            Value::List(list) => visitor.visit_seq(ListAccess { list: list.iter(), path: self.path }),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) | Value::Untyped(text) => visitor.visit_str(text),
        };
        outcome.map_err(|error| self.with_origin(error))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        self.refuse_unknown(fields)?;
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        let outcome = match &self.node.value {
            Value::Text(text) | Value::Untyped(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            _ => Err(de::Error::custom("expected a single word")),
        };
        outcome.map_err(|error| self.with_origin(error))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let Value::Untyped(text) = &self.node.value else { return self.deserialize_any(visitor) };
        match text.parse() {
            Ok(value) => visitor.visit_bool(value),
            Err(_) => Err(self.with_origin(de::Error::custom("expected `true` or `false`"))),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let Value::Untyped(text) = &self.node.value else { return self.deserialize_any(visitor) };
        let items: Vec<_> = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| Node { value: Value::Untyped(item.to_owned()), origin: self.node.origin.clone() })
            .collect();
        visitor
            .visit_seq(ListAccess { list: items.iter(), path: self.path })
            .map_err(|error| self.with_origin(error))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let Value::Untyped(text) = &self.node.value else { return self.deserialize_any(visitor) };
        match text.parse() {
            Ok(value) => visitor.visit_f64(value),
            Err(_) => Err(self.with_origin(de::Error::custom("expected a number"))),
        }
    }

    integers!(
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64
    );

    forward_to_deserialize_any! {
        i128 u128 f32 char str string bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any
    }
}

/// Iterates over the entries of a configuration table for serde.
struct TableAccess<'a> {
    table: btree_map::Iter<'a, String, Node>,
    next: Option<(&'a str, &'a Node)>,
    path: &'a str,
}

impl<'de> de::MapAccess<'de> for TableAccess<'_> {
    type Error = ConfigError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ConfigError> {
        self.next = self.table.next().map(|(key, node)| (key.as_str(), node));
        self.next.map(|(key, _)| seed.deserialize(key.into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ConfigError> {
        let (key, node) =
            self.next.take().ok_or_else(|| ConfigError::new("a value was read before its key"))?;
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        seed.deserialize(NodeAt { node, path: &path })
    }
}

/// Iterates over the items of a list in the configuration for serde.
struct ListAccess<'a> {
    list: std::slice::Iter<'a, Node>,
    path: &'a str,
}

impl<'de> de::SeqAccess<'de> for ListAccess<'_> {
    type Error = ConfigError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ConfigError> {
        let path = self.path;
        self.list.next().map(|node| seed.deserialize(NodeAt { node, path })).transpose()
    }
}

/// Returns the names of a struct's fields; returns none if `T` is not a struct.
pub(super) fn field_names<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // The probe records the names and then always fails.
    let _ = T::deserialize(FieldNameProbe(&mut names));
    names
}

struct FieldNameProbe<'a>(&'a mut &'static [&'static str]);

impl<'de> de::Deserializer<'de> for FieldNameProbe<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(de::Error::custom("the probe has recorded the field names"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
