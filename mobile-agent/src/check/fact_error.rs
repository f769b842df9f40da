//! The error for a fact that `mobile check` could not determine.

use std::fmt::Display;

/// The reason why a fact is unknown or an attempt failed, as the finding shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct FactError(String);

impl FactError {
    /// Returns the fact error with the text of `error`, without its sources.
    pub(super) fn of(error: &impl Display) -> Self {
        Self(error.to_string())
    }

    /// Returns the text of the error.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for FactError {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for FactError {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<&FactError> for String {
    fn from(error: &FactError) -> Self {
        error.0.clone()
    }
}
