//! The text of the relay's nftables table, generated from the configuration and the store: source
//! NAT of clients, port forwards, how many connections a client has, which destinations a client
//! reaches, who reaches clients, and which transit traffic of this host is forwarded.
//!
//! Other tables of the host are never touched. The relay's table is replaced as a whole in one
//! transaction, so there is no moment with half a table.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use mobile_host::nft;

use self::chain::{base_chain, chain, drop_rule, family};
use self::destinations::{Destinations, ReachGroup};
use self::limits::ConnectionLimits;
use self::listen_port::ListenPort;
use self::nat::Nat;
use super::nft::{FAMILY, table};
use crate::config::{Config, Inbound, Ipv6Nat, Transit};
use crate::metrics::DropReason;
use crate::pool::Pools;
use crate::reach::Reach;

mod chain;
mod destinations;
mod limits;
mod listen_port;
mod nat;

pub(super) use self::chain::COUNTERS;
pub(crate) use self::nat::PortRedirect;

/// The network device group of the devices of all relays on a host, so that the rules of one relay
/// do not drop another relay's packets as transit traffic.
pub(super) const DEVICE_GROUP: u32 = 7700;

/// The nftables sets that rules fill as packets pass, so that their elements differ from one
/// listing to the next.
const DYNAMIC_SETS: [&str; 4] = ["connections4", "connections6", "rate4", "rate6"];

/// The size of an nftables set of client addresses: as many addresses as there may be clients.
const SET_SIZE: u32 = 1 << 20;

/// The inputs from which the relay's nftables table is generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// The name of the home virtual device.
    device: String,
    /// The address pools, and the home virtual device's own address in each of them.
    pools: Vec<IpNet>,
    own: Vec<IpAddr>,
    nat: Nat,
    /// Whether clients are kept from reaching each other.
    isolate: bool,
    /// The pools to whose clients Internet hosts may send first.
    open: Vec<IpNet>,
    destinations: Destinations,
    limits: ConnectionLimits,
    port: ListenPort,
    /// The policy for packets that this host forwards between devices other than the relay's.
    transit: Transit,
    /// The state of the host, detected when the rules are installed.
    host: HostState,
}

/// The state of the host on which the nftables rules depend, beside the configuration and the
/// store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HostState {
    /// Whether another firewall filters packets to or from this host.
    pub(crate) has_firewall: bool,
    /// Whether this relay turned on forwarding, of IPv4 and of IPv6.
    pub(crate) enabled_forwarding: [bool; 2],
}

impl Ruleset {
    /// Creates the ruleset for a configuration, with the pools that this host serves.
    pub(crate) fn of(
        config: &Config,
        pools: &Pools,
        redirects: Vec<PortRedirect>,
        reach_of: Vec<(IpAddr, Reach)>,
    ) -> Self {
        let (nat, clients) = (&config.nat, &config.clients);
        let hidden = |pool: &IpNet| match pool {
            IpNet::V4(_) => nat.masquerade,
            IpNet::V6(_) => nat.masquerade && nat.ipv6 == Ipv6Nat::Masquerade,
        };
        let (masqueraded, routed): (Vec<IpNet>, Vec<IpNet>) = pools.networks().partition(hidden);
        Self {
            device: config.tunnel.device.clone(),
            pools: pools.networks().collect(),
            own: pools.own_addresses().iter().map(IpNet::addr).collect(),
            nat: Nat { masqueraded, interface: nat.interface.clone(), redirects },
            isolate: clients.isolate,
            open: if clients.inbound == Inbound::Routed { routed } else { Vec::new() },
            destinations: Destinations {
                reach: clients.reach(),
                reach_of,
                resolvers: config.dns.servers.clone(),
            },
            limits: ConnectionLimits {
                connections: config.limits.connections_per_client,
                rate: config.limits.connection_rate_per_client,
            },
            port: ListenPort { address: config.listen.address, track: config.listen.track },
            transit: nat.transit,
            host: HostState::default(),
        }
    }

    /// Returns the ruleset for the state `host` of the host.
    pub(super) fn for_host(&self, host: HostState) -> Self {
        Self { host, ..self.clone() }
    }

    /// Returns the state of the host that the ruleset assumes.
    pub(super) fn host(&self) -> HostState {
        self.host
    }

    /// Returns whether the configuration relies on the ruleset: whether a pool is masqueraded, a
    /// port is forwarded or a reach is not "all". Otherwise the rules only add protection.
    pub(crate) fn is_required(&self) -> bool {
        self.nat.is_used() || self.destinations.is_bounded()
    }

    /// Returns whether Internet hosts may send datagrams to a client first.
    pub(crate) fn accepts_inbound_datagrams(&self) -> bool {
        !self.open.is_empty() || self.nat.redirects.iter().any(|redirect| redirect.protocol == "udp")
    }

    /// Returns the script for `nft -f -`, which atomically creates or replaces the table.
    pub(crate) fn text(&self) -> String {
        let table = self.table();
        let mut text = format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        self.write_filter(&mut text);
        base_chain(
            &mut text,
            "prerouting",
            "nat hook prerouting priority dstnat",
            &self.nat.dnat_rules(&self.device),
        );
        base_chain(
            &mut text,
            "postrouting",
            "nat hook postrouting priority srcnat",
            &self.nat.masquerade_rules(&self.device),
        );
        base_chain(&mut text, "forward", "filter hook forward priority filter", &self.forward_rules());
        text.push_str("}\n");
        text
    }

    /// Appends to `text` the drop counters, the sets of client addresses, and the chains that
    /// exempt connections from tracking and filter clients' packets.
    fn write_filter(&self, text: &mut String) {
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
        if let Some((to, from)) = self.port.notrack_rules(&self.device, self.host.has_firewall) {
            base_chain(text, "untracked_in", "filter hook prerouting priority raw", &[to]);
            base_chain(text, "untracked_out", "filter hook output priority raw", &[from]);
        }
        chain(text, "limits", &self.limits.rules());
        let groups = self.destinations.groups();
        for (number, (reach, _)) in groups.iter().enumerate() {
            chain(text, &format!("reach{number}"), &destinations::rules(reach));
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

    /// Returns the rules for packets that clients send.
    fn rules_for_client_packets(&self, groups: &[ReachGroup<'_>]) -> Vec<String> {
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
        for resolver in &self.destinations.resolvers {
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
    fn forward_rules(&self) -> Vec<String> {
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

    /// Returns the name of the nftables table.
    pub(crate) fn table(&self) -> String {
        table(&self.device)
    }

    /// Installs the ruleset in the kernel.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        Ok(nft::apply(&self.text())?)
    }

    /// Returns the installed table as nft lists it, without the elements of the sets that rules
    /// fill as packets pass, or `None` if there is none.
    pub(crate) fn listing(&self) -> anyhow::Result<Option<String>> {
        Ok(nft::list(&[(FAMILY, &self.table())])?.as_deref().map(without_elements))
    }

    /// Checks whether the kernel accepts the ruleset, without changing anything.
    pub(crate) fn check_rules(&self) -> anyhow::Result<()> {
        Ok(nft::check(&self.text())?)
    }
}

/// Returns nft's listing of a table without the elements of the sets that rules fill as packets
/// pass.
fn without_elements(listing: &str) -> String {
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

#[cfg(test)]
mod tests;
