//! Explains why the kernel refuses a change of the network: the capability is missing, or does not
//! apply.

use rustix::thread::{CapabilitySet, capabilities};

/// Returns why the kernel refused this thread an operation that takes `CAP_NET_ADMIN`, with the
/// next step.
#[must_use]
pub fn why_no_net_admin() -> &'static str {
    let held = capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::NET_ADMIN));
    match (held, nix::unistd::geteuid().is_root()) {
        (true, _) => {
            "CAP_NET_ADMIN does not count here, because the network namespace belongs to another user namespace or a \
             security module forbids it: run outside of the rootless container, or allow it there"
        }
        (false, true) => {
            "root has no CAP_NET_ADMIN here: start the container with `--cap-add NET_ADMIN`, or allow the \
             capability in the service's unit"
        }
        (false, false) => "run as root, or with CAP_NET_ADMIN",
    }
}
