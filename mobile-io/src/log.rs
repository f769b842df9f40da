//! Logging: `tracing` to stderr.

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not one.
    #[error(
        "`{level}` from {origin} is no log level: error, warn, info, debug, trace, or directives such as `info,mobile_io=debug`"
    )]
    BadLevel {
        /// The text given.
        level: String,
        /// `--log` or the variable.
        origin: String,
    },
    /// Somebody has set up logging already.
    #[error("logging was started twice")]
    Twice,
}

/// Starts logging to stderr. `flag` is what `--log` gave; else the variable `env` (`MOBILE_LOG`, `HOME_RELAY_LOG`)
/// decides; else `info`.
///
/// # Errors
/// When the level is not one, or logging was started before.
pub fn init(_flag: Option<&str>, _env: &str) -> Result<(), LogError> {
    unimplemented!()
}
