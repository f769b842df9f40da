//! Kernel settings under /proc/sys. Nothing is remembered: who changes a setting keeps what it was.

use std::fs;
use std::io;
use std::path::PathBuf;

/// Why a setting cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct SysctlError {
    action: &'static str,
    path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

impl SysctlError {
    /// The kernel has no such setting (a feature is missing, a device is gone).
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Reads a setting, named as below /proc/sys: `net/ipv4/ip_forward`.
///
/// # Errors
/// When there is no such setting or it cannot be read.
pub fn read(name: &str) -> Result<String, SysctlError> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(SysctlError { action: "read", path, source }),
    }
}

/// Writes a setting.
///
/// # Errors
/// When there is no such setting or it cannot be written.
pub fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = path(name);
    fs::write(&path, value).map_err(|source| SysctlError { action: "write", path, source })
}

/// Writes a setting unless it has the value already; gives what it was before if it was changed.
///
/// # Errors
/// When there is no such setting or it cannot be read or written.
pub fn ensure(name: &str, value: &str) -> Result<Option<String>, SysctlError> {
    let before = read(name)?;
    if before == value {
        return Ok(None);
    }
    write(name, value)?;
    Ok(Some(before))
}

fn path(name: &str) -> PathBuf {
    // Slashes, never dots: an interface name may hold dots.
    PathBuf::from("/proc/sys").join(name.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_read_and_a_missing_one_is_named() {
        assert_eq!(read("kernel/ostype").unwrap(), "Linux");
        let error = read("net/ipv4/conf/no-such-device/rp_filter").unwrap_err();
        assert!(error.is_missing());
        assert!(
            error.to_string().starts_with("cannot read /proc/sys/net/ipv4/conf/no-such-device/rp_filter")
        );
    }

    #[test]
    fn a_setting_that_is_right_already_is_left_alone() {
        let now = read("kernel/ostype").unwrap();
        assert_eq!(ensure("kernel/ostype", &now).unwrap(), None);
    }
}
