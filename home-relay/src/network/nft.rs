//! The relay's nftables table: source NAT of clients, port forwards, the forward chain and MSS
//! clamping.
//!
//! Other tables of the host are never touched. The relay's table is replaced as a whole in one
//! transaction, so there is no moment with half a table.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use ipnet::IpNet;
use mobile_host::nft;

use super::rules::base_chain;
use crate::config::{Config, DEFAULT_DEVICE, Inbound, Ipv6Nat, Tracking, Transit};
use crate::pool::Pools;
use crate::reach::Reach;

/// The prefix of the names of all relays' nftables tables.
pub(crate) const TABLE: &str = "home_relay";

/// The address family of the relay's nftables tables.
const FAMILY: &str = "inet";

/// Returns the name of the nftables table that holds every rule of the relay with this device, so
/// that one deletion removes exactly this relay's rules. The default device's table is [`TABLE`].
pub(crate) fn table(device: &str) -> String {
    if device == DEFAULT_DEVICE {
        return TABLE.to_owned();
    }
    let mut name = format!("{TABLE}_");
    for byte in device.bytes() {
        // Writing to a String cannot fail.
        let _ = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => write!(name, "{}", byte as char),
            // Escape with a character that nft accepts in a name and that no device name contains.
            other => write!(name, "/{other:02x}"),
        };
    }
    name
}

/// The inputs from which the relay's nftables table is generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// The name of the home virtual device.
    pub(crate) device: String,
    /// The address pools that are masqueraded; addresses of the other pools are routed to this
    /// host.
    pub(crate) masqueraded: Vec<IpNet>,
    /// The only outgoing interface on which packets are masqueraded; if absent, every interface
    /// except the home virtual device.
    pub(crate) interface: Option<String>,
    /// Whether clients are kept from reaching each other.
    pub(crate) isolate: bool,
    /// The port forwards, each to one persistent address of its client.
    pub(crate) redirects: Vec<PortRedirect>,
    /// The address pools, and the home virtual device's own address in each of them.
    pub(crate) pools: Vec<IpNet>,
    pub(crate) own: Vec<IpAddr>,
    /// The pools to whose clients Internet hosts may send first.
    pub(crate) open: Vec<IpNet>,
    /// The reach of clients without a reach of their own; and the persistent addresses of the other
    /// clients, each with the reach of its client.
    pub(crate) reach: Reach,
    pub(crate) reach_of: Vec<(IpAddr, Reach)>,
    /// The DNS resolvers that are pushed to clients, which clients may query even outside their
    /// reach.
    pub(crate) resolvers: Vec<IpAddr>,
    /// The largest number of a client's tracked connections, and of its new connections per second;
    /// 0 for no limit.
    pub(crate) connections: u32,
    pub(crate) connection_rate: u32,
    /// The address this relay listens on, and whether the kernel tracks connections to it.
    pub(crate) listen: SocketAddr,
    pub(crate) track: Tracking,
    /// The policy for packets that this host forwards between devices other than the relay's.
    pub(crate) transit: Transit,
    /// The state of the host, detected when the rules are installed.
    pub(crate) host: HostState,
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

/// The redirection of a port of this host to a client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortRedirect {
    /// The protocol: "tcp" or "udp".
    pub(crate) protocol: &'static str,
    /// The port of this host.
    pub(crate) port: u16,
    /// The client's persistent address and port.
    pub(crate) to: SocketAddr,
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

    /// Returns whether the configuration relies on the ruleset: whether a pool is masqueraded, a
    /// port is forwarded or a reach is not "all". Otherwise the rules only add protection.
    pub(crate) fn is_required(&self) -> bool {
        let is_bounded = self.reach != Reach::All || self.reach_of.iter().any(|(_, own)| *own != Reach::All);
        !self.masqueraded.is_empty() || !self.redirects.is_empty() || is_bounded
    }

    /// Returns whether Internet hosts may send datagrams to a client first.
    pub(crate) fn accepts_inbound_datagrams(&self) -> bool {
        !self.open.is_empty() || self.redirects.iter().any(|redirect| redirect.protocol == "udp")
    }

    /// Returns the script for `nft -f -`, which atomically creates or replaces the table.
    pub(crate) fn text(&self) -> String {
        let table = self.table();
        let mut text = format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n");
        self.write_filter(&mut text);
        base_chain(&mut text, "prerouting", "nat hook prerouting priority dstnat", &self.dnat_rules());
        base_chain(
            &mut text,
            "postrouting",
            "nat hook postrouting priority srcnat",
            &self.masquerade_rules(),
        );
        base_chain(&mut text, "forward", "filter hook forward priority filter", &self.forward_rules());
        text.push_str("}\n");
        text
    }

    fn dnat_rules(&self) -> Vec<String> {
        let device = &self.device;
        let rule = |redirect: &PortRedirect| {
            let PortRedirect { protocol, port, to } = redirect;
            let (nfproto, family) = if to.is_ipv4() { ("ipv4", "ip") } else { ("ipv6", "ip6") };
            format!(
                "iifname != \"{device}\" meta nfproto {nfproto} fib daddr type local {protocol} dport {port} \
                 dnat {family} to {to}"
            )
        };
        self.redirects.iter().map(rule).collect()
    }

    fn masquerade_rules(&self) -> Vec<String> {
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

    /// Returns the name of the nftables table.
    pub(crate) fn table(&self) -> String {
        table(&self.device)
    }

    /// Installs the ruleset in the kernel.
    pub(crate) fn apply(&self) -> anyhow::Result<()> {
        Ok(nft::apply(&self.text())?)
    }

    /// Returns the installed table as nft lists it, or `None` if there is none.
    pub(crate) fn listing(&self) -> anyhow::Result<Option<String>> {
        Ok(nft::list(&[(FAMILY, &self.table())])?)
    }

    /// Checks whether the kernel accepts the ruleset, without changing anything.
    pub(crate) fn check_rules(&self) -> anyhow::Result<()> {
        Ok(nft::check(&self.text())?)
    }
}

/// The next steps when nftables does not work on this host.
pub(crate) const HINT: &str = "cannot install the nftables rules; where the kernel lacks connlimit, set [limits] \
                               connections_per_client = 0; without nftables on this host set [nat] masquerade = false and \
                               [clients] reach = \"all\", and delete the forwards";

/// Removes the nftables table and returns whether there was one. A host without nft has none.
pub(crate) fn remove(table: &str) -> anyhow::Result<bool> {
    nft::delete((FAMILY, table)).with_context(|| format!("cannot delete table inet {table}"))
}

/// Returns whether the nftables table is in the kernel; false on a host without the program nft.
pub(crate) fn exists(table: &str) -> anyhow::Result<bool> {
    Ok(nft::exists((FAMILY, table))?)
}

/// Returns every nftables chain of this host, as nft's JSON.
pub(crate) fn list_chains() -> anyhow::Result<serde_json::Value> {
    let listed = nft::query(&["-j", "list", "chains"])?;
    serde_json::from_str(&listed).context("cannot parse the JSON of `nft list chains`")
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
    fn both_families_are_masqueraded_on_all_interfaces_but_the_device() {
        let text = ruleset().text();
        assert_has(&text, "ip saddr 10.77.0.0/24 oifname != \"home0\" masquerade");
        assert_has(&text, "ip6 saddr fd12::/64 oifname != \"home0\" masquerade");
    }

    #[test]
    fn only_the_configured_interface_is_masqueraded() {
        let text = Ruleset { interface: Some("eth0".into()), ..ruleset() }.text();
        assert_has(&text, "ip saddr 10.77.0.0/24 oifname \"eth0\" masquerade");
        assert!(!text.contains("oifname != \"home0\" masquerade"), "{text}");
    }

    #[test]
    fn a_port_is_forwarded_to_a_client_in_both_families() {
        let redirects = vec![
            PortRedirect { protocol: "tcp", port: 2222, to: "10.77.0.2:22".parse().unwrap() },
            PortRedirect { protocol: "udp", port: 53, to: "[fd12::2]:5353".parse().unwrap() },
        ];
        let text = Ruleset { redirects, masqueraded: Vec::new(), ..ruleset() };
        assert!(text.is_required());
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
    fn each_device_name_has_its_own_table() {
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
