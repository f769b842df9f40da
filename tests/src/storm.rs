//! Storms of netlink events, caused by addresses and routes that are added and removed on a device
//! of their own.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::ns::Ns;

/// The name of a veth device without traffic, whose changes only serve to cause netlink events.
const DEVICE: &str = "storm0";

/// The number of times that one run of `ip` adds and removes an address and a route: enough that
/// starting `ip` costs little in comparison.
const BATCH: usize = 1_000;

/// Adds and removes an address and a route as fast as possible, `flips` times (rounded up to a
/// multiple of 1,000 if more).
///
/// Each flip causes four netlink notifications, and more for the routes that belong to the address.
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

/// Returns a destination for the routes of [`many_routes`] and [`route_storm`], in 11.0.0.0/8 or
/// 12.0.0.0/8, which no host of the lab uses.
fn destination(first: u8, number: usize) -> String {
    let [_, _, high, low] = u32::try_from(number).unwrap_or_default().to_be_bytes();
    let middle = number >> 16;
    format!("{first}.{}.{high}.{low}/32", middle % 256)
}

/// Adds `count` routes to the main table of `ns`, as on a router with a full Internet table.
pub fn many_routes(ns: &Ns, count: usize) -> Result<()> {
    let device = "many0";
    ns.ip(&[&format!("link add {device} type veth peer name many1"), &format!("link set {device} up")])?;
    let lines: Vec<String> =
        (0..count).map(|number| format!("route add {} dev {device}", destination(11, number))).collect();
    for batch in lines.chunks(20 * BATCH) {
        ns.ip(&batch.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Adds and deletes routes that do not concern the agent, 20 changes a second for `time`, as a
/// routing daemon does.
///
/// Returns the number of changes.
pub fn route_storm(ns: &Ns, time: Duration) -> Result<usize> {
    let end = Instant::now() + time;
    let mut changes = 0;
    while Instant::now() < end {
        let to = destination(12, changes);
        ns.ip(&[&format!("route add {to} dev many0"), &format!("route del {to} dev many0")])?;
        changes += 2;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(changes)
}
