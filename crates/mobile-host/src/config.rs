//! Loads a configuration from defaults, a TOML file, environment variables and command-line flags,
//! in ascending order of precedence.
//!
//! The type to load is a struct of sections, each a struct of keys, as in the TOML file. The names
//! of the structs' fields are the known names; any other name is an error. Every error names the
//! place: file and line, variable, or flag.

mod de;
mod node;

use std::env;
use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

pub use de::ConfigError;
use node::{Node, Origin};

/// The meaning of a configuration file that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingFile {
    /// The missing file is an error, because the user named it or the program needs it.
    IsError,
    /// The missing file counts as an empty one.
    CountsAsEmpty,
}

/// Loads the configuration from the file at `path`, the environment and `overrides`.
///
/// - `env_prefix`: `MOBILE` or `HOME_RELAY`. The variable `MOBILE_RELAY_ENDPOINT` sets `endpoint`
///   in `[relay]`; commas separate the items of a list. Variables that name no section are ignored.
/// - `overrides`: the values of flags, such as `("relay.endpoint", "…")`.
///
/// # Errors
/// When the file cannot be read or is not TOML, or when any source has an unknown key or an invalid
/// value.
pub fn load<T: DeserializeOwned>(
    path: &Path,
    missing: MissingFile,
    env_prefix: &str,
    overrides: &[(&str, String)],
) -> Result<T, ConfigError> {
    load_from(path, missing, env_prefix, environment(), overrides)
}

/// Loads the configuration from the defaults and the environment only, for a user who may not read
/// the configuration file.
///
/// # Errors
/// When the environment has an unknown key or an invalid value.
pub fn load_without_file<T: DeserializeOwned>(env_prefix: &str) -> Result<T, ConfigError> {
    parse(Path::new(""), "", env_prefix, environment(), &[])
}

/// Returns all environment variables that are valid UTF-8: every setting is text, so no other
/// variable can be one.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn load_from<T: DeserializeOwned>(
    path: &Path,
    missing: MissingFile,
    env_prefix: &str,
    environment: impl Iterator<Item = (String, String)>,
    overrides: &[(&str, String)],
) -> Result<T, ConfigError> {
    let text = read_file(path, missing)?;
    parse(path, &text, env_prefix, environment, overrides)
}

/// Parses the text of a configuration file and merges the environment and `overrides` into it.
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
    overrides: &[(&str, String)],
) -> Result<T, ConfigError> {
    let mut root = Node::parse(&path.display().to_string(), text)?;
    let sections = de::field_names::<T>();
    for (name, value) in environment {
        if let Some((section, key)) = split_variable(&name, env_prefix, sections) {
            root.set(&[section, &key], value, &Origin::new(format!("environment variable {name}")));
        }
    }
    for (key, value) in overrides {
        let keys: Vec<_> = key.split('.').collect();
        root.set(&keys, value.clone(), &Origin::new("command line".to_owned()));
    }
    de::deserialize(&root)
}

fn read_file(path: &Path, missing: MissingFile) -> Result<String, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && missing == MissingFile::CountsAsEmpty => {
            Ok(String::new())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ConfigError::new(format!(
            "no configuration file {}: create it with `mobile enroll` (agent) or `home-relay init` (relay), or name another with --config FILE",
            path.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(ConfigError::new(format!("cannot read {}: {error}: try it with sudo", path.display())))
        }
        Err(error) => Err(ConfigError::new(format!("cannot read {}: {error}", path.display()))),
    }
}

/// Splits the name of an environment variable into section and key: `MOBILE_RELAY_PUBLIC_KEY`
/// becomes `("relay", "public_key")`. Returns `None` without `prefix` or with an unknown section.
fn split_variable(name: &str, prefix: &str, sections: &[&'static str]) -> Option<(&'static str, String)> {
    let rest = name.strip_prefix(prefix)?.strip_prefix('_')?.to_ascii_lowercase();
    let key_in = |section: &&'static str| {
        let key = rest.strip_prefix(section)?.strip_prefix('_').filter(|key| !key.is_empty())?;
        Some((*section, key.to_owned()))
    };
    // If one section's name is the beginning of another's, the longer name wins.
    sections.iter().filter_map(key_in).max_by_key(|(section, _)| section.len())
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

        fn load(&self, env: &[(&str, &str)], flags: &[(&str, String)]) -> Result<Settings, String> {
            let environment = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let file = self.dir.path().join("agent.toml");
            load_from(&file, MissingFile::IsError, "MOBILE", environment, flags)
                .map_err(|error| error.to_string().replace(&format!("{}/", self.dir.path().display()), ""))
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
    fn environment_beats_file_and_flags_beat_both() {
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
        let settings = case.load(&env, &[("relay.endpoint", "192.0.2.3:443".into())]).unwrap();
        assert_eq!(settings.relay.endpoint, "192.0.2.3:443".parse().unwrap());
        assert_eq!(settings.relay.key_file, Some("/key".into()));
        let routing = settings.routing;
        assert_eq!((routing.mark, routing.bypass.len(), routing.verbose), (255, 2, true));
        assert_eq!(routing.mode, Mode::Manual);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_known_one() {
        let case = TestFile::new("# a comment\n[relay]\nendpoint = \"192.0.2.1:443\"\nkeyfile = \"/x\"\n");
        assert_eq!(case.error(), "agent.toml:4: unknown key `keyfile` in [relay]; did you mean `key_file`?");
        let case = TestFile::new("[rellay]\nendpoint = 1\n");
        assert_eq!(case.error(), "agent.toml:1: unknown section [rellay]; did you mean [relay]?");
        let case = TestFile::new("[relay]\nendpoint = \"192.0.2.1:443\"\nzzz = 1\n");
        assert_eq!(
            case.error(),
            "agent.toml:3: unknown key `zzz` in [relay]; known keys are `endpoint`, `key_file`"
        );
        let error = TestFile::new(VALID).load(&[("MOBILE_RELAY_ENDPOIN", "x")], &[]).unwrap_err();
        assert_eq!(
            error,
            "environment variable MOBILE_RELAY_ENDPOIN: unknown key `endpoin` in [relay]; did you mean `endpoint`?"
        );
        let error = TestFile::new(VALID).load(&[], &[("relay.x", "1".into())]).unwrap_err();
        assert!(error.starts_with("command line: unknown key `x` in [relay]"), "{error}");
    }

    #[test]
    fn an_invalid_value_is_refused_with_its_place() {
        assert!(
            TestFile::new("[relay]\nendpoint = 5\n").error().starts_with("agent.toml:2: [relay] endpoint: ")
        );
        let error = TestFile::new("[relay]\nendpoint = \"here\"\n").error();
        assert!(error.starts_with("agent.toml:2: [relay] endpoint: ") && error.contains("socket"), "{error}");
        let case = TestFile::new(&format!("{VALID}[routing]\nbypass = [\n  \"10.0.0.0/8\",\n  \"x\",\n]\n"));
        assert!(case.error().starts_with("agent.toml:6: [routing] bypass: "), "{}", case.error());
        let error = TestFile::new(&format!("{VALID}[routing]\nmark = -1\n")).error();
        assert!(error.starts_with("agent.toml:4: [routing] mark: "), "{error}");
        let error = TestFile::new(&format!("{VALID}[routing]\nmode = \"odd\"\n")).error();
        assert!(error.contains("odd") && error.contains("`auto`"), "{error}");
        let error = TestFile::new(VALID).load(&[("MOBILE_ROUTING_MARK", "many")], &[]).unwrap_err();
        assert!(error.starts_with("environment variable MOBILE_ROUTING_MARK: [routing] mark: "), "{error}");
    }

    #[test]
    fn missing_sections_keys_and_files_are_named() {
        assert_eq!(TestFile::new("[relay]\n").error(), "agent.toml:1: [relay] needs the key `endpoint`");
        assert_eq!(TestFile::new("").error(), "agent.toml: the section [relay] is missing");
        let nowhere = Path::new("/nonexistent/agent.toml");
        let error = load_from::<Settings>(nowhere, MissingFile::IsError, "MOBILE", std::iter::empty(), &[])
            .unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/agent.toml") && error.to_string().contains("--config")
        );
        let flags = [("relay.endpoint", "192.0.2.3:443".to_owned())];
        load_from::<Settings>(nowhere, MissingFile::CountsAsEmpty, "MOBILE", std::iter::empty(), &flags)
            .unwrap();
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
