//! The agent's configuration: the settings of `agent.toml` and their defaults.
//!
//! Every path, name, table and mark can be set, so that several agents can run on one machine in
//! network namespaces of their own. A later source overrides an earlier one: the defaults here, the
//! file, the environment (`MOBILE_SECTION_KEY`), the command line's flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use globset::{Glob, GlobMatcher};
use ipnet::IpNet;
use mobile_host::config::InstalledPaths;
use mobile_transport::keys::{KeyError, PrivateKey, PublicKey};
use mobile_transport::tunnel_options::{Compression, Offloading, Queueing};
use serde::{Deserialize, Serialize};

// The path is for the fuzz targets too, which include this file.
#[path = "config/load.rs"]
pub(crate) mod load;

/// The configuration's path unless `--config` names another.
pub(crate) const DEFAULT_PATH: &str = mobile_control::CONFIG;

/// The prefix of environment variables: `MOBILE_RELAY_ENDPOINT` sets `[relay] endpoint`, and so on.
pub(crate) const ENV_PREFIX: &str = "MOBILE";

/// The next step when the configuration file does not exist.
const NO_FILE: &str = "create it with `mobile enroll`, or name another with --config FILE";

/// The name of the host virtual device unless `[tunnel] device` names another.
pub(crate) const DEFAULT_DEVICE: &str = "mobile0";

/// The paths of the installed agent's files.
const INSTALLED: InstalledPaths =
    InstalledPaths { config: DEFAULT_PATH, socket: mobile_control::SOCKET, state: "/var/lib/mobile" };

/// The contents of `agent.toml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The home relay to connect to.
    pub(crate) relay: Relay,
    /// The identity of this host.
    pub(crate) identity: Identity,
    /// The host virtual device and the treatment of its packets.
    pub(crate) tunnel: Tunnel,
    /// The choice of the uplink that carries the tunnel.
    pub(crate) uplink: Uplink,
    /// The MOBILE route: tables, marks and rules.
    pub(crate) routing: Routing,
    /// The cgroups whose processes are mobile.
    pub(crate) cgroup: Cgroup,
    /// The location of the pinned eBPF programs.
    pub(crate) bpf: Bpf,
    /// The control socket of the agent.
    pub(crate) control: Control,
    /// The HTTP server for metrics.
    pub(crate) metrics: Metrics,
    /// The directory of the state that survives a restart.
    pub(crate) state: State,
    /// The configuration file, by which the agent is known to other programs.
    #[serde(skip)]
    pub(crate) file: PathBuf,
}

/// The settings of the section `[relay]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Relay {
    /// The relay's `host:port`; the host is a name, an IPv4 address or an IPv6 address in brackets.
    pub(crate) endpoint: Option<String>,
    /// The relay's public key, which `home-relay init` prints.
    pub(crate) public_key: Option<PublicKey>,
}

/// The settings of the section `[identity]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Identity {
    /// The file with the private key from `mobile keygen`. A relative path is relative to the
    /// configuration's directory.
    pub(crate) private_key_file: PathBuf,
}

/// The settings of the section `[tunnel]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tunnel {
    /// The name of the host virtual device; `mobile0` by default.
    pub(crate) device: String,
    /// The MTU of the device, in bytes; by default the one that the relay assigns.
    pub(crate) mtu: Option<u16>,
    /// The networks, besides the private ones, from which the relay may assign persistent
    /// addresses.
    pub(crate) addresses: Vec<IpNet>,
    /// Whether packets are compressed if the relay agrees; off by default.
    pub(crate) compression: Compression,
    /// Whether the kernel hands over packets larger than the MTU (segmentation offload).
    pub(crate) offload: Offloading,
    /// The discipline of the agent's send queue: a fair queue (FQ-CoDel) or a FIFO.
    pub(crate) queue: Queueing,
}

/// The settings of the section `[uplink]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Uplink {
    /// Globs on the names of interfaces, the most preferred first.
    pub(crate) prefer: Vec<String>,
    /// Globs on the names of interfaces that never carry the tunnel.
    pub(crate) exclude: Vec<String>,
    /// Globs on the names of interfaces that hold a standby path while another one carries the
    /// tunnel; all by default.
    pub(crate) standby: Vec<String>,
}

impl Default for Uplink {
    fn default() -> Self {
        // All interfaces hold a standby path, which costs a few packets a minute; a handover
        // without one takes three round trips.
        Self { prefer: Vec::new(), exclude: Vec::new(), standby: vec!["*".to_owned()] }
    }
}

/// The settings of the section `[routing]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Routing {
    /// The number of the routing table for the MOBILE route.
    pub(crate) table: u32,
    /// The firewall mark of mobile sockets.
    pub(crate) mark: u32,
    /// The bits of a firewall mark that the agent uses.
    pub(crate) mark_mask: u32,
    /// The priority of the routing rule for packets with the mark; the rule for packets from the
    /// persistent addresses has the next priority.
    pub(crate) rule_priority: u32,
    /// The number of the routing table for routes to the relay, used for uplinks whose default
    /// route a VPN has replaced.
    pub(crate) relay_table: u32,
    /// Destinations that mobile processes reach without the tunnel.
    pub(crate) bypass: Vec<IpNet>,
    /// Whether new connections of mobile processes wait or go direct while there is no session.
    pub(crate) on_failure: OnFailure,
}

/// The setting `[routing] on_failure`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnFailure {
    /// New connections wait for a session.
    #[default]
    Closed,
    /// New connections go direct once there has been no session for
    /// [`GRACE_PERIOD`](crate::selection::deadline::GRACE_PERIOD).
    Open,
}

/// The settings of the section `[cgroup]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cgroup {
    /// The mobile cgroup. By default `mobile` at the root of the cgroup2 mount, or `mobile-ID` in a
    /// network namespace other than the machine's own.
    pub(crate) path: Option<PathBuf>,
    /// The systemd slice whose processes are mobile too; by default `mobile.slice` at the root of
    /// the cgroup2 mount.
    pub(crate) slice: Option<PathBuf>,
}

/// The settings of the section `[bpf]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Bpf {
    /// The directory in which the eBPF programs, links and maps are pinned; its default name is
    /// that of the default mobile cgroup.
    pub(crate) pin_dir: PathBuf,
}

/// The settings of the section `[control]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Control {
    /// The path of the control socket, which the other verbs use to talk to the agent. By default
    /// `/run/mobile/agent.sock`, or `agent-ID.sock` in a network namespace other than the machine's
    /// own.
    pub(crate) socket: PathBuf,
    /// A group whose members may send the agent every request that root may send.
    pub(crate) group: Option<String>,
}

/// The settings of the section `[metrics]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Metrics {
    /// The address and port on which the agent serves `/metrics` and `/healthz`; `None`, the
    /// default, means no server.
    pub(crate) listen: Option<SocketAddr>,
    /// Host names that a request for metrics may name, besides IP addresses and `localhost`.
    pub(crate) hosts: Vec<String>,
}

/// The settings of the section `[state]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct State {
    /// The directory that caches the relay's assignment: persistent addresses, resolvers and MTU.
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
            // 'M' in the top byte, which does not collide with the marks of wg-quick (0xca6c),
            // tailscale (0x80000) and kubernetes (0x4000, 0x8000).
            mark: 0x4d00_0000,
            mark_mask: 0xff00_0000,
            // Before the rules of tailscale (from 5200) and wg-quick (below 32766).
            rule_priority: 4900,
            relay_table: 7701,
            bypass: Vec::new(),
            on_failure: OnFailure::Closed,
        }
    }
}

impl Default for Bpf {
    fn default() -> Self {
        Self { pin_dir: Path::new("/sys/fs/bpf").join(mobile_host::netns::name("mobile")) }
    }
}

impl Default for Control {
    fn default() -> Self {
        let name = format!("{}.sock", mobile_host::netns::name("agent"));
        Self { socket: Path::new(mobile_control::SOCKET).with_file_name(name), group: None }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { dir: INSTALLED.state.into() }
    }
}

/// The checked settings of `[relay]`, which the agent needs and other verbs do not.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RelayIdentity {
    /// The relay's address as `host:port`.
    pub(crate) endpoint: String,
    /// The public key that the relay must prove to have.
    pub(crate) public_key: PublicKey,
}

impl Config {
    /// Returns the relay's endpoint and key, which only the agent needs.
    pub(crate) fn relay_identity(&self) -> anyhow::Result<RelayIdentity> {
        let Some(endpoint) = self.relay.endpoint.clone() else {
            bail!(
                "[relay] endpoint is not set: redeem an invitation with `mobile enroll`, or set \
                 endpoint = \"HOST:PORT\" of your home relay"
            );
        };
        let Some(public_key) = self.relay.public_key else {
            bail!("[relay] public_key is not set: set it to the key that `home-relay init` printed");
        };
        Ok(RelayIdentity { endpoint, public_key })
    }

    /// Checks those conditions on the settings that their types do not express.
    fn check(&self) -> anyhow::Result<()> {
        if let Some(endpoint) = &self.relay.endpoint {
            ensure!(
                mobile_transport::invitation::is_endpoint(endpoint),
                "[relay] endpoint {endpoint:?} is not HOST:PORT, for example \"relay.example.org:443\" or \"[2001:db8::1]:443\""
            );
        }
        let device = &self.tunnel.device;
        ensure!(
            // IFNAMSIZ is 16 and counts the terminating zero.
            !device.is_empty() && device.len() < 16 && !device.contains(['/', ' ', '%']),
            "[tunnel] device {device:?} is not a valid interface name: use 1 to 15 characters without slash, space and percent sign"
        );
        if let Some(mtu) = self.tunnel.mtu {
            // RFC 8200, section 5: IPv6 requires an MTU of at least 1280 bytes.
            ensure!(mtu >= 1280, "[tunnel] mtu {mtu} is below 1280 bytes, the minimum of IPv6");
        }
        let Routing { table, relay_table, mark, mark_mask, rule_priority, .. } = self.routing;
        for (key, table, default) in [("table", table, 7700), ("relay_table", relay_table, 7701)] {
            ensure!(
                !matches!(table, 0 | 253..=255),
                "[routing] {key} {table} is one of the kernel's own tables: choose another number, the default is {default}"
            );
        }
        ensure!(
            table != relay_table,
            "[routing] table and relay_table are both {table}: choose two numbers, the defaults are 7700 and 7701"
        );
        ensure!(
            mark != 0 && mark & !mark_mask == 0,
            "[routing] mark {mark:#x} is zero or has bits outside mark_mask {mark_mask:#x}: choose a mark within the mask"
        );
        ensure!(
            (1..32765).contains(&rule_priority),
            "[routing] rule_priority {rule_priority} is not between the rules of the local table (0) and the main table (32766)"
        );
        mobile_host::control::check_path(&self.control.socket).context("[control] socket")?;
        for host in &self.metrics.hosts {
            ensure!(
                mobile_host::metrics::is_host_name(host),
                "[metrics] hosts has {host:?}, which is not a host name: write a name without port, for example \"laptop.example.org\""
            );
        }
        globs("[uplink] prefer", &self.uplink.prefer)?;
        globs("[uplink] exclude", &self.uplink.exclude)?;
        globs("[uplink] standby", &self.uplink.standby)?;
        Ok(())
    }
}

/// Loads this host's private key from the file that `[identity] private_key_file` names.
pub(crate) fn load_key(path: &Path) -> Result<PrivateKey, KeyError> {
    if path == Identity::default().private_key_file {
        return PrivateKey::load(path, "make one with `mobile keygen`");
    }
    PrivateKey::load(path, &format!("make one with `mobile keygen --out {}`", path.display()))
}

/// Compiles the globs of the setting `key`. The error names the invalid glob.
pub(crate) fn globs(key: &str, patterns: &[String]) -> anyhow::Result<Vec<GlobMatcher>> {
    patterns
        .iter()
        .map(|pattern| {
            Glob::new(pattern).map(|glob| glob.compile_matcher()).with_context(|| {
                format!("{key}: {pattern:?} is not a valid glob for interface names; an example is \"wl*\"")
            })
        })
        .collect()
}

// The path is for the fuzz targets too, which include this file.
#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
