//! Loads a configuration from defaults, a TOML file and environment variables, in ascending order
//! of precedence.
//!
//! The type to load is a struct of sections, each a struct of keys, as in the TOML file. The names
//! of the structs' fields are the known names; any other name is an error. Every error names the
//! place, file and line or variable, also that of a check after loading ([`Loaded::complete`]).

mod beside;
mod changes;
mod de;
mod expected;
mod names;
mod node;

use std::env;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

pub use beside::{DefaultPaths, InstalledPaths, identity};
pub use changes::changed_keys;
pub use de::ConfigError;
use names::Names;
use node::{Node, Origin};

/// The meaning of a configuration file that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingFile {
    /// The missing file is an error with this next step, such as "create it with `init`".
    IsError(&'static str),
    /// The missing file counts as an empty one.
    CountsAsEmpty,
}

/// The settings that were loaded, with the origin of each: file and line, or variable.
#[derive(Debug)]
pub struct Loaded<T> {
    settings: T,
    root: Node,
}

impl<T> Loaded<T> {
    /// Passes the settings to `complete`, which checks conditions that their types do not express.
    ///
    /// # Errors
    /// The error of `complete`, after the origin of the setting that its text names as
    /// `[section] key`. Where the text names several keys of the section, an environment variable
    /// precedes the file, because it was set last.
    pub fn complete<E: Display>(self, complete: impl FnOnce(T) -> Result<T, E>) -> Result<T, ConfigError> {
        let Self { settings, root } = self;
        complete(settings).map_err(|error| {
            let message = format!("{error:#}");
            let origin = root.origin_of(&message);
            ConfigError::new(format!("{}: {message}", origin.as_str()))
        })
    }
}

/// Loads the configuration from `defaults`, the file at `path` and the environment.
///
/// - `env_prefix`: `MOBILE` or `HOME_RELAY`. The variable `MOBILE_RELAY_ENDPOINT` sets `endpoint`
///   in `[relay]`; commas separate the items of a list. Variables that name no section are ignored,
///   unless only the section is misspelled.
/// - `defaults`: the values of settings whose defaults depend on `path`, such as
///   `("control.socket", "…")`.
///
/// # Errors
/// When the file cannot be read or is not TOML, or when any source has an unknown key or an invalid
/// value.
pub fn load<T: DeserializeOwned>(
    path: &Path,
    missing: MissingFile,
    env_prefix: &str,
    defaults: &[(&str, String)],
) -> Result<Loaded<T>, ConfigError> {
    let text = read_file(path, missing)?;
    parse(path, &text, env_prefix, environment(), defaults)
}

/// Loads the configuration from `defaults` and the environment only, for a user who may not read
/// the configuration file at `path`.
///
/// # Errors
/// When the environment has an unknown key or an invalid value.
pub fn load_without_file<T: DeserializeOwned>(
    path: &Path,
    env_prefix: &str,
    defaults: &[(&str, String)],
) -> Result<Loaded<T>, ConfigError> {
    parse(path, "", env_prefix, environment(), defaults)
}

/// Returns all environment variables that are valid UTF-8: every setting is text, so no other
/// variable can be one.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Parses the text of a configuration file and merges the environment and `defaults` into it.
///
/// Errors refer to the file as `path`, which is not opened.
///
/// # Errors
/// As [`load`], except for errors of the file system.
pub fn parse<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    env_prefix: &str,
    environment: impl Iterator<Item = (String, String)>,
    defaults: &[(&str, String)],
) -> Result<Loaded<T>, ConfigError> {
    let file = path.display().to_string();
    let mut root = Node::parse(&file, text)?;
    let names = Names::of::<T>();
    for (name, value) in environment {
        if let Some((section, key)) = names.split_variable(&name, env_prefix)? {
            root.set(&[section, &key], value, &Origin::variable(&name));
        }
    }
    for (key, value) in defaults {
        let keys: Vec<_> = key.split('.').collect();
        root.set_missing(&keys, value.clone(), &Origin::new(file.clone()));
    }
    names.check(&root)?;
    Ok(Loaded { settings: de::deserialize(&root)?, root })
}

fn read_file(path: &Path, missing: MissingFile) -> Result<String, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let MissingFile::IsError(next_step) = missing else { return Ok(String::new()) };
            Err(ConfigError::new(format!("no configuration file {}: {next_step}", path.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(ConfigError::new(format!("cannot read {}: {error}: try it with sudo", path.display())))
        }
        Err(error) => Err(ConfigError::new(format!("cannot read {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use ipnet::IpNet;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Settings {
        relay: Relay,
        #[serde(default)]
        routing: Routing,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Relay {
        endpoint: SocketAddr,
        key_file: Option<PathBuf>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(default)]
    struct Routing {
        mark: u32,
        bypass: Vec<IpNet>,
        mode: Mode,
        verbose: bool,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Auto,
        Manual,
    }

    impl Default for Routing {
        fn default() -> Self {
            Self { mark: 7, bypass: Vec::new(), mode: Mode::Auto, verbose: false }
        }
    }

    struct TestFile {
        dir: tempfile::TempDir,
    }

    impl TestFile {
        fn new(text: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("agent.toml"), text).unwrap();
            Self { dir }
        }

        fn load(&self, env: &[(&str, &str)], defaults: &[(&str, String)]) -> Result<Settings, String> {
            self.loaded(env, defaults).map(|loaded| loaded.settings)
        }

        fn loaded(
            &self,
            env: &[(&str, &str)],
            defaults: &[(&str, String)],
        ) -> Result<Loaded<Settings>, String> {
            let environment = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let file = self.dir.path().join("agent.toml");
            read_file(&file, MissingFile::IsError("create it, or name another with --config"))
                .and_then(|text| parse(&file, &text, "MOBILE", environment, defaults))
                .map_err(|error| self.relative(&error))
        }

        fn relative(&self, error: &ConfigError) -> String {
            error.to_string().replace(&format!("{}/", self.dir.path().display()), "")
        }

        fn error(&self) -> String {
            self.load(&[], &[]).unwrap_err()
        }
    }

    const VALID: &str = "[relay]\nendpoint = \"192.0.2.1:443\"\n";

    #[test]
    fn missing_keys_have_their_defaults() {
        let case = TestFile::new(
            "[relay]\nendpoint = \"192.0.2.1:443\"\n[routing]\nmark = 0x4d00\nbypass = [\"10.0.0.0/8\"]\nmode = \"manual\"\n",
        );
        let settings = case.load(&[], &[]).unwrap();
        assert_eq!(settings.relay, Relay { endpoint: "192.0.2.1:443".parse().unwrap(), key_file: None });
        let bypass = vec!["10.0.0.0/8".parse().unwrap()];
        assert_eq!(settings.routing, Routing { mark: 0x4d00, bypass, mode: Mode::Manual, verbose: false });
    }

    #[test]
    fn environment_beats_file_and_both_beat_defaults() {
        let case = TestFile::new(VALID);
        let env = [
            ("MOBILE_RELAY_ENDPOINT", "192.0.2.2:443"),
            ("MOBILE_RELAY_KEY_FILE", "/key"),
            ("MOBILE_ROUTING_MARK", "0xff"),
            ("MOBILE_ROUTING_BYPASS", "10.0.0.0/8, fd00::/8"),
            ("MOBILE_ROUTING_VERBOSE", "true"),
            ("MOBILE_ROUTING_MODE", "manual"),
            ("MOBILE_LOG", "debug"),
            ("HOME_RELAY_ENDPOINT", "none of ours"),
        ];
        let defaults =
            [("relay.endpoint", "192.0.2.3:443".to_owned()), ("relay.key_file", "/default".to_owned())];
        let settings = case.load(&[], &defaults).unwrap();
        assert_eq!(settings.relay.endpoint, "192.0.2.1:443".parse().unwrap());
        assert_eq!(settings.relay.key_file, Some("/default".into()));
        let settings = case.load(&env, &defaults).unwrap();
        assert_eq!(settings.relay.endpoint, "192.0.2.2:443".parse().unwrap());
        assert_eq!(settings.relay.key_file, Some("/key".into()));
        let routing = settings.routing;
        assert_eq!((routing.mark, routing.bypass.len(), routing.verbose), (255, 2, true));
        assert_eq!(routing.mode, Mode::Manual);
    }

    #[test]
    fn a_check_after_loading_blames_the_place_of_the_setting_that_it_names() {
        let case = TestFile::new(&format!("{VALID}[routing]\nmark = 7\n"));
        let blamed = |env: &[(&str, &str)], message: &str| {
            let loaded = case.loaded(env, &[]).unwrap();
            case.relative(&loaded.complete(|_| Err::<Settings, _>(message)).unwrap_err())
        };
        let message = "[routing] mark 7 is odd, and verbose does not help";
        assert_eq!(blamed(&[], message), format!("agent.toml:4: {message}"));
        for variable in ["MOBILE_ROUTING_MARK", "MOBILE_ROUTING_VERBOSE"] {
            let value = if variable.ends_with("MARK") { "7" } else { "true" };
            let expected = format!("environment variable {variable}: {message}");
            assert_eq!(blamed(&[(variable, value)], message), expected);
        }
        assert_eq!(blamed(&[], "[routing] mode is odd"), "agent.toml: [routing] mode is odd");
        assert_eq!(blamed(&[], "odd"), "agent.toml: odd");
    }

    #[test]
    fn missing_sections_keys_and_files_are_named() {
        assert_eq!(TestFile::new("[relay]\n").error(), "agent.toml:1: [relay] needs the key `endpoint`");
        assert_eq!(TestFile::new("").error(), "agent.toml: the section [relay] is missing");
        let nowhere = Path::new("/nonexistent/agent.toml");
        let next_step = MissingFile::IsError("create it, or name another with --config");
        let error = read_file(nowhere, next_step).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/agent.toml") && error.contains("--config"), "{error}");
        assert_eq!(read_file(nowhere, MissingFile::CountsAsEmpty), Ok(String::new()));
    }

    #[test]
    fn invalid_toml_is_refused_with_its_line() {
        let error = TestFile::new("[relay]\nendpoint = \n").error();
        assert!(error.starts_with("agent.toml:2: "), "{error}");
        let error = TestFile::new("[relay]\nendpoint = \"a\"\nendpoint = \"b\"\n").error();
        assert!(error.starts_with("agent.toml:3: "), "{error}");
        assert!(!error.contains('\n'), "one line is enough: {error}");
    }
}
