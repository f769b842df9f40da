//! The default paths of a program's files, which follow from the path of its configuration: two
//! configurations never share a key, a socket or a state directory by default.

use std::path::{Path, PathBuf, absolute};

/// The paths of a program's files when it uses its default configuration file.
#[derive(Debug, Clone, Copy)]
pub struct InstalledPaths {
    /// The default configuration file.
    pub config: &'static str,
    /// The default socket for commands.
    pub socket: &'static str,
    /// The default state directory.
    pub state: &'static str,
}

/// The paths of the files that belong to one configuration file, unless it sets others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultPaths {
    /// The file of the private key.
    pub key: PathBuf,
    /// The socket for commands.
    pub socket: PathBuf,
    /// The directory of the program's state.
    pub state: PathBuf,
}

impl InstalledPaths {
    /// Returns the default paths for the configuration file `config`.
    ///
    /// - The default file has the installed paths.
    /// - Another file in the same folder has a socket and a state directory named after it, in the
    ///   folder of the installed socket and in the installed state directory.
    /// - Any other file has its key, socket and state directory beside it: `x.toml` has `x.key`,
    ///   `x.sock` and `x.state`.
    #[must_use]
    pub fn for_config(&self, config: &Path) -> DefaultPaths {
        let config = absolute(config).unwrap_or_else(|_| config.to_owned());
        let key = config.with_extension("key");
        if !self.is_in_folder(&config) {
            return DefaultPaths {
                key,
                socket: config.with_extension("sock"),
                state: config.with_extension("state"),
            };
        }
        let (socket, state) = (PathBuf::from(self.socket), PathBuf::from(self.state));
        if config.file_name() == Path::new(self.config).file_name() {
            return DefaultPaths { key, socket, state };
        }
        let name = Path::new(config.file_stem().unwrap_or_default());
        DefaultPaths {
            key,
            socket: socket.with_file_name(name.with_extension("sock")),
            state: state.join(name),
        }
    }

    fn is_in_folder(&self, config: &Path) -> bool {
        let folder = Path::new(self.config).parent();
        let canonical = |folder: Option<&Path>| folder.and_then(|folder| folder.canonicalize().ok());
        config.parent() == folder
            || canonical(folder).is_some_and(|folder| canonical(config.parent()) == Some(folder))
    }
}

/// Returns the path by which a configuration file is known to other processes: absolute and without
/// symbolic links, as far as the path exists.
#[must_use]
pub fn identity(config: &Path) -> PathBuf {
    let config = absolute(config).unwrap_or_else(|_| config.to_owned());
    let in_folder = || Some(config.parent()?.canonicalize().ok()?.join(config.file_name()?));
    config.canonicalize().ok().or_else(in_folder).unwrap_or_else(|| config.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTALLED: InstalledPaths = InstalledPaths {
        config: "/etc/mobile-test/agent.toml",
        socket: "/run/mobile-test/agent.sock",
        state: "/var/lib/mobile-test",
    };

    #[test]
    fn each_configuration_has_default_paths_of_its_own() {
        for (config, key, socket, state) in [
            (
                "/etc/mobile-test/agent.toml",
                "/etc/mobile-test/agent.key",
                "/run/mobile-test/agent.sock",
                "/var/lib/mobile-test",
            ),
            (
                "/etc/mobile-test/work.toml",
                "/etc/mobile-test/work.key",
                "/run/mobile-test/work.sock",
                "/var/lib/mobile-test/work",
            ),
            ("/tmp/x/agent.toml", "/tmp/x/agent.key", "/tmp/x/agent.sock", "/tmp/x/agent.state"),
            ("/tmp/x/b.toml", "/tmp/x/b.key", "/tmp/x/b.sock", "/tmp/x/b.state"),
        ] {
            let expected = DefaultPaths { key: key.into(), socket: socket.into(), state: state.into() };
            assert_eq!(INSTALLED.for_config(Path::new(config)), expected, "{config}");
        }
        let relative = INSTALLED.for_config(Path::new("agent.toml"));
        assert!(relative.socket.is_absolute() && relative.socket.ends_with("agent.sock"), "{relative:?}");
    }
}
