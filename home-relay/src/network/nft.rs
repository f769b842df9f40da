//! Our nftables table: masquerading what clients send to the world, what is forwarded to them, isolation, and segments
//! that fit the way. The host's own tables are never touched; ours is replaced as a whole in one transaction, so there
//! is no moment with half a table.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use ipnet::IpNet;
use mobile_io::nft;

use super::rules::base_chain;
use crate::config::{Config, DEFAULT_DEVICE, Inbound, Ipv6Nat, Tracking, Transit};
use crate::pool::Pools;
use crate::reach::Reach;

/// What the names of our tables begin with.
pub(crate) const TABLE: &str = "home_relay";

/// The family of our tables.
const FAMILY: &str = "inet";

/// Every rule of the relay with this device lives in this table, so that one deletion removes them all, and no other
/// relay's. With the default device it is [`TABLE`] alone.
pub(crate) fn table(device: &str) -> String {
    if device == DEFAULT_DEVICE {
        return TABLE.to_owned();
    }
    let mut name = format!("{TABLE}_");
    for byte in device.bytes() {
        // Writing to a String does not fail.
        let _ = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => write!(name, "{}", byte as char),
            // What nft takes in a name and no device has in its own.
            other => write!(name, "/{other:02x}"),
        };
    }
    name
}

/// What the ruleset depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// The home virtual device.
    pub(crate) device: String,
    /// The pools whose addresses are hidden behind the relay's; of the others the replies are routed here.
    pub(crate) masqueraded: Vec<IpNet>,
    /// Masquerade only what leaves here; any interface but the device otherwise.
    pub(crate) interface: Option<String>,
    /// Clients do not reach each other.
    pub(crate) isolate: bool,
    /// Ports of this host that lead to a client.
    pub(crate) redirects: Vec<Redirect>,
    /// The pools, each with the device's own address in it.
    pub(crate) pools: Vec<IpNet>,
    pub(crate) own: Vec<IpAddr>,
    /// The pools whose clients can be reached unasked from outside.
    pub(crate) open: Vec<IpNet>,
    /// Common reach of clients, and the addresses that have a reach of their own.
    pub(crate) reach: Reach,
    pub(crate) reach_of: Vec<(IpAddr, Reach)>,
    /// The resolvers that are pushed to clients, which may reach them wherever they are.
    pub(crate) resolvers: Vec<IpAddr>,
    /// Tracked connections of a client, and new ones a second; 0 for no limit.
    pub(crate) connections: u32,
    pub(crate) connection_rate: u32,
    /// Where this relay listens, and whether the kernel tracks the connections to it.
    pub(crate) listen: SocketAddr,
    pub(crate) track: Tracking,
    /// Policy for packets between other devices.
    pub(crate) transit: Transit,
    /// State of the host, detected when the rules are installed.
    pub(crate) host: HostState,
}

/// State of the host on which rules depend, beside the configuration and the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HostState {
    /// Whether another firewall filters what comes to this host or leaves it.
    pub(crate) has_firewall: bool,
    /// Whether this relay turned on forwarding, of IPv4 and of IPv6.
    pub(crate) made_router: [bool; 2],
}

/// A port of this host that leads to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Redirect {
    /// "tcp" or "udp".
    pub(crate) protocol: &'static str,
    /// The port here.
    pub(crate) port: u16,
    /// The client's persistent address and port.
    pub(crate) to: SocketAddr,
}

impl Ruleset {
    /// As configured, for the pools this host serves.
    pub(crate) fn of(
        config: &Config,
        pools: &Pools,
        redirects: Vec<Redirect>,
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
            masqueraded,
            interface: nat.interface.clone(),
            isolate: clients.isolate,
            redirects,
            pools: pools.networks().collect(),
            own: pools.own_addresses().iter().map(IpNet::addr).collect(),
            open: if clients.inbound == Inbound::Routed { routed } else { Vec::new() },
            reach: clients.reach(),
            reach_of,
            resolvers: config.dns.servers.clone(),
            connections: config.limits.connections_per_client,
            connection_rate: config.limits.connection_rate_per_client,
            listen: config.listen.address,
            track: config.listen.track,
            transit: nat.transit,
            host: HostState::default(),
        }
    }

    /// Returns whether the relay cannot do without the ruleset what its configuration promises.
    /// Without masquerading, forwards and a bounded reach, the rules only add protection.
    pub(crate) fn is_needed(&self) -> bool {
        let is_bounded = self.reach != Reach::All || self.reach_of.iter().any(|(_, own)| *own != Reach::All);
        !self.masqueraded.is_empty() || !self.redirects.is_empty() || is_bounded
    }

    /// Returns whether anybody may send a client datagrams unasked, which the client then answers.
    pub(crate) fn has_inbound_datagrams(&self) -> bool {
        !self.open.is_empty() || self.redirects.iter().any(|redirect| redirect.protocol == "udp")
    }

    /// The text for `nft -f -`: creates the table if it is missing, then replaces it, atomically.
    pub(crate) fn text(&self) -> String {
        let table = self.table();
        let mut text = format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        self.filter(&mut text);
        base_chain(&mut text, "prerouting", "nat hook prerouting priority dstnat", &self.redirecting());
        base_chain(&mut text, "postrouting", "nat hook postrouting priority srcnat", &self.masquerading());
        base_chain(&mut text, "forward", "filter hook forward priority filter", &self.forwarding());
        text.push_str("}\n");
        text
    }

    fn redirecting(&self) -> Vec<String> {
        let device = &self.device;
        let rule = |redirect: &Redirect| {
            let Redirect { protocol, port, to } = redirect;
            let (nfproto, family) = if to.is_ipv4() { ("ipv4", "ip") } else { ("ipv6", "ip6") };
            format!(
                "iifname != \"{device}\" meta nfproto {nfproto} fib daddr type local {protocol} dport {port} \
                 dnat {family} to {to}"
            )
        };
        self.redirects.iter().map(rule).collect()
    }

    fn masquerading(&self) -> Vec<String> {
        let out = match &self.interface {
            Some(interface) => format!("oifname \"{interface}\""),
            None => format!("oifname != \"{}\"", self.device),
        };
        let rule = |pool: &IpNet| {
            let family = if matches!(pool, IpNet::V4(_)) { "ip" } else { "ip6" };
            format!("{family} saddr {pool} {out} masquerade")
        };
        self.masqueraded.iter().map(rule).collect()
    }

    /// The table it is in.
    pub(crate) fn table(&self) -> String {
        table(&self.device)
    }

    /// Puts the ruleset into the kernel.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        Ok(nft::apply(&self.text())?)
    }

    /// What is in the table now, as nft writes it; `None`: there is none.
    pub(crate) fn listing(&self) -> anyhow::Result<Option<String>> {
        Ok(nft::list(&[(FAMILY, &self.table())])?)
    }

    /// Asks whether the kernel would take it; nothing is changed.
    pub(crate) fn try_out(&self) -> anyhow::Result<()> {
        Ok(nft::check(&self.text())?)
    }
}

/// What to do when nftables does not work on this host.
pub(crate) const HINT: &str = "cannot install the nftables rules; where the kernel lacks connlimit, set [limits] \
                               connections_per_client = 0; without nftables on this host set [nat] masquerade = false and \
                               [clients] reach = \"all\", and delete the forwards";

/// Removes the table; says whether there was one. A host without nft has none.
pub(crate) fn remove(table: &str) -> anyhow::Result<bool> {
    nft::delete((FAMILY, table)).with_context(|| format!("cannot delete table inet {table}"))
}

/// Is the table in the kernel? Without `nft` it cannot be.
pub(crate) fn exists(table: &str) -> anyhow::Result<bool> {
    Ok(nft::exists((FAMILY, table))?)
}

/// Every chain of every table, as nft's JSON.
pub(crate) fn list_chains() -> anyhow::Result<serde_json::Value> {
    let listed = nft::query(&["-j", "list", "chains"])?;
    serde_json::from_str(&listed).context("nft list chains: not the JSON it should be")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset() -> Ruleset {
        super::super::rules::tests::ruleset()
    }

    fn assert_has(text: &str, rule: &str) {
        assert!(text.contains(&format!("        {rule}\n")), "no {rule} in {text}");
    }

    #[test]
    fn both_families_are_masqueraded_out_of_anything_but_the_device() {
        let text = ruleset().text();
        assert_has(&text, "ip saddr 10.77.0.0/24 oifname != \"home0\" masquerade");
        assert_has(&text, "ip6 saddr fd12::/64 oifname != \"home0\" masquerade");
    }

    #[test]
    fn a_named_interface_is_the_only_way_out_that_is_masqueraded() {
        let text = Ruleset { interface: Some("eth0".into()), ..ruleset() }.text();
        assert_has(&text, "ip saddr 10.77.0.0/24 oifname \"eth0\" masquerade");
        assert!(!text.contains("oifname != \"home0\" masquerade"), "{text}");
    }

    #[test]
    fn a_port_of_the_relay_leads_to_a_client_in_either_family() {
        let redirects = vec![
            Redirect { protocol: "tcp", port: 2222, to: "10.77.0.2:22".parse().unwrap() },
            Redirect { protocol: "udp", port: 53, to: "[fd12::2]:5353".parse().unwrap() },
        ];
        let text = Ruleset { redirects, masqueraded: Vec::new(), ..ruleset() };
        assert!(text.is_needed());
        let text = text.text();
        assert_has(
            &text,
            "iifname != \"home0\" meta nfproto ipv4 fib daddr type local tcp dport 2222 dnat ip to 10.77.0.2:22",
        );
        assert_has(
            &text,
            "iifname != \"home0\" meta nfproto ipv6 fib daddr type local udp dport 53 dnat ip6 to [fd12::2]:5353",
        );
        assert!(!text.contains("masquerade"), "{text}");
    }

    #[test]
    fn relays_with_other_devices_have_other_tables() {
        assert_eq!(table("home0"), "home_relay");
        assert_eq!(table("vpn-2.1"), "home_relay_vpn-2.1");
        assert_eq!(table("a+b"), "home_relay_a/2bb");
        let text = Ruleset { device: "vpn1".into(), ..ruleset() }.text();
        assert!(
            text.starts_with("table inet home_relay_vpn1\ndelete table inet home_relay_vpn1\n"),
            "{text}"
        );
    }

    #[test]
    fn the_table_is_replaced_in_one_transaction() {
        let text = ruleset().text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..3],
            ["table inet home_relay", "delete table inet home_relay", "table inet home_relay {"]
        );
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
