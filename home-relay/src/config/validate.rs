//! The checks of the settings that their types cannot express.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mobile_host::metrics::is_host_name;
use mobile_transport::invitation::is_endpoint;

use super::{Config, check_interface};
use crate::pool::Pools;

/// The largest value of the connection limits in `[limits]`: more than any kernel tracks, and ten
/// times as many (the burst) still fit the 32 bits of an nftables rule.
const MAX_CONNECTIONS: u32 = 100_000_000;

/// The largest value of the other numbers in `[limits]`: more than any host needs of connections,
/// handshakes or bytes.
const MAX_LIMIT: usize = 315_360_000;

/// The longest duration in `[limits]`: ten years.
const MAX_DURATION: Duration = Duration::from_secs(3650 * 24 * 3600);

impl Config {
    /// Checks all settings; an error names the setting.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.check_pools()?;
        if let Some(endpoint) = &self.listen.endpoint {
            ensure!(
                is_endpoint(endpoint),
                "[listen] endpoint {endpoint:?} is not HOST:PORT: write for example \"relay.example.org:443\""
            );
        }
        check_interface("[tunnel] device", &self.tunnel.device)?;
        if let Some(interface) = &self.nat.interface {
            check_interface("[nat] interface", interface)?;
            ensure!(
                *interface != self.tunnel.device,
                "[nat] interface is the tunnel device: name the interface that leads to the Internet"
            );
        }
        // RFC 8200, 5: IPv6 needs 1280.
        ensure!(
            self.tunnel.mtu >= 1280 && self.tunnel.mtu <= 9000,
            "[tunnel] mtu is {}: it must be from 1280 (IPv6's minimum) to 9000",
            self.tunnel.mtu
        );
        self.check_resolvers()?;
        mobile_host::control::check_path(&self.admin.socket).context("[admin] socket")?;
        if let Some(metrics) = self.metrics.listen {
            ensure!(
                metrics.port() == 0 || !overlap(metrics, self.listen.address),
                "[metrics] listen is {metrics}, where the relay accepts clients: choose another port"
            );
        }
        check_hosts(&self.metrics.hosts)?;
        self.check_limits()
    }
}

impl Config {
    fn check_limits(&self) -> anyhow::Result<()> {
        let limits = &self.limits;
        for (key, value) in [
            ("half_open", limits.half_open),
            ("half_open_per_source", limits.half_open_per_source),
            ("handshake_rate", limits.handshake_rate as usize),
            ("handshake_rate_per_source", limits.handshake_rate_per_source as usize),
            ("queue_bytes", limits.queue_bytes),
        ] {
            ensure!(
                (1..=MAX_LIMIT).contains(&value),
                "[limits] {key} is {value}: it must be from 1 to {MAX_LIMIT}"
            );
        }
        for (key, value) in
            [("handshake_timeout", limits.handshake_timeout), ("session_idle", limits.session_idle)]
        {
            ensure!(
                !value.is_zero() && value <= MAX_DURATION,
                "[limits] {key} is {value:?}: it must be longer than 0 s and at most 3650d"
            );
        }
        for (key, value) in [
            ("connections_per_client", limits.connections_per_client),
            ("connection_rate_per_client", limits.connection_rate_per_client),
        ] {
            ensure!(
                value <= MAX_CONNECTIONS,
                "[limits] {key} is {value}: it must be from 1 to {MAX_CONNECTIONS}, or 0 for no limit"
            );
        }
        Ok(())
    }

    fn check_pools(&self) -> anyhow::Result<()> {
        for (key, ipv4, ipv6) in [("ipv4", self.pool.ipv4, None), ("ipv6", None, self.pool.ipv6)] {
            if ipv4.is_some() || ipv6.is_some() {
                Pools::new(ipv4, ipv6).with_context(|| format!("[pool] {key}"))?;
            }
        }
        self.pools().map(drop)
    }

    /// Checks that clients can send queries to the resolvers.
    fn check_resolvers(&self) -> anyhow::Result<()> {
        for server in &self.dns.servers {
            let canonical = server.to_canonical();
            let is_local = match canonical {
                IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            ensure!(
                !is_local
                    && !canonical.is_loopback()
                    && !canonical.is_unspecified()
                    && !canonical.is_multicast(),
                "[dns] servers has {server}, which no client reaches: name a resolver that other hosts reach, \
                 such as one of the Internet provider's"
            );
        }
        Ok(())
    }
}

/// Returns whether two sockets cannot listen on these addresses at the same time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (is_any || one.ip() == other.ip())
}

fn check_hosts(hosts: &[String]) -> anyhow::Result<()> {
    for host in hosts {
        ensure!(
            is_host_name(host),
            "[metrics] hosts has {host:?}, which is no host name: write for example \"relay.example.org\", without a port"
        );
    }
    Ok(())
}
