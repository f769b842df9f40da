//! Configuration: defaults, then the file, then the environment, then flags; whatever is unknown is refused.

use std::path::Path;

use serde::de::DeserializeOwned;

/// Why a configuration cannot be used. Says where: file and line, variable or flag.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    message: String,
}

/// Loads a configuration.
///
/// `required`: a missing file is an error (else it is as an empty one). `env_prefix` is `MOBILE` or `HOME_RELAY`:
/// `MOBILE_RELAY_ENDPOINT` sets `endpoint` in `[relay]`. `overrides` are flags: `("relay.endpoint", "…")`.
///
/// # Errors
/// When the file cannot be read, is not TOML, or any source has an unknown key or an unfit value.
pub fn load<T: DeserializeOwned>(
    _path: &Path,
    _required: bool,
    _env_prefix: &str,
    _overrides: &[(&str, String)],
) -> Result<T, ConfigError> {
    unimplemented!()
}
