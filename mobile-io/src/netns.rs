//! Identifies a network namespace, for names and records in file systems that several namespaces
//! share.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

/// Returns the inode number of the calling thread's network namespace, as `lsns -t net` shows it.
///
/// Namespaces that exist at the same time have different numbers; a number may be reused later.
///
/// # Errors
/// When /proc is not mounted.
pub fn id() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}
