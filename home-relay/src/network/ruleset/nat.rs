//! Source NAT of clients, and the redirection of forwarded ports.

use std::net::SocketAddr;

use ipnet::IpNet;

/// The address translation that the rules make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nat {
    /// The address pools that are masqueraded; addresses of the other pools are routed to this
    /// host.
    pub(super) masqueraded: Vec<IpNet>,
    /// The only outgoing interface on which packets are masqueraded; if absent, every interface
    /// except the home virtual device.
    pub(super) interface: Option<String>,
    /// The port forwards, each to one persistent address of its client.
    pub(super) redirects: Vec<PortRedirect>,
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

impl Nat {
    /// Returns whether packets are translated at all.
    pub(super) fn is_used(&self) -> bool {
        !self.masqueraded.is_empty() || !self.redirects.is_empty()
    }

    /// Returns the rules that redirect the forwarded ports of this host, for a relay with `device`.
    pub(super) fn dnat_rules(&self, device: &str) -> Vec<String> {
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

    /// Returns the rules that masquerade clients, for a relay with `device`.
    pub(super) fn masquerade_rules(&self, device: &str) -> Vec<String> {
        let out = match &self.interface {
            Some(interface) => format!("oifname \"{interface}\""),
            None => format!("oifname != \"{device}\""),
        };
        let rule = |pool: &IpNet| {
            let family = if matches!(pool, IpNet::V4(_)) { "ip" } else { "ip6" };
            format!("{family} saddr {pool} {out} masquerade")
        };
        self.masqueraded.iter().map(rule).collect()
    }
}
