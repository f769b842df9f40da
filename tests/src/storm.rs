//! A storm of netlink events: addresses and routes that come and go on a device of their own.

use anyhow::Result;

use crate::ns::Ns;

/// Two ends of a cable that leads nowhere: what matters is that the kernel tells of it.
const DEVICE: &str = "storm0";

/// Flips for one batch of `ip`: enough that its start costs nothing beside them.
const BATCH: usize = 1_000;

/// Adds and removes an address and a route `flips` times, as fast as the kernel takes it: four events each, and for
/// the address its own routes beside it.
pub fn netlink_storm(ns: &Ns, flips: usize) -> Result<()> {
    ns.ip(&[&format!("link add {DEVICE} type veth peer name storm1"), &format!("link set {DEVICE} up")])?;
    let flip = [
        format!("address add 198.18.0.1/24 dev {DEVICE}"),
        format!("route add 198.19.0.0/24 dev {DEVICE}"),
        format!("route del 198.19.0.0/24 dev {DEVICE}"),
        format!("address del 198.18.0.1/24 dev {DEVICE}"),
    ];
    let lines: Vec<&str> =
        flip.iter().map(String::as_str).cycle().take(BATCH.min(flips) * flip.len()).collect();
    for _ in 0..flips.div_ceil(BATCH) {
        ns.ip(&lines)?;
    }
    ns.ip(&[&format!("link del {DEVICE}")])
}
