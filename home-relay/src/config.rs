//! The configuration file, relay.toml. Only `[listen] address`, the key and a pool are required.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ipnet::{Ipv4Net, Ipv6Net};
use mobile_host::config::MissingFile;
use mobile_transport::tunnel_options::{Compression, Offloading, Queueing};
use serde::{Deserialize, Serialize};

use crate::pool::Pools;
use crate::reach::Reach;

mod validate;

/// The prefix of environment variables: `HOME_RELAY_LISTEN_ADDRESS` sets `[listen] address`, and so
/// on.
pub(crate) const ENV_PREFIX: &str = "HOME_RELAY";

/// The default of `[tunnel] device`.
pub(crate) const DEFAULT_DEVICE: &str = "home0";

/// The whole configuration file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) listen: Listen,
    pub(crate) identity: Identity,
    pub(crate) pool: Pool,
    #[serde(default)]
    pub(crate) tunnel: Tunnel,
    #[serde(default)]
    pub(crate) nat: Nat,
    #[serde(default)]
    pub(crate) clients: Clients,
    #[serde(default)]
    pub(crate) dns: Dns,
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) admin: Admin,
    #[serde(default)]
    pub(crate) metrics: Metrics,
    #[serde(default)]
    pub(crate) state: State,
}

/// Settings of the section `[listen]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listen {
    /// The address and port on which the relay accepts clients.
    pub(crate) address: SocketAddr,
    /// The relay's `host:port` that invitations name; `[listen] address` if absent.
    pub(crate) endpoint: Option<String>,
    /// Whether the kernel tracks connections to the relay's port.
    #[serde(default)]
    pub(crate) track: Tracking,
}

/// The setting `[listen] track`: whether the kernel tracks connections to the relay's port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tracking {
    /// Tracks connections to the port if another firewall filters this host's own packets, because
    /// that firewall's rules may match on connection state.
    #[default]
    Auto,
    /// Tracks connections to the port, as the kernel does by default.
    On,
    /// Does not track connections to the port.
    Off,
}

impl Listen {
    /// Returns the relay's `host:port` for invitations: the setting, or else the address to listen
    /// on; `None` if that is a wildcard address, to which no client can connect.
    pub(crate) fn endpoint(&self) -> Option<String> {
        let address =
            Some(self.address).filter(|address| !address.ip().is_unspecified() && address.port() != 0);
        self.endpoint.clone().or_else(|| address.map(|address| address.to_string()))
    }
}

/// Settings of the section `[identity]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// The file of the relay's private key, relative to the configuration file.
    pub(crate) private_key_file: PathBuf,
}

/// Settings of the section `[pool]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    pub(crate) ipv4: Option<Ipv4Net>,
    pub(crate) ipv6: Option<Ipv6Net>,
}

/// Settings of the section `[tunnel]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tunnel {
    /// The name of the home virtual device.
    pub(crate) device: String,
    /// The MTU inside the tunnel in bytes, pushed to clients.
    pub(crate) mtu: u16,
    /// The compression of packets that clients may ask for.
    pub(crate) compression: Compression,
    /// Whether the device uses segmentation offload.
    pub(crate) offload: Offloading,
    /// The order in which packets are sent to a client: in turns of its flows, or as they arrive.
    pub(crate) queue: Queueing,
}

impl Default for Tunnel {
    fn default() -> Self {
        // A byte stream has no path MTU of its own, so the inner MTU is what fits the usual
        // Ethernet on the far side of the relay without fragments.
        Self {
            device: DEFAULT_DEVICE.into(),
            mtu: 1500,
            compression: Compression::Off,
            offload: Offloading::Auto,
            queue: Queueing::Fair,
        }
    }
}

/// Settings of the section `[nat]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Nat {
    /// Whether the pools are masqueraded behind this host's addresses.
    pub(crate) masquerade: bool,
    /// The only outgoing interface on which packets are masqueraded; if absent, every interface
    /// except the home virtual device.
    pub(crate) interface: Option<String>,
    /// Whether IPv6 is masqueraded too.
    pub(crate) ipv6: Ipv6Nat,
    /// The policy for transit packets: those that this host forwards between devices other than the
    /// relay's.
    pub(crate) transit: Transit,
}

/// The setting `[nat] transit`: the policy for packets that this host forwards between devices
/// other than the relay's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transit {
    /// Drops transit packets if this relay turned IP forwarding on, because the host was no router
    /// before.
    #[default]
    Auto,
    /// Leaves transit packets to the host's own firewall rules.
    Accept,
    /// Drops transit packets, whether or not this relay turned IP forwarding on.
    Drop,
}

/// The setting `[nat] ipv6`: whether IPv6 is masqueraded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ipv6Nat {
    /// Masquerades IPv6 if `[nat] masquerade` is true.
    #[default]
    Masquerade,
    /// Never masquerades IPv6: the upstream network routes the pool to this host, and clients are
    /// reached at their own addresses.
    Routed,
}

impl Default for Nat {
    fn default() -> Self {
        Self { masquerade: true, interface: None, ipv6: Ipv6Nat::Masquerade, transit: Transit::Auto }
    }
}

/// Settings of the section `[clients]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Clients {
    /// Whether clients are kept from reaching each other.
    pub(crate) isolate: bool,
    /// The destinations that clients may reach; all of them if absent.
    pub(crate) reach: Option<Reach>,
    /// The Internet hosts that may send to a client before the client has sent to them.
    pub(crate) inbound: Inbound,
}

impl Default for Clients {
    fn default() -> Self {
        Self { isolate: true, reach: None, inbound: Inbound::Routed }
    }
}

impl Clients {
    /// Returns the reach of clients without a reach of their own.
    pub(crate) fn reach(&self) -> Reach {
        self.reach.clone().unwrap_or(Reach::All)
    }
}

/// The setting `[clients] inbound`: the Internet hosts that may send to a client before the client
/// has sent to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Inbound {
    /// Every Internet host may send to clients in pools that are not masqueraded, because such
    /// pools are routed to this host. Masqueraded pools behave as with `Forwards`.
    #[default]
    Routed,
    /// No Internet host may, except to a port that `home-relay forward` forwards to a client.
    Forwards,
}

/// Settings of the section `[dns]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Dns {
    /// The resolvers pushed to clients.
    pub(crate) servers: Vec<IpAddr>,
}

/// The section `[limits]`; times are in whole seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// The largest number of half-open connections in total; a quarter of them is reserved for
    /// sources from which a client was authenticated within a day (known sources).
    pub(crate) half_open: usize,
    /// The largest number of half-open connections of one source (an IPv4 address or an IPv6 /64),
    /// ten times as many for a known source, and never more than an eighth of the total.
    pub(crate) half_open_per_source: usize,
    /// The largest number of handshakes per second of all unknown sources together: those from
    /// which no client was authenticated within a day.
    pub(crate) handshake_rate: u32,
    /// The largest number of handshakes per second of one source, with a burst of ten seconds'
    /// worth; ten times as many for a known source.
    pub(crate) handshake_rate_per_source: u32,
    /// The longest time from accepting a connection to its HELLO (the first message inside TLS), in
    /// seconds.
    pub(crate) handshake_timeout: u64,
    /// How long a session without any path is kept, in seconds.
    pub(crate) session_idle: u64,
    /// The capacity of one client's packet queue, in bytes.
    pub(crate) queue_bytes: usize,
    /// The largest number of tracked connections of one client; 0 disables the limit.
    pub(crate) connections_per_client: u32,
    /// The largest number of new connections per second of one client, with a burst of ten seconds'
    /// worth; 0 disables the limit.
    pub(crate) connection_rate_per_client: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Each connection costs a socket, some 10 KiB for TLS, and what it has sent: at most 4
            // KiB before its ClientHello is complete, and 24 KiB before its handshake is
            // ([`mobile_transport::tls::accept`]). The worst case is 38 MiB.
            half_open: 1024,
            // A slow sender holds a connection for `handshake_timeout`; a dozen such sources are
            // needed before it is noticed.
            half_open_per_source: 64,
            // At 0.3 ms each, an eighth of a processor; a thousand clients reconnect in two seconds
            // after a restart.
            handshake_rate: 500,
            // The burst of a hundred suits the clients behind one NAT when the relay restarts. One
            // client makes one or two handshakes when it moves.
            handshake_rate_per_source: 10,
            // Five round trips on the worst satellite link, with retransmissions.
            handshake_timeout: 10,
            // The session of a laptop that is closed in the evening survives until the next day.
            session_idle: 24 * 3600,
            // The queue only hands packets over between two tasks: 16 of the kernel's largest
            // packets absorb a burst.
            queue_bytes: 1 << 20,
            // 1.6 % of the kernel's usual 262,144: one client cannot fill the table; sixty at their
            // limit do. Browsers and mail keep a few hundred connections open, peer-to-peer
            // programs one or two thousand.
            connections_per_client: 4096,
            // A web page opens a hundred connections at once, DNS queries included, and a burst of
            // ten seconds' worth covers a restored browser session. The kernel keeps ended TCP
            // connections for 120 s without counting them: 24,000 at this rate.
            connection_rate_per_client: 200,
        }
    }
}

impl Limits {
    /// Returns the longest time from accepting a connection to its HELLO.
    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout)
    }

    /// Returns how long a session without any path is kept.
    pub(crate) fn session_idle(&self) -> Duration {
        Duration::from_secs(self.session_idle)
    }
}

/// Settings of the section `[admin]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    /// The socket on which the running relay takes commands.
    pub(crate) socket: PathBuf,
    /// The group whose members may use the socket, as well as root.
    pub(crate) group: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: "/run/home-relay/admin.sock".into(), group: None }
    }
}

/// Settings of the section `[metrics]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Metrics {
    /// The address of the Prometheus HTTP server; off if absent.
    pub(crate) listen: Option<SocketAddr>,
    /// The host names accepted in requests, beside IP addresses and `localhost`.
    pub(crate) hosts: Vec<String>,
}

/// Settings of the section `[state]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct State {
    /// The directory of the database of clients and leases.
    pub(crate) dir: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: "/var/lib/home-relay".into() }
    }
}

impl Config {
    /// Reads the configuration file and environment variables, checks the settings, and resolves
    /// the path of the private key.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        mobile_host::config::load::<Self>(path, MissingFile::IsError, ENV_PREFIX, &[])?.complete(path)
    }

    /// Parses the text of a configuration file that is to be at `path`, as [`Self::load`] does.
    pub(crate) fn parse(path: &Path, text: &str) -> anyhow::Result<Self> {
        let environment = mobile_host::config::environment();
        mobile_host::config::parse::<Self>(path, text, ENV_PREFIX, environment, &[])?.complete(path)
    }

    /// Checks the parsed configuration and resolves the path of the private key, which is relative
    /// to the directory of `path`.
    pub(crate) fn complete(mut self, path: &Path) -> anyhow::Result<Self> {
        let base = path.parent().unwrap_or(Path::new(""));
        // `init` writes the key beside the file, so that both can be moved together.
        self.identity.private_key_file = base.join(&self.identity.private_key_file);
        self.check().with_context(|| format!("the configuration {} is invalid", path.display()))?;
        Ok(self)
    }

    /// Returns the checked address pools.
    pub(crate) fn pools(&self) -> anyhow::Result<Pools> {
        Ok(Pools::new(self.pool.ipv4, self.pool.ipv6)?)
    }
}

/// Checks that `name` is a valid interface name, safe in quotes in an nftables ruleset and in paths
/// below /proc/sys; `what` names the setting in the error.
pub(crate) fn check_interface(what: &str, name: &str) -> anyhow::Result<()> {
    // IFNAMSIZ is 16 with the final NUL.
    let good = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '"' | '\\' | '*' | '%' | ':');
    ensure!(
        !name.is_empty() && name.len() <= 15 && name != "." && name != ".." && name.chars().all(good),
        "{what} is {name:?}: an interface name has 1 to 15 characters, without '/', quotes or spaces"
    );
    Ok(())
}

#[cfg(test)]
mod tests;
