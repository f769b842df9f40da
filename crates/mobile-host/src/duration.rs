//! Durations as text with a unit, such as "250ms", "30s", "24h" or "14d".
//!
//! A field of a configuration is a [`Duration`] with `#[serde(with = "mobile_host::duration")]`. A
//! number without a unit, as earlier versions wrote it, is read as seconds;
//! [`config`](crate::config) then logs a warning that names the new spelling.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;

/// The name by which the deserializer of [`config`](crate::config) recognises a duration.
pub(crate) const TYPE_NAME: &str = "mobile_host::duration";

/// The description of a valid duration, which completes an error's "write …".
pub(crate) const FORM: &str = "a number with a unit, such as \"30s\", \"24h\" or \"14d\"";

/// The error for a text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not accepted: write {FORM}")]
pub struct DurationError(String);

/// Parses a duration: numbers, each with a unit from `ns` to `y`, such as `90s` or `1h 30m`.
///
/// # Errors
/// When the text is not a duration, or its unit is missing.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    humantime::parse_duration(text).map_err(|_| DurationError(text.to_owned()))
}

/// Formats whole seconds in the largest unit from seconds to days that keeps them a whole number:
/// `86400` is `1d`, and `5400` is `90m`.
#[must_use]
pub fn format_seconds(seconds: u64) -> String {
    for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60)] {
        if seconds > 0 && seconds.is_multiple_of(length) {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}

/// Serializes a duration as text that [`parse`] accepts.
///
/// # Errors
/// When the serializer fails.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Deserializes a duration from text, or from a number of seconds.
///
/// # Errors
/// When the value is not a duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_newtype_struct(TYPE_NAME, DurationVisitor)
}

struct DurationVisitor;

impl<'de> Visitor<'de> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FORM)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Duration, D::Error> {
        inner.deserialize_any(self)
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Duration, E> {
        Ok(Duration::from_secs(seconds))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        parse(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_with_a_unit() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("24h", 86_400_000),
            ("14d", 1_209_600_000),
            ("1h 30m", 5_400_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "24", "h", "-1h", "1.5", "soon", "99999999999999999999d"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("\"30s\", \"24h\""), "{error}");
        }
    }

    #[test]
    fn seconds_are_formatted_in_a_unit_that_can_be_parsed() {
        for (seconds, text) in
            [(0, "0s"), (10, "10s"), (90, "90s"), (5400, "90m"), (7200, "2h"), (86_400, "1d")]
        {
            assert_eq!(format_seconds(seconds), text);
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
        }
    }
}
