//! The nftables rules that restrict traffic: how many connections a client has, which destinations
//! a client reaches, who reaches clients, and which transit traffic of this host is forwarded.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::nft::Ruleset;
use crate::config::{Tracking, Transit};
use crate::metrics::DropReason;
use crate::reach::Reach;

/// The network device group of the devices of all relays on a host, so that the rules of one relay
/// do not drop another relay's packets as transit traffic.
pub(crate) const DEVICE_GROUP: u32 = 7700;

/// The named nftables counters, each with the drop reason that it counts.
pub(crate) const COUNTERS: [(&str, DropReason); 7] = [
    ("invalid", DropReason::Invalid),
    ("destination", DropReason::Destination),
    ("reach", DropReason::Reach),
    ("connections", DropReason::Connections),
    ("connection_rate", DropReason::ConnectionRate),
    ("unsolicited", DropReason::Unsolicited),
    ("transit", DropReason::Transit),
];

/// The nftables sets that rules fill as packets pass, so that their elements differ from one
/// listing to the next.
const DYNAMIC_SETS: [&str; 4] = ["connections4", "connections6", "rate4", "rate6"];

/// The size of an nftables set of client addresses: as many addresses as there may be clients.
const SET_SIZE: u32 = 1 << 20;

/// Appends to `text` an nftables chain at a hook of the kernel, with the policy to accept.
pub(super) fn base_chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    chain(text, name, &[&[format!("type {hook}; policy accept;")], rules].concat());
}

fn chain(text: &mut String, name: &str, rules: &[String]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "    chain {name} {{");
    for rule in rules {
        let _ = writeln!(text, "        {rule}");
    }
    text.push_str("    }\n");
}

/// Returns nft's listing of a table without the elements of the sets that rules fill as packets
/// pass.
pub(super) fn without_elements(listing: &str) -> String {
    let mut kept = String::with_capacity(listing.len());
    let (mut is_dynamic, mut is_element) = (false, false);
    for line in listing.lines() {
        let trimmed = line.trim();
        if let Some(name) = trimmed.strip_prefix("set ").and_then(|rest| rest.strip_suffix(" {")) {
            is_dynamic = DYNAMIC_SETS.contains(&name);
        }
        is_element |= is_dynamic && trimmed.starts_with("elements = {");
        if trimmed == "}" {
            (is_dynamic, is_element) = (false, false);
        }
        if !is_element {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Returns the name of the address family in nftables ("ip" or "ip6") and the IP version, 4 or 6.
fn family(address: IpAddr) -> (&'static str, u8) {
    if address.is_ipv4() { ("ip", 4) } else { ("ip6", 6) }
}

fn drop_rule(rule: &str, reason: DropReason) -> String {
    let counter = COUNTERS.iter().find(|(_, counted)| *counted == reason).map_or("", |(name, _)| *name);
    format!("{rule} counter name \"{counter}\" drop").trim_start().to_owned()
}

impl Ruleset {
    /// Appends to `text` the drop counters, the sets of client addresses, and the chains that
    /// exempt connections from tracking and filter clients' packets.
    pub(super) fn write_filter(&self, text: &mut String) {
        for (name, _) in COUNTERS {
            let _ = writeln!(text, "    counter {name} {{ }}");
        }
        for (number, of) in [(4, "ip saddr"), (6, "ip6 saddr")] {
            let _ = write!(
                text,
                "    set connections{number} {{ typeof {of}; size {SET_SIZE}; flags dynamic; }}\n    \
                 set rate{number} {{ typeof {of}; size {SET_SIZE}; flags dynamic, timeout; timeout 1m; }}\n"
            );
        }
        if let Some((to, from)) = self.notrack_rules() {
            base_chain(text, "untracked_in", "filter hook prerouting priority raw", &[to]);
            base_chain(text, "untracked_out", "filter hook output priority raw", &[from]);
        }
        chain(text, "limits", &self.limit_rules());
        let groups = self.reach_groups();
        for (number, (reach, _)) in groups.iter().enumerate() {
            chain(text, &format!("reach{number}"), &self.reach_rules(reach));
        }
        base_chain(
            text,
            "from_clients",
            // After connection tracking, before destination NAT, and so before the entry is
            // confirmed.
            "filter hook prerouting priority mangle",
            &self.rules_for_client_packets(&groups),
        );
    }

    /// Returns the two rules (for incoming and outgoing packets) that exempt connections to the
    /// relay's port from connection tracking, or `None` if these are to be tracked. Without
    /// tracking, strangers' connections cannot fill the table that holds clients' NAT entries, and
    /// a full table keeps no client from connecting.
    fn notrack_rules(&self) -> Option<(String, String)> {
        match self.track {
            Tracking::On => return None,
            Tracking::Auto if self.host.has_firewall => return None,
            Tracking::Auto | Tracking::Off => {}
        }
        let (device, port) = (&self.device, self.listen.port());
        let (to, from) = match self.listen.ip() {
            any if any.is_unspecified() => (String::new(), String::new()),
            one => {
                let (ip, _) = family(one);
                (format!("{ip} daddr {one} "), format!("{ip} saddr {one} "))
            }
        };
        // Packets from clients stay tracked: another table's rules may translate them.
        Some((
            format!("iifname != \"{device}\" {to}fib daddr type local tcp dport {port} notrack"),
            format!("oifname != \"{device}\" {from}tcp sport {port} notrack"),
        ))
    }

    /// Returns the nftables rules that limit a client's number of connections and its rate of new
    /// ones.
    fn limit_rules(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for (number, of) in [(4, "ip saddr"), (6, "ip6 saddr")] {
            let rate = self.connection_rate;
            if rate > 0 {
                let burst = u64::from(rate) * 10;
                rules.push(drop_rule(
                    &format!(
                        "update @rate{number} {{ {of} limit rate over {rate}/second burst {burst} packets }}"
                    ),
                    DropReason::ConnectionRate,
                ));
            }
            if self.connections > 0 {
                rules.push(drop_rule(
                    &format!("add @connections{number} {{ {of} ct count over {} }}", self.connections),
                    DropReason::Connections,
                ));
            }
        }
        rules
    }

    /// Returns the distinct reaches, each with the addresses of the clients that have it as their
    /// own. The first one is the reach of all other clients.
    fn reach_groups(&self) -> Vec<(&Reach, Vec<IpAddr>)> {
        let mut groups = vec![(&self.reach, Vec::new())];
        for (address, reach) in &self.reach_of {
            // A client's reach that equals the common one needs no entry.
            match groups.iter_mut().find(|(known, _)| *known == reach) {
                Some((known, _)) if **known == self.reach => {}
                Some((_, of)) => of.push(*address),
                None => groups.push((reach, vec![*address])),
            }
        }
        groups
    }

    /// Returns the nftables rules that admit new connections to the destinations within `reach`,
    /// subject to the limits, and drop all others.
    fn reach_rules(&self, reach: &Reach) -> Vec<String> {
        let Some(ranges) = reach.ranges() else { return vec!["goto limits".to_owned()] };
        let mut rules = Vec::new();
        let mut allow = |networks: Vec<String>, ip: &str| {
            if !networks.is_empty() {
                rules.push(format!("{ip} daddr {{ {} }} goto limits", networks.join(", ")));
            }
        };
        if reach.has_internet() {
            // Listed networks come first, including this host's own addresses in them.
            let (four, six): (Vec<IpNet>, Vec<IpNet>) =
                reach.networks().partition(|net| matches!(net, IpNet::V4(_)));
            for (networks, ip) in [(four, "ip"), (six, "ip6")] {
                let networks = IpNet::aggregate(&networks);
                allow(networks.iter().map(ToString::to_string).collect(), ip);
            }
            rules.push(drop_rule("fib daddr type { local, anycast }", DropReason::Reach));
        }
        let mut allow = |ranges: Vec<(IpAddr, IpAddr)>, ip: &str| {
            let ranges: Vec<String> = ranges
                .iter()
                .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") })
                .collect();
            if !ranges.is_empty() {
                rules.push(format!("{ip} daddr {{ {} }} goto limits", ranges.join(", ")));
            }
        };
        allow(ranges.ipv4().collect(), "ip");
        allow(ranges.ipv6().collect(), "ip6");
        rules.push(drop_rule("", DropReason::Reach));
        rules
    }

    /// Returns the rules for packets that clients send.
    fn rules_for_client_packets(&self, groups: &[(&Reach, Vec<IpAddr>)]) -> Vec<String> {
        let device = &self.device;
        let mut rules = vec![
            format!("iifname != \"{device}\" accept"),
            // These include the replies of clients.
            "ct state established,related accept".to_owned(),
            drop_rule("ct state invalid", DropReason::Invalid),
            // Later packets of a connection without answers, such as a stream of datagrams. Only
            // its first packet is unconfirmed, and that one was checked.
            "ct status confirmed accept".to_owned(),
            // RFC 2644: a router does not forward directed broadcasts, but this host's own programs
            // would receive them.
            drop_rule("fib daddr type { broadcast, multicast }", DropReason::Destination),
        ];
        if groups.iter().all(|(reach, _)| **reach == Reach::All) {
            rules.push("goto limits".to_owned());
            return rules;
        }
        for own in &self.own {
            let (ip, number) = family(*own);
            let echo = if number == 4 { "icmp" } else { "icmpv6" };
            rules.push(format!("{ip} daddr {own} {echo} type echo-request goto limits"));
        }
        for resolver in &self.resolvers {
            let (ip, _) = family(*resolver);
            rules.push(format!("{ip} daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 goto limits"));
        }
        // Other clients: the forward chain decides whether clients are isolated.
        for (pool, own) in self.pools.iter().zip(&self.own) {
            let (ip, _) = family(*own);
            rules.push(format!("{ip} daddr {pool} {ip} daddr != {own} goto limits"));
        }
        for (number, (_, clients)) in groups.iter().enumerate().skip(1) {
            for (version, ip) in [(4, "ip"), (6, "ip6")] {
                let of: Vec<String> = clients
                    .iter()
                    .filter(|address| family(**address).1 == version)
                    .map(ToString::to_string)
                    .collect();
                if !of.is_empty() {
                    rules.push(format!("{ip} saddr {{ {} }} goto reach{number}", of.join(", ")));
                }
            }
        }
        rules.push("goto reach0".to_owned());
        rules
    }

    /// Returns the nftables rules at the forward hook: client isolation, MSS clamping, packets to
    /// clients, and transit traffic.
    pub(super) fn forward_rules(&self) -> Vec<String> {
        let device = &self.device;
        let mut rules = Vec::new();
        if self.isolate {
            rules.push(format!("iifname \"{device}\" oifname \"{device}\" drop"));
        }
        // Clamp the MSS of both SYNs to the smaller MTU of the two directions (`rt mtu` looks at
        // both): the outgoing interface may have a smaller MTU than the tunnel (PPPoE), and a
        // filter beyond may drop the ICMP errors that would report it.
        for direction in ["iifname", "oifname"] {
            rules.push(format!(
                "{direction} \"{device}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
            ));
        }
        let to_clients = |rule: &str| format!("oifname \"{device}\" {rule}");
        rules.push(to_clients(&format!("iifname \"{device}\" accept")));
        rules.push(to_clients("ct state established,related accept"));
        for pool in &self.open {
            let (ip, _) = family(pool.addr());
            rules.push(to_clients(&format!("{ip} daddr {pool} accept")));
        }
        rules.push(drop_rule(&to_clients("ct state invalid"), DropReason::Invalid));
        // Packets of a `home-relay forward`, or of the operator's own DNAT rules.
        rules.push(to_clients("ct status dnat accept"));
        rules.push(drop_rule(&format!("oifname \"{device}\""), DropReason::Unsolicited));
        for (family, enabled_forwarding) in ["ipv4", "ipv6"].into_iter().zip(self.host.enabled_forwarding) {
            let is_dropped = match self.transit {
                Transit::Auto => enabled_forwarding,
                Transit::Accept => false,
                Transit::Drop => true,
            };
            if is_dropped {
                let transit =
                    format!("meta nfproto {family} iifgroup != {DEVICE_GROUP} oifgroup != {DEVICE_GROUP}");
                rules.push(drop_rule(&transit, DropReason::Transit));
            }
        }
        rules
    }
}

#[cfg(test)]
pub(super) mod tests;
