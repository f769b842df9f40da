//! Loads the agent's configuration from its sources.

use std::path::Path;

use anyhow::Context;
use mobile_host::config::{DefaultPaths, Loaded, MissingFile};

use super::{Config, Control, DEFAULT_PATH, ENV_PREFIX, INSTALLED, Identity, NO_FILE, State};

impl Config {
    /// Loads the file that `--config` names, or the default file if it exists.
    pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        match path {
            Some(path) => Self::load_file(path, MissingFile::IsError(NO_FILE)),
            None => Self::load_file(Path::new(DEFAULT_PATH), MissingFile::CountsAsEmpty),
        }
    }

    /// Loads the configuration at `path`.
    pub(crate) fn load_file(path: &Path, missing: MissingFile) -> anyhow::Result<Self> {
        let loaded = mobile_host::config::load(path, missing, ENV_PREFIX, &defaults(path))?;
        Self::complete(loaded, path)
    }

    /// Loads the configuration that `text` would be as the file at `path`.
    pub(crate) fn of_text(path: &Path, text: &str) -> anyhow::Result<Self> {
        let environment = mobile_host::config::environment();
        let loaded = mobile_host::config::parse(path, text, ENV_PREFIX, environment, &defaults(path))?;
        Self::complete(loaded, path)
    }

    /// Returns the defaults for the file at `path` with the environment's settings, or the plain
    /// defaults for the file if a setting of the environment is invalid.
    pub(crate) fn without_file(path: &Path) -> Self {
        Self::try_without_file(path).unwrap_or_else(|_| {
            let paths = default_paths(path);
            Self {
                identity: Identity { private_key_file: paths.key },
                control: Control { socket: paths.socket, ..Control::default() },
                state: State { dir: paths.state },
                file: mobile_host::config::identity(path),
                ..Self::default()
            }
        })
    }

    /// Returns the defaults for the file at `path` with the environment's settings.
    pub(crate) fn try_without_file(path: &Path) -> anyhow::Result<Self> {
        let loaded = mobile_host::config::load_without_file(path, ENV_PREFIX, &defaults(path))?;
        Self::complete(loaded, path)
    }

    /// Checks the settings and resolves the paths of files relative to the configuration's
    /// directory.
    pub(crate) fn complete(loaded: Loaded<Self>, path: &Path) -> anyhow::Result<Self> {
        let absolute = std::path::absolute(path).context("cannot determine the working directory")?;
        let dir = absolute.parent().unwrap_or(Path::new("/"));
        let completed = loaded.complete(|mut config| {
            for file in
                [&mut config.identity.private_key_file, &mut config.control.socket, &mut config.state.dir]
            {
                *file = dir.join(&*file);
            }
            config.file = mobile_host::config::identity(path);
            config.check().map(|()| config)
        });
        Ok(completed?)
    }
}

/// Returns the default paths of the files that belong to the configuration at `path`. The installed
/// socket has another name in each network namespace.
pub(crate) fn default_paths(path: &Path) -> DefaultPaths {
    let paths = INSTALLED.for_config(path);
    if paths.socket != Path::new(INSTALLED.socket) {
        return paths;
    }
    DefaultPaths { socket: Control::default().socket, ..paths }
}

/// Returns the settings whose defaults depend on the path of the configuration.
fn defaults(path: &Path) -> [(&'static str, String); 3] {
    let paths = default_paths(path);
    [("identity.private_key_file", paths.key), ("control.socket", paths.socket), ("state.dir", paths.state)]
        .map(|(key, path)| (key, path.display().to_string()))
}
