//! Raises the limit on open files and sockets of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit on open descriptors to the hard limit; a daemon calls this once when it
/// starts.
///
/// A relay needs a socket for each client. The usual soft limit of 1024 is for programs that use
/// `select`.
pub fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!("cannot raise the number of open files ({error}): it stays what `ulimit -n` says");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_allows_is_used() {
        raise_limit();
        let (now, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(now, most);
    }
}
