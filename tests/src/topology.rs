//! Addresses, routes and packet filters of every machine except the mobile host.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::ns::Ns;
use crate::uplink::UplinkName;

/// Sets up the router between all networks, and connects the relay's and the server's machines to
/// it.
pub(crate) fn make_internet(internet: &Ns, relay: &Ns, server: &Ns) -> Result<()> {
    make_router(internet)?;
    internet.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    // nftables does for IPv6 what rp_filter does for IPv4.
    internet.feed(
        &["nft", "-f", "-"],
        "table ip6 strict {\n chain prerouting {\n  type filter hook prerouting priority raw\n  \
         ip6 saddr != fe80::/10 ip6 saddr != :: fib saddr . iif oif missing drop\n }\n}\n",
    )?;
    for (peer, near, far, four, six) in [
        (relay, "torelay", "wan0", "198.51.100", "2001:db8:51::"),
        (server, "toserver", "wan0", "192.0.2", "2001:db8:52::"),
    ] {
        veth(internet, near, peer, far)?;
        internet.ip(&[
            &format!("address add {four}.1/24 dev {near}"),
            &format!("address add {six}1/64 dev {near} nodad"),
        ])?;
        peer.ip(&[
            &format!("address add {four}.2/24 dev {far}"),
            &format!("address add {six}2/64 dev {far} nodad"),
            &format!("route add default via {four}.1"),
            &format!("route add default via {six}1"),
        ])?;
    }
    Ok(())
}

/// Sets up a visited network's router and connects it to the internet router. The caller adds the
/// link to the host.
pub(crate) fn make_visited(internet: &Ns, visited: &Ns, name: UplinkName) -> Result<()> {
    make_router(visited)?;
    let (near, transit) = match name {
        UplinkName::Wlan => ("toa", "2001:db8:a::"),
        UplinkName::Eth => ("tob", "2001:db8:b::"),
    };
    veth(internet, near, visited, "wan0")?;
    let outside = name.nat_address();
    let gateway = Ipv4Addr::from(u32::from(outside) - 1);
    let prefix = name.prefix6();
    internet.ip(&[
        &format!("address add {gateway}/30 dev {near}"),
        &format!("address add {transit}1/64 dev {near} nodad"),
        &format!("route add {prefix}/64 via {transit}2"),
    ])?;
    visited.ip(&[
        &format!("address add {outside}/30 dev wan0"),
        &format!("address add {transit}2/64 dev wan0 nodad"),
        &format!("route add default via {gateway}"),
        &format!("route add default via {transit}1"),
    ])?;
    // As home and hotel routers do: masquerade IPv4, and accept only answers from outside.
    visited.feed(
        &["nft", "-f", "-"],
        "table inet home {\n chain postrouting {\n  type nat hook postrouting priority srcnat\n  \
         meta nfproto ipv4 oifname wan0 masquerade\n }\n chain forward {\n  \
         type filter hook forward priority filter; policy drop\n  iifname lan0 accept\n  \
         ct state established,related accept\n }\n}\n",
    )
}

/// Makes a machine forward and masquerade the packets of a tunnel that ends there, which come from
/// `inner`, with rules in the nftables table `table`.
pub(crate) fn masquerade(ns: &Ns, table: &str, inner: Ipv4Addr) -> Result<()> {
    ns.sysctl("net/ipv4/ip_forward", "1")?;
    ns.feed(
        &["nft", "-f", "-"],
        &format!(
            "table ip {table} {{\n chain postrouting {{\n  type nat hook postrouting priority srcnat\n  \
             ip saddr {inner} oifname wan0 masquerade\n }}\n}}\n"
        ),
    )
}

fn make_router(ns: &Ns) -> Result<()> {
    ns.sysctl("net/ipv4/ip_forward", "1")?;
    ns.sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// Connects two machines by a veth pair with a device of the given name at each end, and sets both
/// devices up.
pub(crate) fn veth(near: &Ns, near_name: &str, far: &Ns, far_name: &str) -> Result<()> {
    let handle = far.handle();
    near.ip(&[&format!("link add {near_name} type veth peer name {far_name} netns {handle}")])?;
    near.ip(&[&format!("link set {near_name} up")])?;
    far.ip(&[&format!("link set {far_name} up")])
}
