//! Looks up the paths of the programs under test.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// The environment variable that names the directory of the programs under test.
pub const BIN_DIR: &str = "MOBILE_BIN_DIR";

/// Returns the path of a program: in `$MOBILE_BIN_DIR`, else in the directory of the running test
/// program or in the parent directory.
pub fn program(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN_DIR) {
        let path = PathBuf::from(dir).join(name);
        if path.exists() {
            return Ok(path);
        }
    }
    let own = std::env::current_exe()?;
    for dir in own.ancestors().skip(1).take(2) {
        let path = dir.join(name);
        if path.exists() {
            return Ok(path);
        }
    }
    bail!("{name} is neither in ${BIN_DIR} nor beside {}: build it first (cargo build)", own.display())
}
