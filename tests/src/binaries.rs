//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// The variable that says where the programs under test are.
pub const BIN_DIR: &str = "MOBILE_BIN_DIR";

/// The path of one of our programs: in `$MOBILE_BIN_DIR`, else where this program was built.
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
