//! Maintains the MOBILE route, by which mobile processes reach the tunnel: the addresses of the
//! host virtual device, the routing table, its rules and the ingress filter.
//!
//! `plan` computes which objects must be in the kernel, and `reconciler` creates them by
//! `route_objects`, and restores them when other programs remove them. `claim` and `claim_tracker`
//! judge the addresses and resolvers that the relay pushes, by this host's own networks, which
//! `networks` reads, and raise an `objection`. `assignment` keeps the pushed configuration on disk,
//! and `adoption` puts it in force. `conflicting_rules` finds rules of other programs that capture
//! packets of mobile processes, and `rule_position` moves the agent's rules before them.
//! `delivery_filter` drops packets of the relay to other addresses of this host.
//!
//! The route fails closed: rules and `unreachable` routes are in place before the relay is first
//! reached, and stay when the agent ends. `mobile cleanup` removes them.

mod adoption;
pub(crate) mod assignment;
pub(crate) mod claim;
pub(crate) mod claim_tracker;
pub(crate) mod conflicting_rules;
pub(crate) mod delivery_filter;
pub(crate) mod ingress;
pub(crate) mod networks;
pub(crate) mod objection;
pub(crate) mod plan;
mod reconciler;
mod remove;
mod route_objects;
mod rule_position;

pub(crate) use reconciler::{BypassChange, RouteReconciler, RouteSettings, RouteStatus};
pub(crate) use remove::{HostDevice, remove};
