//! The agent's configuration: what `agent.toml` may say, and what holds when it says nothing.
//!
//! Every path, name, table and mark can be set, so that several agents can run on one machine in
//! network namespaces. Order: the defaults here, the file, the environment (`MOBILE_SECTION_KEY`), flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use globset::{Glob, GlobMatcher};
use ipnet::IpNet;
use mobile_io::keys::PublicKey;
use mobile_io::tunnel_options::{Compression, Offloading, Queueing};
use serde::{Deserialize, Serialize};

/// Where the configuration is when `--config` does not say.
pub(crate) const DEFAULT_PATH: &str = mobile_control::CONFIG;

/// `MOBILE_RELAY_ENDPOINT` is `[relay] endpoint`, and so on.
pub(crate) const ENV_PREFIX: &str = "MOBILE";

/// The host virtual device, unless `[tunnel] device` names another.
pub(crate) const DEFAULT_DEVICE: &str = "mobile0";

/// The whole of `agent.toml`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The home relay.
    pub(crate) relay: Relay,
    /// Who this host is.
    pub(crate) identity: Identity,
    /// The host virtual device.
    pub(crate) tunnel: Tunnel,
    /// Which uplinks may carry the tunnel.
    pub(crate) uplink: Uplink,
    /// The MOBILE route.
    pub(crate) routing: Routing,
    /// The MOBILE attribute.
    pub(crate) cgroup: Cgroup,
    /// The eBPF programs.
    pub(crate) bpf: Bpf,
    /// The control socket.
    pub(crate) control: Control,
    /// Metrics over HTTP.
    pub(crate) metrics: Metrics,
    /// What survives a restart.
    pub(crate) state: State,
}

/// `[relay]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Relay {
    /// `host:port` of the home relay; host is a name, an IPv4 address or an IPv6 address in brackets.
    pub(crate) endpoint: Option<String>,
    /// The relay's public key, as `home-relay init` printed it.
    pub(crate) public_key: Option<PublicKey>,
}

/// `[identity]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Identity {
    /// The private key that `mobile keygen` made; a relative path is relative to the configuration's directory.
    pub(crate) private_key_file: PathBuf,
}

/// `[tunnel]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tunnel {
    /// The name of the host virtual device.
    pub(crate) device: String,
    /// Its MTU; when absent, what the relay pushes.
    pub(crate) mtu: Option<u16>,
    /// Networks that the relay may assign persistent addresses from, beside the private ones.
    pub(crate) addresses: Vec<IpNet>,
    /// Whether packets are compressed, if the relay agrees.
    pub(crate) compression: Compression,
    /// In what size the kernel hands packets over.
    pub(crate) offload: Offloading,
    /// Which packet goes next.
    pub(crate) queue: Queueing,
}

/// `[uplink]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Uplink {
    /// Globs on interface names, the most wanted first.
    pub(crate) prefer: Vec<String>,
    /// Globs on the names of interfaces that never carry the tunnel.
    pub(crate) exclude: Vec<String>,
    /// Globs on the names of interfaces that hold a standby path while another one carries the tunnel.
    pub(crate) standby: Vec<String>,
}

impl Default for Uplink {
    fn default() -> Self {
        // All: a standby path costs a few packets a minute, and a handover without one costs three round trips.
        Self { prefer: Vec::new(), exclude: Vec::new(), standby: vec!["*".to_owned()] }
    }
}

/// `[routing]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Routing {
    /// The routing table of the MOBILE route.
    pub(crate) table: u32,
    /// The firewall mark of mobile sockets.
    pub(crate) mark: u32,
    /// Which bits of the mark are ours.
    pub(crate) mark_mask: u32,
    /// The priority of the mark's rule; the rule for the persistent address is the next.
    pub(crate) rule_priority: u32,
    /// The routing table of routes to the relay, for uplinks whose default route a VPN has
    /// replaced.
    pub(crate) relay_table: u32,
    /// Destinations that mobile processes reach directly.
    pub(crate) bypass: Vec<IpNet>,
    /// What new connections of mobile processes do without a session.
    pub(crate) on_failure: OnFailure,
}

/// `[routing] on_failure`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnFailure {
    /// They wait for one.
    #[default]
    Closed,
    /// They go directly, once there has been none for [`GRACE`](crate::selection::deadline::GRACE).
    Open,
}

/// `[cgroup]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cgroup {
    /// The mobile cgroup. When absent, `mobile` at the root of the cgroup2 mount, or `mobile-ID` in
    /// a network namespace other than the machine's own.
    pub(crate) path: Option<PathBuf>,
    /// systemd's slice whose processes are mobile too; when absent, `mobile.slice` at the root of the cgroup2 mount.
    pub(crate) slice: Option<PathBuf>,
}

/// `[bpf]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Bpf {
    /// The directory of pinned programs, links and maps; when absent, named as the default mobile
    /// cgroup.
    pub(crate) pin_dir: PathBuf,
}

/// `[control]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Control {
    /// The socket that every other verb talks to.
    pub(crate) socket: PathBuf,
    /// A group whose members may do what root may.
    pub(crate) group: Option<String>,
}

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Metrics {
    /// Where to serve `/metrics` and `/healthz`; nowhere when absent.
    pub(crate) listen: Option<SocketAddr>,
    /// Names under which the metrics may be asked for, beside IP addresses and `localhost`.
    pub(crate) hosts: Vec<String>,
}

/// `[state]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct State {
    /// Where the last known addresses are kept.
    pub(crate) dir: PathBuf,
}

impl Default for Identity {
    fn default() -> Self {
        Self { private_key_file: "/etc/mobile/agent.key".into() }
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            device: DEFAULT_DEVICE.into(),
            mtu: None,
            addresses: Vec::new(),
            compression: Compression::Off,
            offload: Offloading::Auto,
            queue: Queueing::Fair,
        }
    }
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            table: 7700,
            // 'M' in the top byte: clear of wg-quick's (0xca6c), tailscale's (0x80000) and kubernetes' (0x4000, 0x8000).
            mark: 0x4d00_0000,
            mark_mask: 0xff00_0000,
            // Before tailscale's (5200 and on) and wg-quick's (below 32766).
            rule_priority: 4900,
            relay_table: 7701,
            bypass: Vec::new(),
            on_failure: OnFailure::Closed,
        }
    }
}

impl Default for Bpf {
    fn default() -> Self {
        Self { pin_dir: Path::new("/sys/fs/bpf").join(mobile_io::netns::name("mobile")) }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: mobile_control::SOCKET.into(), group: None }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { dir: "/var/lib/mobile".into() }
    }
}

/// What the daemon needs beyond what the other verbs do, checked.
#[derive(Debug, Clone)]
pub(crate) struct RelayIdentity {
    /// `host:port`.
    pub(crate) endpoint: String,
    /// The key the relay must show.
    pub(crate) public_key: PublicKey,
}

impl Config {
    /// Reads the file that `--config` names, or the default one if it exists.
    pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let (path, required) = path.map_or((Path::new(DEFAULT_PATH), false), |path| (path, true));
        mobile_io::config::load::<Self>(path, required, ENV_PREFIX, &[])?.complete(path)
    }

    /// The same for a verb that only speaks to the agent. An ordinary user may not read the file as `mobile enroll` wrote
    /// it; then the defaults and the environment say where the agent is.
    pub(crate) fn of_client(path: Option<&Path>) -> anyhow::Result<Self> {
        Self::load(path).or_else(|error| {
            let denied = |error: std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
            if path.is_some() || !std::fs::File::open(DEFAULT_PATH).err().is_some_and(denied) {
                return Err(error);
            }
            mobile_io::config::load_without_file::<Self>(ENV_PREFIX)?.complete(Path::new(DEFAULT_PATH))
        })
    }

    /// Returns the defaults with the environment's settings, or the plain defaults if those cannot
    /// be used.
    pub(crate) fn without_file() -> Self {
        let read = mobile_io::config::load_without_file::<Self>(ENV_PREFIX).map_err(anyhow::Error::from);
        read.and_then(|config| config.complete(Path::new(DEFAULT_PATH))).unwrap_or_default()
    }

    /// Checks what was read, and finds the key that lies beside it.
    pub(crate) fn complete(self, path: &Path) -> anyhow::Result<Self> {
        self.check().with_context(|| format!("in {}", path.display()))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        let key = dir.join(&self.identity.private_key_file);
        Ok(Self { identity: Identity { private_key_file: key }, ..self })
    }

    /// The relay, which only the daemon cannot do without.
    pub(crate) fn relay_identity(&self) -> anyhow::Result<RelayIdentity> {
        let Some(endpoint) = self.relay.endpoint.clone() else {
            bail!(
                "[relay] endpoint is not set: redeem an invitation with `mobile enroll`, or write \
                 endpoint = \"HOST:PORT\" of your home relay"
            );
        };
        let Some(public_key) = self.relay.public_key else {
            bail!("[relay] public_key is not set: write the key that `home-relay init` printed");
        };
        Ok(RelayIdentity { endpoint, public_key })
    }

    /// What the types cannot say.
    fn check(&self) -> anyhow::Result<()> {
        if let Some(endpoint) = &self.relay.endpoint {
            ensure!(
                mobile_io::invitation::is_endpoint(endpoint),
                "[relay] endpoint {endpoint:?} is not HOST:PORT: write for example \"relay.example.org:443\" or \"[2001:db8::1]:443\""
            );
        }
        let device = &self.tunnel.device;
        ensure!(
            // IFNAMSIZ is 16 with the terminating zero.
            !device.is_empty() && device.len() < 16 && !device.contains(['/', ' ', '%']),
            "[tunnel] device {device:?} is not a name for an interface: 1 to 15 characters, no slash, space or percent"
        );
        if let Some(mtu) = self.tunnel.mtu {
            // 1280 is the least that IPv6 works with.
            ensure!(mtu >= 1280, "[tunnel] mtu {mtu} is below 1280, the least that IPv6 allows");
        }
        let Routing { table, relay_table, mark, mark_mask, rule_priority, .. } = self.routing;
        for (key, table, default) in [("table", table, 7700), ("relay_table", relay_table, 7701)] {
            ensure!(
                !matches!(table, 0 | 253..=255),
                "[routing] {key} {table} is one of the kernel's own: choose another, {default} by default"
            );
        }
        ensure!(
            table != relay_table,
            "[routing] table and relay_table are both {table}: choose two, by default 7700 and 7701"
        );
        ensure!(
            mark != 0 && mark & !mark_mask == 0,
            "[routing] mark {mark:#x} is zero or has bits outside mark_mask {mark_mask:#x}: choose a mark within the mask"
        );
        ensure!(
            (1..32765).contains(&rule_priority),
            "[routing] rule_priority {rule_priority} must lie between the local table's rule (0) and the main table's (32766)"
        );
        for host in &self.metrics.hosts {
            ensure!(
                mobile_io::metrics::is_host_name(host),
                "[metrics] hosts has {host:?}, which is no host name: write for example \"laptop.example.org\", without port"
            );
        }
        globs("[uplink] prefer", &self.uplink.prefer)?;
        globs("[uplink] exclude", &self.uplink.exclude)?;
        globs("[uplink] standby", &self.uplink.standby)?;
        Ok(())
    }
}

/// Compiles the globs of `key`, naming the bad one.
pub(crate) fn globs(key: &str, patterns: &[String]) -> anyhow::Result<Vec<GlobMatcher>> {
    patterns
        .iter()
        .map(|pattern| {
            Glob::new(pattern).map(|glob| glob.compile_matcher()).with_context(|| {
                format!("{key}: {pattern:?} is not a glob on interface names, such as \"wl*\"")
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path))
    }

    #[test]
    fn an_empty_file_gives_the_documented_defaults() {
        let config = load("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.tunnel.device, "mobile0");
        assert_eq!(config.routing.table, 7700);
        assert_eq!(config.routing.mark, 0x4d00_0000);
        assert_eq!(config.uplink.standby, ["*"]);
        assert_eq!(config.control.socket, Path::new("/run/mobile/agent.sock"));
    }

    #[test]
    fn every_section_can_be_set() {
        let config = load(
            r#"
            [relay]
            endpoint = "[2001:db8::1]:443"
            [tunnel]
            device = "m1"
            mtu = 1400
            addresses = ["203.0.113.0/24", "2001:db8::/48"]
            compression = "zstd"
            offload = "off"
            queue = "fifo"
            [uplink]
            prefer = ["eth*", "wl*"]
            exclude = ["docker*"]
            standby = ["wl*"]
            [routing]
            table = 7
            mark = 0x10
            mark_mask = 0xff
            rule_priority = 100
            bypass = ["192.168.0.0/16", "fd00::/8"]
            on_failure = "open"
            [cgroup]
            path = "/sys/fs/cgroup/m"
            slice = "/sys/fs/cgroup/m.slice"
            [bpf]
            pin_dir = "/sys/fs/bpf/m"
            [control]
            socket = "/tmp/a.sock"
            group = "staff"
            [metrics]
            listen = "127.0.0.1:9000"
            [state]
            dir = "/tmp/s"
            "#,
        )
        .unwrap();
        assert_eq!(config.relay.endpoint.as_deref(), Some("[2001:db8::1]:443"));
        assert_eq!((config.tunnel.offload, config.tunnel.queue), (Offloading::Off, Queueing::Fifo));
        assert_eq!(config.tunnel.addresses.len(), 2);
        assert_eq!(config.uplink.standby, ["wl*"]);
        assert_eq!(config.routing.bypass.len(), 2);
        assert_eq!(config.routing.on_failure, OnFailure::Open);
        assert_eq!(config.control.group.as_deref(), Some("staff"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("[relay]\nendpoint = \"relay\"", "HOST:PORT"),
            ("[relay]\nendpoint = \"2001:db8::1:443\"", "HOST:PORT"),
            ("[relay]\nendpoint = \"relay:0\"", "HOST:PORT"),
            ("[tunnel]\ndevice = \"a-name-that-is-too-long\"", "[tunnel] device"),
            ("[tunnel]\nmtu = 500", "1280"),
            ("[tunnel]\naddresses = [\"relay\"]", "addresses"),
            ("[routing]\ntable = 254", "table 254"),
            ("[tunnel]\nqueue = \"fiar\"", "did you mean `fair`"),
            ("[routing]\nmark = 0x100\nmark_mask = 0xff", "mark_mask"),
            ("[routing]\nrule_priority = 40000", "rule_priority"),
            ("[uplink]\nprefer = [\"[\"]", "prefer"),
            ("[uplink]\nstandby = [\"[\"]", "standby"),
            ("[uplink]\nstandby = true", "standby"),
            ("[routing]\ntabel = 3", "tabel"),
            ("[routing]\non_failure = \"opne\"", "did you mean `open`"),
        ] {
            let error = format!("{:#}", load(text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_daemon_needs_a_relay() {
        let error = Config::default().relay_identity().unwrap_err().to_string();
        assert!(error.contains("[relay] endpoint"), "{error}");
    }
}
