//! Runs the `nft` program to apply scripts, each in one transaction, and to list tables.
//!
//! Every function blocks until the program has exited, so async code must use `spawn_blocking`.

use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

use crate::capability::why_no_net_admin;

/// An nftables table, given by its family (`inet`, `arp`) and its name.
pub type Table<'a> = (&'a str, &'a str);

/// The reason why nftables cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The `nft` program is not installed.
    #[error("nft is not installed: install the nftables package")]
    NotInstalled,
    /// The `nft` program cannot be run.
    #[error("cannot run nft: {0}")]
    CannotRun(#[source] io::Error),
    /// The kernel does not let this process change nftables.
    #[error("{what}: not allowed to change nftables: {reason}")]
    NotAllowed {
        /// The command that was rejected.
        what: String,
        /// The missing right, with the next step.
        reason: &'static str,
    },
    /// The `nft` program or the kernel rejected the command.
    #[error("{what}: {message}")]
    Refused {
        /// The command that was rejected.
        what: String,
        /// The error message of the program.
        message: String,
    },
}

/// Applies the nftables commands in `script` in one transaction.
///
/// # Errors
/// When nft is missing, or when nft or the kernel rejects the script; then nothing is changed.
pub fn apply(script: &str) -> Result<(), NftError> {
    feed(&["-f", "-"], script).map(drop)
}

/// Checks whether the kernel would accept `script`, without changing anything.
///
/// # Errors
/// When nft is missing, or when nft or the kernel would reject the script.
pub fn check(script: &str) -> Result<(), NftError> {
    feed(&["-c", "-f", "-"], script).map(drop)
}

/// Returns the rules in `tables` in the format of nft, without the values of counters; `None` when
/// one of the tables does not exist.
///
/// # Errors
/// When nft is missing or fails.
pub fn list(tables: &[Table<'_>]) -> Result<Option<String>, NftError> {
    let mut listing = String::new();
    for table in tables {
        let (family, name) = table;
        match query(&["-s", "list", "table", family, name]) {
            Ok(listed) => listing.push_str(&listed),
            // nft has no separate exit status for a missing table.
            Err(NftError::Refused { .. }) if !exists(*table)? => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(listing))
}

/// Returns whether `table` exists in the kernel; also returns false if nft is missing.
///
/// # Errors
/// When nft fails.
pub fn exists((family, name): Table<'_>) -> Result<bool, NftError> {
    let wanted = format!("table {family} {name}");
    match query(&["list", "tables", family]) {
        Ok(listed) => Ok(listed.lines().any(|line| line.trim() == wanted)),
        Err(NftError::NotInstalled) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes `table` and returns whether it existed; does nothing and returns false if nft is
/// missing.
///
/// # Errors
/// When nft fails.
pub fn delete(table: Table<'_>) -> Result<bool, NftError> {
    if !exists(table)? {
        return Ok(false);
    }
    let (family, name) = table;
    apply(&format!("delete table {family} {name}\n"))?;
    Ok(true)
}

/// Runs nft with `arguments` and returns its output.
///
/// # Errors
/// When nft is missing or fails.
pub fn query(arguments: &[&str]) -> Result<String, NftError> {
    feed(arguments, "")
}

fn feed(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NftError::NotInstalled,
            _ => NftError::CannotRun(error),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // If the child exits early, its message on stderr is more helpful than EPIPE.
        let _ = stdin.write_all(input.as_bytes());
    }
    let Output { status, stdout, stderr } = child.wait_with_output().map_err(NftError::CannotRun)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let what =
        if arguments.contains(&"-f") { "nft".to_owned() } else { format!("nft {}", arguments.join(" ")) };
    let message = String::from_utf8_lossy(&stderr).trim().to_owned();
    // nft has no separate exit status for a missing right.
    Err(match message.contains("Operation not permitted") {
        true => NftError::NotAllowed { what, reason: why_no_net_admin() },
        false => NftError::Refused { what, message },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolation::run_isolated;

    #[test]
    fn a_table_is_created_listed_and_deleted() {
        run_isolated(|| {
            let (inet, arp) = (("inet", "ours"), ("arp", "ours"));
            assert!(!exists(inet).unwrap());
            assert_eq!(list(&[inet]).unwrap(), None);
            assert!(!delete(inet).unwrap());
            apply("table inet ours { counter seen { packets 5 bytes 0; }\n}\n").unwrap();
            assert!(exists(inet).unwrap() && !exists(arp).unwrap());
            let listing = list(&[inet]).unwrap().unwrap();
            assert!(listing.contains("counter seen") && !listing.contains('5'), "{listing}");
            assert!(query(&["list", "counter", "inet", "ours", "seen"]).unwrap().contains("packets 5"));
            assert_eq!(list(&[inet, arp]).unwrap(), None);
            apply("table arp ours {}\n").unwrap();
            let both = list(&[inet, arp]).unwrap().unwrap();
            assert!(both.contains("table inet ours") && both.contains("table arp ours"), "{both}");
            assert!(delete(inet).unwrap());
            assert!(!exists(inet).unwrap());
        })
        .unwrap();
    }

    #[test]
    fn a_missing_capability_is_named() {
        run_isolated(|| {
            let mut own = rustix::thread::capabilities(None).unwrap();
            let admin = rustix::thread::CapabilitySet::NET_ADMIN;
            rustix::thread::remove_capability_from_bounding_set(admin).unwrap();
            own.effective -= admin;
            own.permitted -= admin;
            rustix::thread::set_capabilities(None, own).unwrap();
            let error = apply("table inet ours {}\n").unwrap_err();
            assert!(matches!(error, NftError::NotAllowed { .. }), "{error}");
            assert!(error.to_string().contains("root has no CAP_NET_ADMIN here"), "{error}");
        })
        .unwrap();
    }

    #[test]
    fn a_script_is_applied_as_a_whole_or_not_at_all() {
        run_isolated(|| {
            check("table inet ours {}\n").unwrap();
            assert!(!exists(("inet", "ours")).unwrap());
            let error = apply("table inet ours {}\ndelete table inet theirs\n").unwrap_err().to_string();
            assert!(error.starts_with("nft: ") && error.contains("theirs"), "{error}");
            assert!(!exists(("inet", "ours")).unwrap());
        })
        .unwrap();
    }
}
