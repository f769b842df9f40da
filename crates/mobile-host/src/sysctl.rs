//! Reads and writes kernel settings below /proc/sys.
//!
//! Earlier values are not stored; callers that want to restore a setting keep its value themselves.

use std::fs;
use std::io;
use std::path::PathBuf;

/// The reason why a kernel setting cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct SysctlError {
    action: &'static str,
    path: PathBuf,
    /// The error of the system call.
    pub source: io::Error,
}

impl SysctlError {
    /// Returns whether the kernel lacks the setting, because of a missing feature or device.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Reads a kernel setting by its path below /proc/sys, such as `net/ipv4/ip_forward`.
///
/// # Errors
/// When the setting does not exist or cannot be read.
pub fn read(name: &str) -> Result<String, SysctlError> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(SysctlError { action: "read", path, source }),
    }
}

/// Writes `value` to a kernel setting, whatever the present value is.
///
/// # Errors
/// When the setting does not exist or cannot be written.
pub fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = path(name);
    fs::write(&path, value).map_err(|source| SysctlError { action: "write", path, source })
}

/// Writes `value` to a kernel setting unless that is the present value; returns the earlier value
/// if the setting was changed.
///
/// # Errors
/// When the setting does not exist, or cannot be read or written.
pub fn ensure(name: &str, value: &str) -> Result<Option<String>, SysctlError> {
    let before = read(name)?;
    if before == value {
        return Ok(None);
    }
    write(name, value)?;
    Ok(Some(before))
}

fn path(name: &str) -> PathBuf {
    // Names use slashes, because the name of a device may contain dots.
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
    fn a_setting_with_the_wanted_value_is_left_alone() {
        let current = read("kernel/ostype").unwrap();
        assert_eq!(ensure("kernel/ostype", &current).unwrap(), None);
    }
}
