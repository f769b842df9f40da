//! The parts from which every chain of the relay's nftables table is written: chains, drop
//! counters, and the names of address families.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::metrics::DropReason;

/// The named nftables counters, each with the drop reason that it counts.
pub(in crate::network) const COUNTERS: [(&str, DropReason); 7] = [
    ("invalid", DropReason::Invalid),
    ("destination", DropReason::Destination),
    ("reach", DropReason::Reach),
    ("connections", DropReason::Connections),
    ("connection_rate", DropReason::ConnectionRate),
    ("unsolicited", DropReason::Unsolicited),
    ("transit", DropReason::Transit),
];

/// Appends to `text` an nftables chain at a hook of the kernel, with the policy to accept.
pub(super) fn base_chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    chain(text, name, &[&[format!("type {hook}; policy accept;")], rules].concat());
}

/// Appends to `text` an nftables chain that other chains jump to.
pub(super) fn chain(text: &mut String, name: &str, rules: &[String]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "    chain {name} {{");
    for rule in rules {
        let _ = writeln!(text, "        {rule}");
    }
    text.push_str("    }\n");
}

/// Returns the name of the address family in nftables ("ip" or "ip6") and the IP version, 4 or 6.
pub(super) fn family(address: IpAddr) -> (&'static str, u8) {
    if address.is_ipv4() { ("ip", 4) } else { ("ip6", 6) }
}

/// Returns `rule` with the verdict to count a packet under `reason` and drop it.
pub(super) fn drop_rule(rule: &str, reason: DropReason) -> String {
    let counter = COUNTERS.iter().find(|(_, counted)| *counted == reason).map_or("", |(name, _)| *name);
    format!("{rule} counter name \"{counter}\" drop").trim_start().to_owned()
}
