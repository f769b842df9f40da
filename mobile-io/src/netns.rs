//! The identity of a network namespace, for names and records that several namespaces share.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

/// Returns the inode number of the calling thread's network namespace, as `lsns -t net` shows it.
///
/// No two namespaces that exist have the same number; one that is gone may hand its number on.
///
/// # Errors
/// When /proc is not mounted.
pub fn id() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}
