//! Generates the ingress filter as nftables rules, without performing I/O.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::config::DEFAULT_DEVICE;

/// The name of the counter of dropped packets.
pub(super) const COUNTER: &str = "dropped";

/// The name of the nftables tables for the default name of the host virtual device; for another
/// device, the prefix of their name.
const TABLE: &str = "mobile_agent";

/// The ICMP error types. Their messages quote a packet, and the filter checks the source address of
/// that packet, because the kernel looks up the socket by the addresses and ports of the quoted
/// packet, whatever address the message itself was sent to.
const ERRORS_V4: &str =
    "{ destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem }";

/// The ICMPv6 error types whose quoted packet the filter checks. A redirect is not among them,
/// because it does not affect a socket whose device has no neighbours.
const ERRORS_V6: &str = "{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }";

/// The nftables rules for one host virtual device and its persistent addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ruleset {
    /// The host virtual device, on which packets to the addresses may arrive.
    pub(super) device: String,
    /// The persistent addresses to protect.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// Returns the name of the nftables tables of the agent with this host virtual device. Two tables
/// have this name, one of family `inet` and one of family `arp`.
pub(super) fn table(device: &str) -> String {
    if device == DEFAULT_DEVICE {
        return TABLE.to_owned();
    }
    let mut name = format!("{TABLE}_");
    for byte in device.bytes() {
        // Writing to a String cannot fail.
        let _ = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => write!(name, "{}", byte as char),
            // nft rejects a slash in a name, and no device name contains one.
            other => write!(name, "/{other:02x}"),
        };
    }
    name
}

impl Ruleset {
    /// Returns the script for `nft -f -` that replaces the `inet` and the `arp` table in one
    /// transaction. The counter of dropped packets starts at `dropped`.
    ///
    /// The rules are run at two hooks. At `prerouting`, before connection tracking, they see each
    /// packet as it arrived. At `input`, they see reassembled IPv4 fragments, and destinations that
    /// a source route or a segment routing header has changed.
    pub(super) fn script(&self, dropped: u64) -> String {
        let table = table(&self.device);
        let foreign = format!("iifname != {{ \"lo\", \"{}\" }}", self.device);
        let mut script = String::new();
        for family in ["inet", "arp"] {
            // Deleting a missing table fails, but adding an existing one does not. So add, then
            // delete.
            let _ = writeln!(script, "table {family} {table}\ndelete table {family} {table}");
        }
        let _ = writeln!(script, "table inet {table} {{");
        let _ = writeln!(script, "    counter {COUNTER} {{ packets {dropped} bytes 0; }}");
        chain(&mut script, "foreign", None, &self.foreign());
        for hook in ["prerouting", "input"] {
            let kind = format!("type filter hook {hook} priority raw; policy accept;");
            // Test loopback first, by its index, so that packets of ordinary processes cost one
            // comparison.
            let rules = ["iif lo accept".to_owned(), format!("iifname != \"{}\" jump foreign", self.device)];
            chain(&mut script, hook, Some(&kind), &rules);
        }
        let _ = writeln!(script, "}}\ntable arp {table} {{");
        let arp = self.addresses.iter().filter(|address| address.is_ipv4());
        let arp: Vec<String> = arp.map(|address| format!("{foreign} arp daddr ip {address} drop")).collect();
        let kind = "type filter hook input priority filter; policy accept;";
        chain(&mut script, "input", Some(kind), &arp);
        script.push_str("}\n");
        script
    }

    /// Returns the nftables rules for packets that arrive on another device than the host virtual
    /// device and `lo`.
    fn foreign(&self) -> Vec<String> {
        let drop = format!("counter name {COUNTER} drop");
        let mut rules = Vec::new();
        for address in &self.addresses {
            match address {
                // The quoted source is at byte 12 of the quoted header, which begins at byte 8 of
                // the message.
                IpAddr::V4(v4) => rules.extend([
                    format!("ip daddr {v4} {drop}"),
                    format!("icmp type {ERRORS_V4} @th,160,32 {:#010x} {drop}", v4.to_bits()),
                ]),
                // The quoted header begins at byte 8 here too.
                IpAddr::V6(v6) => rules.extend([
                    format!("ip6 daddr {v6} {drop}"),
                    format!("icmpv6 type {ERRORS_V6} @th,128,128 {:#034x} {drop}", v6.to_bits()),
                ]),
            }
        }
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            // The quoted source may be in a later fragment. ICMPv6 errors fit the smallest MTU (RFC
            // 4443, section 2.4), so only an attacker fragments them.
            rules.push(format!("exthdr frag exists icmpv6 type {ERRORS_V6} {drop}"));
        }
        rules
    }
}

fn chain(script: &mut String, name: &str, kind: Option<&str>, rules: &[String]) {
    let _ = writeln!(script, "    chain {name} {{");
    for line in kind.into_iter().chain(rules.iter().map(String::as_str)) {
        let _ = writeln!(script, "        {line}");
    }
    script.push_str("    }\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(addresses: &[&str]) -> Ruleset {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Ruleset { device: "mobile0".into(), addresses }
    }

    fn assert_has(script: &str, rule: &str) {
        assert!(script.contains(&format!("        {rule}\n")), "no {rule} in {script}");
    }

    #[test]
    fn packets_from_another_device_to_either_address_are_dropped_at_both_hooks() {
        let script = ruleset(&["10.77.0.2", "fd77::2"]).script(7);
        assert_has(&script, "ip daddr 10.77.0.2 counter name dropped drop");
        assert_has(&script, "ip6 daddr fd77::2 counter name dropped drop");
        for hook in ["prerouting", "input"] {
            assert_has(&script, &format!("type filter hook {hook} priority raw; policy accept;"));
        }
        assert_eq!(script.matches("iif lo accept\n        iifname != \"mobile0\" jump foreign").count(), 2);
        assert_has(&script, "iifname != { \"lo\", \"mobile0\" } arp daddr ip 10.77.0.2 drop");
        assert!(script.contains("counter dropped { packets 7 bytes 0; }"), "{script}");
    }

    #[test]
    fn icmp_errors_are_matched_by_the_quoted_source_address() {
        let script = ruleset(&["10.77.0.2", "fd77::2"]).script(0);
        assert_has(
            &script,
            &format!("icmp type {ERRORS_V4} @th,160,32 0x0a4d0002 counter name dropped drop"),
        );
        let six = "0xfd770000000000000000000000000002";
        assert_has(&script, &format!("icmpv6 type {ERRORS_V6} @th,128,128 {six} counter name dropped drop"));
    }

    #[test]
    fn without_addresses_there_are_the_hooks_and_no_rule() {
        let script = ruleset(&[]).script(0);
        assert!(script.contains("hook prerouting") && !script.contains("daddr"), "{script}");
        assert!(!ruleset(&["10.77.0.2"]).script(0).contains("icmpv6"));
        assert!(!ruleset(&["fd77::2"]).script(0).contains("arp daddr"));
    }

    #[test]
    fn both_tables_are_replaced_in_one_transaction_and_named_for_the_device() {
        let script = ruleset(&["10.77.0.2"]).script(0);
        let lines: Vec<&str> = script.lines().collect();
        assert_eq!(lines[..2], ["table inet mobile_agent", "delete table inet mobile_agent"]);
        assert_eq!(lines[2..4], ["table arp mobile_agent", "delete table arp mobile_agent"]);
        assert_eq!(script.matches('{').count(), script.matches('}').count());
        assert_eq!(table("work-1.2"), "mobile_agent_work-1.2");
        assert_eq!(table("a+b"), "mobile_agent_a/2bb");
    }
}
