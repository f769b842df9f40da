//! relay.toml: what the operator decides. Only `[listen] address`, the key and a pool are required.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ipnet::{Ipv4Net, Ipv6Net};
use mobile_io::invitation::is_endpoint;
use mobile_io::metrics::is_host_name;
use mobile_io::tunnel_options::{Compression, Offloading, Queueing};
use serde::{Deserialize, Serialize};

use crate::pool::Pools;
use crate::reach::Reach;

/// `HOME_RELAY_LISTEN_ADDRESS` is `[listen] address`, and so on.
pub(crate) const ENV_PREFIX: &str = "HOME_RELAY";

/// `[tunnel] device` where the file does not say.
pub(crate) const DEFAULT_DEVICE: &str = "home0";

/// The whole file.
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

/// `[listen]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listen {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// `host:port` by which they find it, for invitations; the address when absent.
    pub(crate) endpoint: Option<String>,
    /// Whether the kernel tracks the connections to this address.
    #[serde(default)]
    pub(crate) track: Tracking,
}

/// `[listen] track`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tracking {
    /// Tracks connections if another firewall filters this host's own packets: its rules may match
    /// on connection state.
    #[default]
    Auto,
    /// Always tracks connections.
    On,
    /// Never tracks connections.
    Off,
}

impl Listen {
    /// What an invitation names, if it can be known: a wildcard is nobody's address.
    pub(crate) fn endpoint(&self) -> Option<String> {
        let address =
            Some(self.address).filter(|address| !address.ip().is_unspecified() && address.port() != 0);
        self.endpoint.clone().or_else(|| address.map(|address| address.to_string()))
    }
}

/// `[identity]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// The relay's private key; relative to the config file.
    pub(crate) private_key_file: PathBuf,
}

/// `[pool]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    pub(crate) ipv4: Option<Ipv4Net>,
    pub(crate) ipv6: Option<Ipv6Net>,
}

/// `[tunnel]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tunnel {
    /// The home virtual device's name.
    pub(crate) device: String,
    /// The MTU inside the tunnel, pushed to clients.
    pub(crate) mtu: u16,
    /// What clients may ask for.
    pub(crate) compression: Compression,
    /// In what size the kernel hands packets over.
    pub(crate) offload: Offloading,
    /// Which of a client's packets goes next.
    pub(crate) queue: Queueing,
}

impl Default for Tunnel {
    fn default() -> Self {
        // A byte stream has no path MTU of its own, so the inner one is what fits the usual Ethernet
        // on the far side of the relay, without fragments.
        Self {
            device: DEFAULT_DEVICE.into(),
            mtu: 1500,
            compression: Compression::Off,
            offload: Offloading::Auto,
            queue: Queueing::Fair,
        }
    }
}

/// `[nat]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Nat {
    /// Hide the pools behind the relay's own addresses.
    pub(crate) masquerade: bool,
    /// Only out of this interface; any but the device when absent.
    pub(crate) interface: Option<String>,
    /// What of that is done for IPv6.
    pub(crate) ipv6: Ipv6Nat,
    /// Policy for packets between other devices of this host.
    pub(crate) transit: Transit,
}

/// `[nat] transit`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transit {
    /// Drops packets if this relay turned forwarding on: before that, the host was no router.
    #[default]
    Auto,
    /// Leaves packets to the host's own rules.
    Accept,
    /// Always drops packets.
    Drop,
}

/// `[nat] ipv6`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ipv6Nat {
    /// As `[nat] masquerade` says.
    #[default]
    Masquerade,
    /// Not: the pool is a prefix that the network before this host routes to it, and clients are reached at their own
    /// addresses.
    Routed,
}

impl Default for Nat {
    fn default() -> Self {
        Self { masquerade: true, interface: None, ipv6: Ipv6Nat::Masquerade, transit: Transit::Auto }
    }
}

/// `[clients]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Clients {
    /// They reach the world and this host, not each other.
    pub(crate) isolate: bool,
    /// Destinations that clients may reach; all of them when absent, as before this key existed.
    pub(crate) reach: Option<Reach>,
    /// Senders that reach clients unasked.
    pub(crate) inbound: Inbound,
}

impl Default for Clients {
    fn default() -> Self {
        Self { isolate: true, reach: None, inbound: Inbound::Routed }
    }
}

impl Clients {
    /// Returns the reach of clients without a setting of their own.
    pub(crate) fn reach(&self) -> Reach {
        self.reach.clone().unwrap_or(Reach::All)
    }
}

/// `[clients] inbound`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Inbound {
    /// Everybody, at the addresses of pools that are not masqueraded, because these are routed to
    /// this host. Other pools behave as with `Forwards`.
    #[default]
    Routed,
    /// Nobody, except at ports that `home-relay forward` leads to a client.
    Forwards,
}

/// `[dns]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Dns {
    /// Resolvers pushed to clients.
    pub(crate) servers: Vec<IpAddr>,
}

/// `[limits]`; times are whole seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Connections that have not finished their handshake, all together; a quarter of them is kept for sources from
    /// which a client was authenticated lately.
    pub(crate) half_open: usize,
    /// The same of one source: an IPv4 address, an IPv6 /64. Ten times as many where a client was lately, as below; never
    /// more than an eighth of all.
    pub(crate) half_open_per_source: usize,
    /// Handshakes a second, of all sources together from which no client was authenticated lately.
    pub(crate) handshake_rate: u32,
    /// Handshakes a second of one source; ten seconds' worth of them at once.
    pub(crate) handshake_rate_per_source: u32,
    /// How long a connection may take from accept to HELLO.
    pub(crate) handshake_timeout: u64,
    /// How long a session without any path is kept.
    pub(crate) session_idle: u64,
    /// Bytes of packets waiting for one client before the session takes them.
    pub(crate) queue_bytes: usize,
    /// Tracked connections of one client; 0 disables the limit.
    pub(crate) connections_per_client: u32,
    /// New connections a second of one client, ten seconds' worth at once; 0 disables the limit.
    pub(crate) connection_rate_per_client: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Each connection costs a socket, some 10 KiB for TLS, and what it has sent: at most 4
            // KiB before its ClientHello is complete, and 24 KiB before its handshake is
            // ([`mobile_io::tls::accept`]). The worst case is 38 MiB.
            half_open: 1024,
            // A slow sender holds one for `handshake_timeout`; it takes a dozen of sources to be noticed.
            half_open_per_source: 64,
            // At 0.3 ms each, an eighth of a processor; a thousand clients are back two seconds after a restart.
            handshake_rate: 500,
            // With a burst of a hundred: clients behind one NAT whose relay was restarted. One client makes one or two
            // when it moves.
            handshake_rate_per_source: 10,
            // Five round trips on the worst satellite link, with retransmissions.
            handshake_timeout: 10,
            // A laptop closed in the evening and opened the next day goes on.
            session_idle: 24 * 3600,
            // A hand-over between two tasks: 16 of the kernel's largest packets absorb a burst.
            queue_bytes: 1 << 20,
            // 1.6 % of the kernel's usual 262,144: one client cannot fill the table; sixty at their
            // limit do. Browsers and mail keep a few hundred connections open, peer-to-peer
            // programs one or two thousand.
            connections_per_client: 4096,
            // A web page opens a hundred connections at once, names included, and a burst of ten
            // seconds' worth covers a restored browser session. The kernel keeps ended TCP
            // connections for 120 s without counting them: 24,000 at this rate.
            connection_rate_per_client: 200,
        }
    }
}

impl Limits {
    /// From accept to HELLO.
    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout)
    }

    /// Without any path.
    pub(crate) fn session_idle(&self) -> Duration {
        Duration::from_secs(self.session_idle)
    }
}

/// `[admin]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    /// Where the running relay takes commands.
    pub(crate) socket: PathBuf,
    /// Members may use it as well as root.
    pub(crate) group: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: "/run/home-relay/admin.sock".into(), group: None }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Metrics {
    /// Prometheus over HTTP; off when absent.
    pub(crate) listen: Option<SocketAddr>,
    /// Names under which it may be asked for, beside IP addresses and `localhost`.
    pub(crate) hosts: Vec<String>,
}

/// `[state]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct State {
    /// Clients and leases.
    pub(crate) dir: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: "/var/lib/home-relay".into() }
    }
}

impl Config {
    /// Reads, completes and checks the configuration.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        mobile_io::config::load::<Self>(path, true, ENV_PREFIX, &[])?.complete(path)
    }

    /// Checks what was read, and finds the key that lies beside it.
    pub(crate) fn complete(mut self, path: &Path) -> anyhow::Result<Self> {
        let base = path.parent().unwrap_or(Path::new(""));
        // init writes the key beside the file, so both can be moved together.
        self.identity.private_key_file = base.join(&self.identity.private_key_file);
        self.check().with_context(|| format!("{} cannot be used", path.display()))?;
        Ok(self)
    }

    /// The pools, checked.
    pub(crate) fn pools(&self) -> anyhow::Result<Pools> {
        Ok(Pools::new(self.pool.ipv4, self.pool.ipv6)?)
    }

    fn check(&self) -> anyhow::Result<()> {
        self.pools()?;
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
                "[nat] interface is the tunnel device itself: name the interface that leads to the Internet"
            );
        }
        // RFC 8200, 5: IPv6 needs 1280.
        ensure!(
            self.tunnel.mtu >= 1280 && self.tunnel.mtu <= 9000,
            "[tunnel] mtu is {}: it must be from 1280 (IPv6's minimum) to 9000",
            self.tunnel.mtu
        );
        check_hosts(&self.metrics.hosts)?;
        let limits = &self.limits;
        for (key, value) in [
            ("half_open", limits.half_open),
            ("half_open_per_source", limits.half_open_per_source),
            ("handshake_rate", limits.handshake_rate as usize),
            ("handshake_rate_per_source", limits.handshake_rate_per_source as usize),
            ("queue_bytes", limits.queue_bytes),
            ("handshake_timeout", usize::try_from(limits.handshake_timeout).unwrap_or(usize::MAX)),
            ("session_idle", usize::try_from(limits.session_idle).unwrap_or(usize::MAX)),
        ] {
            ensure!(
                (1..=MAX_LIMIT).contains(&value),
                "[limits] {key} is {value}: it must be from 1 to {MAX_LIMIT}"
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
}

/// The largest number of connections: more than any kernel tracks, and ten times as many still fit
/// the 32 bits of a rule.
const MAX_CONNECTIONS: u32 = 100_000_000;

/// Ten years in seconds; as a count, more than any machine of ours holds.
const MAX_LIMIT: usize = 315_360_000;

fn check_hosts(hosts: &[String]) -> anyhow::Result<()> {
    for host in hosts {
        ensure!(
            is_host_name(host),
            "[metrics] hosts has {host:?}, which is no host name: write for example \"relay.example.org\", without port"
        );
    }
    Ok(())
}

/// The name goes into a ruleset in quotes and into paths below /proc/sys.
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
mod tests {
    use super::*;

    fn load(text: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.toml");
        std::fs::write(&path, text).unwrap();
        let mut config = Config::load(&path)?;
        let key = config.identity.private_key_file.strip_prefix(dir.path()).unwrap().to_owned();
        config.identity.private_key_file = key;
        Ok(config)
    }

    const SMALLEST: &str = "[listen]\naddress = \"[::]:443\"\n[identity]\nprivate_key_file = \"relay.key\"\n\
                            [pool]\nipv4 = \"10.1.0.0/24\"\n";

    #[test]
    fn address_key_and_pool_are_enough() {
        let config = load(SMALLEST).unwrap();
        assert_eq!(config.tunnel.device, "home0");
        assert_eq!(config.tunnel.mtu, 1500);
        assert!(config.nat.masquerade && config.metrics.listen.is_none());
        assert_eq!(config.admin.socket, Path::new("/run/home-relay/admin.sock"));
        assert_eq!(config.state.dir, Path::new("/var/lib/home-relay"));
        assert_eq!(config.limits.session_idle(), Duration::from_secs(86_400));
        assert_eq!(config.identity.private_key_file, Path::new("relay.key"));
    }

    #[test]
    fn values_that_cannot_work_are_named() {
        for (section, key) in [
            ("[tunnel]\nmtu = 576\n", "[tunnel] mtu"),
            ("[tunnel]\ndevice = \"a\\\"b\"\n", "[tunnel] device"),
            ("[nat]\ninterface = \"home0\"\n", "[nat] interface"),
            ("[limits]\nhalf_open = 0\n", "[limits] half_open"),
            ("[metrics]\nhosts = [\"relay:9478\"]\n", "[metrics] hosts"),
        ] {
            let error = format!("{:#}", load(&format!("{SMALLEST}{section}")).unwrap_err());
            assert!(error.contains(key) && error.contains("relay.toml"), "{error}");
        }
        let error = format!("{:#}", load(&SMALLEST.replace("10.1.0.0/24", "10.1.0.0/31")).unwrap_err());
        assert!(error.contains("too small"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = format!("{:#}", load(&format!("{SMALLEST}[nat]\nmasqerade = true\n")).unwrap_err());
        assert!(error.contains("masqerade") && error.contains("masquerade"), "{error}");
    }
}
