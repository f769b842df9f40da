//! The verb `mobile keygen`, which generates this host's key pair and prints the public key to
//! stdout.

use std::path::{Path, PathBuf};

use anyhow::Context;
use mobile_transport::keys::PrivateKey;

use crate::config::Config;

/// Generates this host's private key in the file `out` and prints the public key. Fails if the file
/// exists, because a key is never overwritten.
pub(super) fn keygen(config: Option<&Path>, out: Option<PathBuf>) -> anyhow::Result<()> {
    let path = match out {
        Some(path) => path,
        None => key_file(config)?,
    };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot create the directory {} for the key", parent.display()))?;
    }
    let key = PrivateKey::generate().context("cannot generate a key")?;
    key.save_new(&path)?;
    super::print(&format!("{}\n", key.public()))
}

/// Returns the path for the key. The configuration that `--config` names need not exist: usually
/// the key is made first, in the same directory.
fn key_file(config: Option<&Path>) -> anyhow::Result<PathBuf> {
    match config {
        Some(path) if !path.exists() => Ok(path.with_file_name("agent.key")),
        _ => Ok(Config::load(config)?.identity.private_key_file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/agent.key");
        keygen(None, Some(path.clone())).unwrap();
        let before = std::fs::read_to_string(&path).unwrap();
        keygen(None, Some(path.clone())).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn without_a_configuration_the_key_is_placed_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("agent.toml");
        assert_eq!(key_file(Some(&config)).unwrap(), dir.path().join("agent.key"));
        std::fs::write(&config, "[identity]\nprivate_key_file = \"/x/y.key\"\n").unwrap();
        assert_eq!(key_file(Some(&config)).unwrap(), Path::new("/x/y.key"));
    }
}
