//! Deserializes the merged tree of configuration values into the type that the caller wants.
//!
//! serde passes the expected type and the values of an enum to the deserializer, so an error names
//! the accepted values without a separate list.

use std::collections::btree_map;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::expected::{self, Expected};
use super::node::{Node, Value};
use crate::duration;

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

    /// Returns the error for a value that the target type does not accept; `form` says what to
    /// write.
    fn refused(&self, form: &str) -> ConfigError {
        self.with_origin(de::Error::custom(format!("{} is not accepted: write {form}", self.node.value)))
    }

    /// Passes a text to the visitor. A network is checked first, because its own error does not say
    /// what is wrong.
    fn visit_text<'de, V: Visitor<'de>>(
        &self,
        text: &str,
        expected: Expected,
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        match expected.network(text) {
            Some(Ok(network)) => visitor.visit_str(&network),
            Some(Err(error)) => Err(self.with_origin(de::Error::custom(error))),
            None => visitor.visit_str(text),
        }
    }

    /// Reads a duration. A number without a unit is seconds, as earlier versions wrote it.
    fn deserialize_duration<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let seconds = match &self.node.value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::Untyped(text) => text.parse().ok(),
            _ => None,
        };
        let Some(seconds) = seconds else { return self.deserialize_any(visitor) };
        tracing::warn!(
            "{}: {}{seconds} has no unit and is read as seconds: write \"{}\"",
            self.node.origin.as_str(),
            self.label(),
            duration::format_seconds(seconds)
        );
        visitor.visit_u64(seconds)
    }
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
                    match parsed {
                        Ok(number) => visitor.$visit(number),
                        Err(_) => self.deserialize_any(visitor),
                    }
                }
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for NodeAt<'_> {
    type Error = ConfigError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let expected = Expected::by(&visitor);
        let outcome = match &self.node.value {
            Value::Table(table) => {
                visitor.visit_map(TableAccess { table: table.iter(), next: None, path: self.path })
            }
            Value::List(list) => visitor.visit_seq(ListAccess { list: list.iter(), path: self.path }),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) | Value::Untyped(text) => self.visit_text(text, expected, visitor),
            Value::Bare(text) => self
                .visit_text(text, expected, visitor)
                .and_then(|_| Err(self.refused(&format!("\"{text}\", in quotes")))),
        };
        outcome.map_err(|error| match expected.form() {
            Some(form) if !error.has_origin && error.missing.is_none() => self.refused(form),
            _ => self.with_origin(error),
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        match name {
            duration::TYPE_NAME => self.deserialize_duration(visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        match &self.node.value {
            Value::Text(text) | Value::Untyped(text) if variants.contains(&text.as_str()) => {
                visitor.visit_enum(text.as_str().into_deserializer()).map_err(|error| self.with_origin(error))
            }
            _ => Err(self.refused(&expected::one_of(variants))),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let Value::Untyped(text) = &self.node.value else { return self.deserialize_any(visitor) };
        match text.parse() {
            Ok(value) => visitor.visit_bool(value),
            Err(_) => self.deserialize_any(visitor),
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
            Err(_) => self.deserialize_any(visitor),
        }
    }

    integers!(
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64
    );

    forward_to_deserialize_any! {
        i128 u128 f32 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier ignored_any
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
        let node = NodeAt { node, path: &path };
        seed.deserialize(node).map_err(|error| node.with_origin(error))
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
        let item = |node: NodeAt<'_>| seed.deserialize(node).map_err(|error| node.with_origin(error));
        self.list.next().map(|node| item(NodeAt { node, path })).transpose()
    }
}
