//! The names of the sections and keys of a configuration, as serde knows them from the fields of
//! the structs, and the errors for other names.

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::ConfigError;
use super::node::{Node, Value};

type Fields = &'static [&'static str];

/// The known sections of a configuration, and the known keys of each.
pub(super) struct Names(Vec<(&'static str, Fields)>);

impl Names {
    /// Returns the names of the fields of `T` and of the structs in these fields.
    pub(super) fn of<T: DeserializeOwned>() -> Self {
        let keys = |section| {
            let mut keys: Fields = &[];
            // A probe records the names and then always fails.
            let _ = T::deserialize(SectionProbe { section, keys: &mut keys });
            (section, keys)
        };
        let mut sections: Fields = &[];
        let _ = T::deserialize(FieldNameProbe(&mut sections));
        Self(sections.iter().map(|section| keys(section)).collect())
    }

    /// Checks the names of all sections and keys in `root`.
    pub(super) fn check(&self, root: &Node) -> Result<(), ConfigError> {
        let Value::Table(sections) = &root.value else { return Ok(()) };
        for (name, node) in sections {
            let origin = node.origin.as_str();
            match (&node.value, self.keys(name)) {
                (Value::Table(keys), Some(known)) => {
                    if let Some((key, node)) = keys.iter().find(|(key, _)| !known.contains(&key.as_str())) {
                        let (origin, advice) = (node.origin.as_str(), self.key_advice(key, known));
                        return Err(ConfigError::new(format!(
                            "{origin}: unknown key `{key}` in [{name}]; {advice}"
                        )));
                    }
                }
                (_, Some(_)) => {
                    let text =
                        format!("{origin}: [{name}] is a section: write its keys below a line `[{name}]`");
                    return Err(ConfigError::new(text));
                }
                (Value::Table(_), None) => {
                    let advice = self.section_advice(name);
                    return Err(ConfigError::new(format!("{origin}: unknown section [{name}]; {advice}")));
                }
                (_, None) => {
                    let advice = match self.sections_with(name).as_slice() {
                        [] => format!("known sections are {}", self.listed()),
                        sections => format!("move it below {}", sections.join(" or ")),
                    };
                    let text = format!("{origin}: the key `{name}` is in no section; {advice}");
                    return Err(ConfigError::new(text));
                }
            }
        }
        Ok(())
    }

    /// Splits the name of an environment variable into section and key: `MOBILE_RELAY_PUBLIC_KEY`
    /// becomes `("relay", "public_key")`. Returns `None` for a variable that has another prefix or
    /// begins with no section.
    ///
    /// # Errors
    /// When only the name of the section is misspelled.
    pub(super) fn split_variable(
        &self,
        variable: &str,
        prefix: &str,
    ) -> Result<Option<(&'static str, String)>, ConfigError> {
        let Some(rest) = variable.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')) else {
            return Ok(None);
        };
        let rest = rest.to_ascii_lowercase();
        let key_in = |(section, _): &(&'static str, Fields)| {
            let key = rest.strip_prefix(section)?.strip_prefix('_').filter(|key| !key.is_empty())?;
            Some((*section, key.to_owned()))
        };
        // If one section's name is the beginning of another's, the longer name wins.
        if let Some(found) = self.0.iter().filter_map(key_in).max_by_key(|(section, _)| section.len()) {
            return Ok(Some(found));
        }
        // Only a variable that also ends with a known key is taken for a misspelled setting,
        // because other programs have variables with the same prefix.
        for (at, _) in rest.match_indices('_') {
            let (section, key) = (&rest[..at], &rest[at + 1..]);
            let known = nearest(section, self.0.iter().map(|(name, _)| *name));
            let Some(known) = known.filter(|known| self.keys(known).unwrap_or(&[]).contains(&key)) else {
                continue;
            };
            let meant = format!("{prefix}_{}_{}", known.to_ascii_uppercase(), key.to_ascii_uppercase());
            return Err(ConfigError::new(format!(
                "environment variable {variable}: unknown section [{section}]; did you mean {meant}?"
            )));
        }
        Ok(None)
    }

    fn keys(&self, section: &str) -> Option<Fields> {
        self.0.iter().find(|(name, _)| *name == section).map(|(_, keys)| *keys)
    }

    /// Returns the sections that have a key, in brackets.
    fn sections_with(&self, key: &str) -> Vec<String> {
        let having = self.0.iter().filter(|(_, keys)| keys.contains(&key));
        having.map(|(name, _)| format!("[{name}]")).collect()
    }

    fn key_advice(&self, key: &str, known: Fields) -> String {
        if let Some(name) = nearest(key, known.iter().copied()) {
            return format!("did you mean `{name}`?");
        }
        let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
        let names = format!("known keys are {}", names.join(", "));
        match self.sections_with(key).as_slice() {
            [] => names,
            sections => format!("{} has a key of this name; {names}", sections.join(" or ")),
        }
    }

    fn section_advice(&self, section: &str) -> String {
        match nearest(section, self.0.iter().map(|(name, _)| *name)) {
            Some(name) => format!("did you mean [{name}]?"),
            None => format!("known sections are {}", self.listed()),
        }
    }

    fn listed(&self) -> String {
        self.0.iter().map(|(name, _)| format!("[{name}]")).collect::<Vec<_>>().join(", ")
    }
}

/// Returns the known name that is most similar to `name`, if it may be a misspelling.
///
/// A Jaro similarity of 0.8 accepts a dropped, doubled or swapped letter and a missing underscore,
/// and rejects names that only begin alike.
fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let similarity = |known: &str| strsim::jaro(name, known);
    let best = known.max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(best) >= 0.8).then_some(best)
}

/// Records the names of a struct's fields; records none if the type is not a struct.
struct FieldNameProbe<'a>(&'a mut Fields);

impl<'de> de::Deserializer<'de> for FieldNameProbe<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: Fields,
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

/// Records the names of the fields of the struct in the field `section`.
struct SectionProbe<'a> {
    section: &'static str,
    keys: &'a mut Fields,
}

impl<'de> de::Deserializer<'de> for SectionProbe<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> de::MapAccess<'de> for SectionProbe<'_> {
    type Error = de::value::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        seed.deserialize(self.section.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        seed.deserialize(FieldNameProbe(self.keys))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::{Path, PathBuf};

    use serde::Deserialize;

    use crate::config::parse;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "the values are not read")]
    struct Settings {
        relay: Relay,
        #[serde(default)]
        routing: Routing,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "the values are not read")]
    struct Relay {
        endpoint: SocketAddr,
        key_file: Option<PathBuf>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[expect(dead_code, reason = "the values are not read")]
    struct Routing {
        mark: u32,
    }

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let loaded = parse(Path::new("agent.toml"), text, "MOBILE", environment, &[]);
        loaded.map(|loaded| loaded.settings).map_err(|error| error.to_string())
    }

    const VALID: &str = "[relay]\nendpoint = \"192.0.2.1:443\"\n";

    #[test]
    fn an_unknown_name_is_refused_with_its_place_and_the_nearest_known_one() {
        for (text, expected) in [
            (
                "# a comment\n[relay]\nkeyfile = \"/x\"\n",
                "agent.toml:3: unknown key `keyfile` in [relay]; did you mean `key_file`?",
            ),
            ("[rellay]\nendpoint = 1\n", "agent.toml:1: unknown section [rellay]; did you mean [relay]?"),
            (
                "[relay]\nzzz = 1\n",
                "agent.toml:2: unknown key `zzz` in [relay]; known keys are `endpoint`, `key_file`",
            ),
            (
                "[relay]\nmark = 1\n",
                "agent.toml:2: unknown key `mark` in [relay]; [routing] has a key of this name; known keys are \
                 `endpoint`, `key_file`",
            ),
            ("mark = 1\n", "agent.toml:1: the key `mark` is in no section; move it below [routing]"),
            (
                "zzz = 1\n",
                "agent.toml:1: the key `zzz` is in no section; known sections are [relay], [routing]",
            ),
            ("relay = 1\n", "agent.toml:1: [relay] is a section: write its keys below a line `[relay]`"),
        ] {
            assert_eq!(load(text, &[]).unwrap_err(), expected);
        }
        let with = |name| load(VALID, &[(name, "9")]);
        assert_eq!(
            with("MOBILE_RELAY_ENDPOIN").unwrap_err(),
            "environment variable MOBILE_RELAY_ENDPOIN: unknown key `endpoin` in [relay]; did you mean `endpoint`?"
        );
        assert_eq!(
            with("MOBILE_ROUTNG_MARK").unwrap_err(),
            "environment variable MOBILE_ROUTNG_MARK: unknown section [routng]; did you mean MOBILE_ROUTING_MARK?"
        );
        for foreign in ["MOBILE_LOG", "MOBILE_ROUTNG_X", "MOBILE_PHONE_MARK"] {
            assert!(with(foreign).is_ok(), "{foreign}");
        }
    }
}
