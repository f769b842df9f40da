//! The verb `mobile keygen`, which generates this host's key pair and prints the public key to
//! stdout.

use std::path::{Path, PathBuf};

use anyhow::Context;
use mobile_host::config::MissingFile;
use mobile_transport::keys::PrivateKey;

use crate::config::{Config, DEFAULT_PATH};

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

/// Returns the path at which an agent with this configuration expects its key. The file that
/// `--config` names need not exist: usually the key is made first, in the same directory.
fn key_file(config: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = config.unwrap_or(Path::new(DEFAULT_PATH));
    Ok(Config::load_file(path, MissingFile::CountsAsEmpty)?.identity.private_key_file)
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
    fn the_key_is_placed_where_the_agent_expects_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("work.toml");
        assert_eq!(key_file(Some(&config)).unwrap(), dir.path().join("work.key"));
        for (text, key) in [
            ("", dir.path().join("work.key")),
            ("[identity]\nprivate_key_file = \"/x/y.key\"\n", "/x/y.key".into()),
            ("[identity]\nprivate_key_file = \"k/y.key\"\n", dir.path().join("k/y.key")),
        ] {
            std::fs::write(&config, text).unwrap();
            assert_eq!(key_file(Some(&config)).unwrap(), key, "{text}");
            assert_eq!(Config::load(Some(&config)).unwrap().identity.private_key_file, key, "{text}");
        }
    }
}
