//! The MOBILE route: device, addresses, table and rules, made idempotently and put back when somebody removes them.
//!
//! Fail closed: rules and the `unreachable` routes are there before the relay is ever reached, and nothing of it goes
//! when the agent ends. `mobile cleanup` removes it.

pub(crate) mod assignment;
pub(crate) mod claim;
pub(crate) mod claim_tracker;
pub(crate) mod conflicting_rules;
pub(crate) mod ingress;
pub(crate) mod networks;
pub(crate) mod plan;
mod reconciler;
mod remove;

pub(crate) use reconciler::{BypassChange, RouteReconciler, RouteStatus};
pub(crate) use remove::remove;

/// A device is named by its configuration everywhere in /proc/sys too.
fn device_sysctls(device: &str) -> [(String, &'static str); 5] {
    [
        // Loose: what comes back on the device may have any source.
        (format!("net/ipv4/conf/{device}/rp_filter"), "2"),
        // The reverse path of a marked packet is looked up with its mark.
        (format!("net/ipv4/conf/{device}/src_valid_mark"), "1"),
        // No link-local address, so no solicitations of any kind enter the tunnel.
        (format!("net/ipv6/conf/{device}/addr_gen_mode"), "1"),
        (format!("net/ipv6/conf/{device}/accept_ra"), "0"),
        // A distribution may disable IPv6 on new devices; it costs nothing where no address is assigned.
        (format!("net/ipv6/conf/{device}/disable_ipv6"), "0"),
    ]
}
