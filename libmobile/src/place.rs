//! Where the agent is asked: as the program `mobile` finds it, by the environment, the configuration, the default.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Deserialize;

/// The one section of the agent's configuration that matters here.
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
        Self { socket: mobile_control::SOCKET.into() }
    }
}

/// The control socket. EACCES when the configuration may not be read, EBADMSG when it is not understood.
pub(crate) fn socket(variable: Option<OsString>, config: &Path) -> Result<PathBuf, Errno> {
    if let Some(path) = variable {
        return Ok(path.into());
    }
    match fs::read_to_string(config) {
        Ok(text) => {
            toml::from_str::<Config>(&text).map(|config| config.control.socket).map_err(|_| Errno::EBADMSG)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Control::default().socket),
        Err(error) => Err(error.raw_os_error().map_or(Errno::EBADMSG, Errno::from_raw)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_comes_before_the_configuration_and_that_before_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("agent.toml");
        assert_eq!(socket(None, &config), Ok(mobile_control::SOCKET.into()));
        fs::write(&config, "[relay]\nendpoint = \"h:1\"\n").unwrap();
        assert_eq!(socket(None, &config), Ok(mobile_control::SOCKET.into()));
        fs::write(&config, "[control]\nsocket = \"/tmp/a.sock\"\ngroup = \"staff\"\n").unwrap();
        assert_eq!(socket(None, &config), Ok("/tmp/a.sock".into()));
        assert_eq!(socket(Some("/tmp/b.sock".into()), &config), Ok("/tmp/b.sock".into()));
        fs::write(&config, "[control]\nsocket = \n").unwrap();
        assert_eq!(socket(None, &config), Err(Errno::EBADMSG));
        assert_eq!(socket(None, dir.path()), Err(Errno::EISDIR));
    }
}
