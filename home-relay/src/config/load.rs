//! Loads the relay's configuration from its sources.

use std::path::Path;

use anyhow::Context as _;
use mobile_host::config::{DefaultPaths, Loaded, MissingFile};

use super::{Config, ENV_PREFIX, INSTALLED, NO_FILE};

impl Config {
    /// Reads the configuration file and environment variables, checks the settings, and resolves
    /// the paths of files.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let loaded =
            mobile_host::config::load(path, MissingFile::IsError(NO_FILE), ENV_PREFIX, &defaults(path))?;
        Self::complete(loaded, path)
    }

    /// Parses the text of a configuration file that is to be at `path`, as [`Self::load`] does.
    pub(crate) fn parse(path: &Path, text: &str) -> anyhow::Result<Self> {
        let environment = mobile_host::config::environment();
        let loaded = mobile_host::config::parse(path, text, ENV_PREFIX, environment, &defaults(path))?;
        Self::complete(loaded, path)
    }

    /// Checks the parsed configuration and resolves the paths of files, which are relative to the
    /// directory of `path`.
    pub(crate) fn complete(loaded: Loaded<Self>, path: &Path) -> anyhow::Result<Self> {
        let absolute = std::path::absolute(path).context("cannot determine the working directory")?;
        let dir = absolute.parent().unwrap_or(Path::new("/"));
        let completed = loaded.complete(|mut config| {
            // `init` writes the key beside the file, so that both can be moved together.
            for file in
                [&mut config.identity.private_key_file, &mut config.admin.socket, &mut config.state.dir]
            {
                *file = dir.join(&*file);
            }
            config.file = mobile_host::config::identity(path);
            config.check().map(|()| config)
        });
        Ok(completed?)
    }
}

/// Returns the default paths of the files that belong to the configuration at `path`.
pub(crate) fn default_paths(path: &Path) -> DefaultPaths {
    INSTALLED.for_config(path)
}

/// Returns the settings whose defaults depend on the path of the configuration.
fn defaults(path: &Path) -> [(&'static str, String); 2] {
    let paths = default_paths(path);
    [("admin.socket", paths.socket), ("state.dir", paths.state)]
        .map(|(key, path)| (key, path.display().to_string()))
}
