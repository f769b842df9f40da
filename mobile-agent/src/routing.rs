//! Maintains the MOBILE route, by which mobile processes reach the tunnel: the addresses of the
//! host virtual device, the routing table, its rules and the ingress filter.
//!
//! `plan` computes which objects must be in the kernel, and `reconciler` creates them, and restores
//! them when other programs remove them. `claim` and `claim_tracker` judge the addresses and
//! resolvers that the relay pushes, by this host's own networks, which `networks` reads.
//! `assignment` keeps the pushed configuration on disk. `conflicting_rules` finds rules of other
//! programs that capture packets of mobile processes.
//!
//! The route fails closed: rules and `unreachable` routes are in place before the relay is first
//! reached, and stay when the agent ends. `mobile cleanup` removes them.

pub(crate) mod assignment;
pub(crate) mod claim;
pub(crate) mod claim_tracker;
pub(crate) mod conflicting_rules;
pub(crate) mod delivery_filter;
pub(crate) mod ingress;
pub(crate) mod networks;
pub(crate) mod plan;
mod reconciler;
mod remove;

pub(crate) use reconciler::{BypassChange, RouteReconciler, RouteStatus};
pub(crate) use remove::{HostDevice, remove};

/// Returns the kernel settings of the host virtual device: the path below /proc/sys and the
/// required value of each.
fn device_sysctls(device: &str) -> [(String, &'static str); 5] {
    [
        // Loose mode: packets from the tunnel may have any source.
        (format!("net/ipv4/conf/{device}/rp_filter"), "2"),
        // Look up the reverse path of a marked packet with its mark.
        (format!("net/ipv4/conf/{device}/src_valid_mark"), "1"),
        // Without a link-local address, no neighbour or router solicitations enter the tunnel.
        (format!("net/ipv6/conf/{device}/addr_gen_mode"), "1"),
        (format!("net/ipv6/conf/{device}/accept_ra"), "0"),
        // A distribution may disable IPv6 on new devices. Enabling it has no effect until an
        // address is assigned.
        (format!("net/ipv6/conf/{device}/disable_ipv6"), "0"),
    ]
}
