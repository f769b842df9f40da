//! The error for a fact that `mobile check` could not determine.

use std::fmt::Display;

/// The reason why a fact is unknown or an attempt failed, as the finding shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct FactError {
    text: String,
    /// Whether the only reason is that the user of the check has not the permission.
    is_denied: bool,
}

impl FactError {
    /// Returns the fact error with the text of `error`, without its sources.
    pub(super) fn of(error: &impl Display) -> Self {
        error.to_string().into()
    }

    /// Returns the fact error for a fact that other users may see.
    pub(crate) fn denied(error: &impl Display) -> Self {
        Self { text: error.to_string(), is_denied: true }
    }

    /// Returns the text of the error.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether the only reason is that the user of the check has not the permission.
    pub(super) fn is_denied(&self) -> bool {
        self.is_denied
    }
}

impl From<String> for FactError {
    fn from(text: String) -> Self {
        Self { text, is_denied: false }
    }
}

impl From<&str> for FactError {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<&FactError> for String {
    fn from(error: &FactError) -> Self {
        error.text.clone()
    }
}
