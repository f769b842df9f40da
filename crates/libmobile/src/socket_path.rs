//! Determines the path of the agent's control socket as the program `mobile` does: from the
//! environment variable, else the configuration, else the default.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Deserialize;

/// The agent's configuration file, of which this library reads only the section `[control]`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    control: Control,
}

#[derive(Deserialize)]
#[serde(default)]
struct Control {
    socket: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: mobile_control::default_socket() }
    }
}

/// Returns the path of the control socket: `variable` if given, else the path in the configuration
/// file `config` if this user may read it, else the default. Fails with EBADMSG if the
/// configuration cannot be parsed.
pub(crate) fn find(variable: Option<OsString>, config: &Path) -> Result<PathBuf, Errno> {
    // As all paths in the configuration, that of the socket is relative to its directory.
    let relative = |path: PathBuf| config.parent().unwrap_or(Path::new("/")).join(path);
    if let Some(path) = variable {
        return Ok(relative(path.into()));
    }
    match fs::read_to_string(config) {
        Ok(text) => {
            let parsed = toml::from_str::<Config>(&text).map_err(|_| Errno::EBADMSG)?;
            Ok(relative(parsed.control.socket))
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            Ok(Control::default().socket)
        }
        Err(error) => Err(error.raw_os_error().map_or(Errno::EBADMSG, Errno::from_raw)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_overrides_the_configuration_which_overrides_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("agent.toml");
        assert_eq!(find(None, &config), Ok(mobile_control::default_socket()));
        fs::write(&config, "[relay]\nendpoint = \"h:1\"\n").unwrap();
        assert_eq!(find(None, &config), Ok(mobile_control::default_socket()));
        fs::write(&config, "[control]\nsocket = \"/tmp/a.sock\"\ngroup = \"staff\"\n").unwrap();
        assert_eq!(find(None, &config), Ok("/tmp/a.sock".into()));
        assert_eq!(find(Some("/tmp/b.sock".into()), &config), Ok("/tmp/b.sock".into()));
        assert_eq!(find(Some("b.sock".into()), &config), Ok(dir.path().join("b.sock")));
        fs::write(&config, "[control]\nsocket = \n").unwrap();
        assert_eq!(find(None, &config), Err(Errno::EBADMSG));
        assert_eq!(find(None, dir.path()), Err(Errno::EISDIR));
    }
}
