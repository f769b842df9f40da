//! The facts that `mobile check` judges, read from the kernel, files and the network.
//!
//! A fact that only root may see is `None` for other users.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use mobile_host::control::{Client, ControlError};
use mobile_host::sysctl;
use mobile_netlink::{Family, InterfaceSnapshot, ListedRule, Netlink, RouteKind};
use mobile_transport::keys::{PrivateKey, PublicKey};
use mobile_transport::tun;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::load_programs;
use super::reach::{self, Outcome};
use crate::config::{Config, DEFAULT_PATH, RelayIdentity, Routing, globs};
use crate::protocol::{Reply, Request};
use crate::routing::assignment::AssignmentCache;
use crate::routing::claim::{self, Refusal};
use crate::routing::ingress;
use crate::routing::networks;
use crate::selection::cgroup::{Cgroup2, MobileCgroup};
use crate::selection::deadline;
use crate::status::{self, Status};
use crate::uplinks::links::{self as uplink_links, RouteTargets};
use crate::uplinks::policy::{self, Decision, Families, Uplink, UplinkPreferences};

/// The facts about this host that `mobile check` judges.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whether root runs the check.
    pub(super) root: bool,
    /// The release of the running kernel.
    pub(super) kernel: String,
    /// The configuration file.
    pub(super) config: ConfigFile,
    /// The section `[routing]`, or its defaults if the configuration is invalid.
    pub(super) routing: Routing,
    /// The relay's endpoint and key, or the reason why they are unknown.
    pub(super) relay: Result<RelayIdentity, String>,
    /// The public key of this host, or the reason why it cannot be read; `None` if the key file
    /// exists and this user may not read it.
    pub(super) key: Result<Option<PublicKey>, String>,
    /// The mount point of the cgroup2 file system, or the reason why the agent cannot use it.
    pub(super) cgroup2: Result<PathBuf, String>,
    /// The file system of the directory `[bpf] pin_dir`, where the agent pins its eBPF objects.
    pub(super) bpffs: Bpffs,
    /// The result of loading and attaching the eBPF programs; `None` if root does not run the
    /// check, or without a cgroup2 mount.
    pub(super) programs: Option<Result<(), String>>,
    /// The result of opening a TUN device; `None` if root does not run the check.
    pub(super) tun: Option<Result<(), String>>,
    /// Whether nftables accepts the ingress filter, or its error; `None` if root does not run the
    /// check.
    pub(super) nftables: Option<Result<(), String>>,
    /// The status of the running agent, or the reason why the agent did not report it; `None` if no
    /// agent runs.
    pub(super) agent: Result<Option<Box<Status>>, String>,
    /// The addresses that the relay's name resolves to, or the error; `None` if the relay is
    /// unknown.
    pub(super) resolved: Option<Result<Vec<SocketAddr>, String>>,
    /// The network devices and routing rules of this host, or the error of netlink.
    pub(super) links: Result<Links, String>,
    /// The parts of the relay's assignment, such as an address or a resolver, that this host
    /// refuses.
    pub(super) refused: Vec<status::Refusal>,
    /// The name of each usable uplink, with the result of an attempt to reach the relay over it;
    /// `None` if no attempt was possible.
    pub(super) reached: Option<Vec<(String, Outcome)>>,
    /// Whether IPv6 is enabled on this host.
    pub(super) ipv6: bool,
    /// Whether new connections of mobile processes use the ordinary route because there is no
    /// session; `None` without loaded eBPF programs, or if this user may not see them.
    pub(super) open: Option<bool>,
    /// The resolvers that `/etc/resolv.conf` names.
    pub(super) resolvers: Vec<IpAddr>,
}

/// The state of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ConfigFile {
    /// The file at this path was read.
    Read(PathBuf),
    /// The default file does not exist, and no environment variable names a relay.
    NotEnrolled,
    /// The file exists, but the user of the check may not read it; the text is the error.
    NotAllowed(String),
    /// The file cannot be used; the text is the error.
    Invalid(String),
}

/// The kind of file system that holds `[bpf] pin_dir`, the directory of pinned eBPF objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bpffs {
    /// The directory `[bpf] pin_dir` is on a BPF file system.
    Mounted,
    /// The directory `[bpf] pin_dir` is on another file system, but the agent mounts a BPF file
    /// system for it at its start.
    Mountable,
    /// The directory `[bpf] pin_dir` is on another file system, and the agent does not mount a BPF
    /// file system for it.
    Elsewhere,
    /// The kernel does not support the BPF file system.
    Missing,
}

/// The network configuration of this host, read over netlink.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Every link except loopback and the host virtual device.
    pub(super) uplinks: Vec<Uplink>,
    /// The ranking of the links that can carry the tunnel, and the obstacle of each other link.
    pub(super) decision: Decision,
    /// The name of each usable uplink with an IPv4 route, with the value of `rp_filter` in force on
    /// it (0 is off, 1 strict, 2 loose).
    pub(super) rp_filter: Vec<(String, u32)>,
    /// The routing rules of all programs.
    pub(super) rules: Vec<ListedRule>,
    /// The destination and device of routes in the agent's table that another program added.
    pub(super) foreign_routes: Vec<(IpNet, String)>,
    /// The persistent addresses, from the running agent or the cached assignment; empty if neither
    /// can be read.
    pub(super) persistent: Vec<IpAddr>,
    /// The addresses of this host with their prefix lengths, each after the name of its device;
    /// without loopback addresses and those of the host virtual device.
    pub(super) local: Vec<(String, IpNet)>,
}

/// Gathers the facts about this host; `path` is the configuration file, or the default one if
/// `None`.
pub(super) async fn gather(path: Option<&Path>) -> Facts {
    let root = nix::unistd::geteuid().is_root();
    let loaded = Config::load(path);
    let file = path.unwrap_or(Path::new(DEFAULT_PATH)).to_owned();
    let opened = std::fs::File::open(&file).map_err(|error| error.kind());
    let (config, relay) = match &loaded {
        Ok(config) => (config.clone(), config.relay_identity().map_err(|error| error.to_string())),
        Err(_) => {
            (Config::of_client(path).unwrap_or_default(), Err("the configuration cannot be read".to_owned()))
        }
    };
    let config_file = match (loaded, opened) {
        (Ok(_), Err(ErrorKind::NotFound)) if relay.is_err() => ConfigFile::NotEnrolled,
        (Ok(_), _) => ConfigFile::Read(file),
        (Err(error), Err(ErrorKind::PermissionDenied)) => {
            ConfigFile::NotAllowed(mobile_host::error_chain(&error))
        }
        (Err(error), _) => ConfigFile::Invalid(mobile_host::error_chain(&error)),
    };
    let agent = ask_agent(&config);
    let resolved = match &relay {
        Ok(relay) => Some(reach::resolve(&relay.endpoint).await.map_err(|error| error.to_string())),
        Err(_) => None,
    };
    let families = families(resolved.as_ref());
    let (persistent, refused) = match (&agent, &relay) {
        (Ok(Some(status)), _) => (status.addresses.clone(), status.refused.clone()),
        // An ordinary user may not read the cached assignment.
        (_, Ok(relay)) if root => cached_assignment(&config, relay, resolved.as_ref()).await,
        _ => (Vec::new(), Vec::new()),
    };
    let relay_addresses = match &resolved {
        Some(Ok(addresses)) => RouteTargets::new(addresses),
        _ => RouteTargets::new(&[]),
    };
    let links = links(&config, families, persistent, &relay_addresses).await;
    let key = key(&config.identity.private_key_file, root);
    let reached = match (&links, &relay, PrivateKey::load(&config.identity.private_key_file)) {
        (Ok(links), Ok(relay), Ok(key)) if matches!(resolved, Some(Ok(_))) => {
            let usable: Vec<&Uplink> = links.usable().collect();
            Some(reach::over_each(&usable, families, relay, &key).await)
        }
        _ => None,
    };
    Facts {
        root,
        kernel: nix::sys::utsname::uname()
            .map_or_else(|_| "unknown".to_owned(), |uname| uname.release().to_string_lossy().into_owned()),
        config: config_file,
        routing: config.routing.clone(),
        relay,
        key,
        cgroup2: cgroup2(&config),
        bpffs: bpffs(&config.bpf.pin_dir),
        programs: (root && Cgroup2::find(None).is_ok()).then(|| load_programs::try_load(&config)),
        tun: root.then(tun::try_open),
        nftables: root.then(|| ingress::check_nftables().map_err(|error| error.to_string())),
        agent,
        resolved,
        links,
        refused,
        reached,
        ipv6: has_ipv6(),
        open: deadline::has_passed(&config.bpf.pin_dir),
        resolvers: networks::resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
    }
}

impl Links {
    /// Returns the usable uplinks, the most preferred first.
    pub(super) fn usable(&self) -> impl Iterator<Item = &Uplink> {
        let named = |name: &String| self.uplinks.iter().find(|uplink| uplink.name == *name);
        self.decision.usable.iter().filter_map(named)
    }
}

/// Returns the persistent addresses of the relay's cached assignment, and the parts of it that an
/// agent would refuse if it started at this moment.
async fn cached_assignment(
    config: &Config,
    relay: &RelayIdentity,
    resolved: Option<&Result<Vec<SocketAddr>, String>>,
) -> (Vec<IpAddr>, Vec<status::Refusal>) {
    let Some(pushed) = AssignmentCache::new(&config.state.dir, &relay.public_key).load() else {
        return (Vec::new(), Vec::new());
    };
    let addresses = resolved.and_then(|resolved| resolved.as_ref().ok());
    let endpoint = addresses.into_iter().flatten().map(|address| address.ip().to_canonical()).collect();
    // A netlink error has a finding of its own.
    let host = match Netlink::new() {
        Ok(netlink) => networks::read(&netlink, &config.tunnel.device, endpoint).await.unwrap_or_default(),
        Err(_) => claim::HostNetworks::default(),
    };
    let verdict = claim::judge(&pushed, &config.tunnel.addresses, &host);
    (verdict.in_force.addresses(), verdict.refusals.iter().map(Refusal::to_status).collect())
}

fn families(resolved: Option<&Result<Vec<SocketAddr>, String>>) -> Families {
    match resolved {
        Some(Ok(addresses)) => Families {
            ipv4: addresses.iter().any(SocketAddr::is_ipv4),
            ipv6: addresses.iter().any(SocketAddr::is_ipv6),
        },
        // The relay's addresses are not known: accept both families.
        _ => Families { ipv4: true, ipv6: true },
    }
}

fn ask_agent(config: &Config) -> Result<Option<Box<Status>>, String> {
    match Client::connect(&config.control.socket) {
        Ok(mut agent) => match agent.call::<_, Reply>(&Request::Status) {
            Ok(Reply::Status(status)) => Ok(Some(status)),
            Ok(other) => Err(format!("the agent sent an unexpected reply: {other:?}")),
            Err(error) => Err(mobile_host::error_chain(&error.into())),
        },
        Err(ControlError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(mobile_host::error_chain(&error.into())),
    }
}

fn key(path: &Path, root: bool) -> Result<Option<PublicKey>, String> {
    match PrivateKey::load(path) {
        Ok(key) => Ok(Some(key.public())),
        // Check the permissions only: other users must not be able to read the file.
        Err(_) if !root => match std::fs::metadata(path) {
            Ok(file) if file.permissions().mode() & 0o077 == 0 => Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
            _ => Err(error_text(PrivateKey::load(path).err())),
        },
        Err(error) => Err(error_text(Some(error))),
    }
}

fn error_text(error: Option<mobile_transport::keys::KeyError>) -> String {
    error.map(|error| mobile_host::error_chain(&error.into())).unwrap_or_default()
}

fn cgroup2(config: &Config) -> Result<PathBuf, String> {
    let path = config.cgroup.path.as_deref();
    // This also reports whether the configured path can be a mobile cgroup.
    MobileCgroup::existing(path).map_err(|error| error.to_string())?;
    Ok(Cgroup2::find(path).map_err(|error| error.to_string())?.mount().to_owned())
}

fn bpffs(pin_dir: &Path) -> Bpffs {
    // The nearest existing ancestor decides; a directory that this user may not enter counts as
    // existing.
    let there = pin_dir.ancestors().find_map(|dir| statfs(dir).ok());
    if there.is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC) {
        return Bpffs::Mounted;
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    match filesystems.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        false => Bpffs::Missing,
        true if pin_dir.starts_with("/sys/fs/bpf") => Bpffs::Mountable,
        true => Bpffs::Elsewhere,
    }
}

async fn links(
    config: &Config,
    families: Families,
    persistent: Vec<IpAddr>,
    relay: &RouteTargets,
) -> Result<Links, String> {
    let netlink = Netlink::new().map_err(|error| error.to_string())?;
    let read = async {
        let (observed, snapshot) = uplink_links::read_links(&netlink, &config.tunnel.device, relay).await?;
        let rules = netlink.all_rules().await?;
        let mut routes = Vec::new();
        for family in Family::ALL {
            routes.extend(netlink.routes(config.routing.table, family).await?);
        }
        Ok::<_, mobile_netlink::NetlinkError>((observed, snapshot, rules, routes))
    };
    let (observed, snapshot, rules, routes) = read.await.map_err(|error| error.to_string())?;
    let device = &config.tunnel.device;
    let uplinks: Vec<Uplink> = observed.into_iter().map(|link| link.uplink).collect();
    let glob = |key: &str, patterns: &[String]| globs(key, patterns).map_err(|error| error.to_string());
    let decision = policy::decide(
        &uplinks,
        &UplinkPreferences {
            forced: None,
            prefer: &glob("[uplink] prefer", &config.uplink.prefer)?,
            exclude: &glob("[uplink] exclude", &config.uplink.exclude)?,
            families,
            current: None,
            failing: &BTreeSet::new(),
        },
    );
    let name = |index| name_of(&snapshot, index);
    let foreign_routes = routes
        .iter()
        .filter_map(|route| match route.kind {
            RouteKind::Unicast { oif, .. } => Some((route.dst, name(oif))),
            RouteKind::Throw | RouteKind::Unreachable => None,
        })
        .filter(|(_, oif)| oif != device)
        .collect();
    let local = snapshot
        .addresses
        .iter()
        .map(|address| (name(address.index), address.net))
        .filter(|(link, net)| link != device && !net.addr().is_loopback())
        .collect();
    let mut links =
        Links { uplinks, decision, rp_filter: Vec::new(), rules, foreign_routes, persistent, local };
    links.rp_filter = links
        .usable()
        .filter(|uplink| uplink.ipv4_route.is_some())
        .map(|uplink| (uplink.name.clone(), rp_filter(&uplink.name)))
        .collect();
    Ok(links)
}

fn name_of(snapshot: &InterfaceSnapshot, index: u32) -> String {
    let link = snapshot.links.iter().find(|link| link.index == index);
    link.map_or_else(|| format!("device {index}"), |link| link.name.clone())
}

/// Returns the value of `rp_filter` in force on a device (0 is off, 1 strict, 2 loose): the larger
/// one of the device's own setting and that of `all`.
fn rp_filter(device: &str) -> u32 {
    let read = |scope: &str| {
        let value = sysctl::read(&format!("net/ipv4/conf/{scope}/rp_filter")).ok();
        value.and_then(|value| value.parse::<u32>().ok()).unwrap_or(0)
    };
    read("all").max(read(device))
}

fn has_ipv6() -> bool {
    sysctl::read("net/ipv6/conf/all/disable_ipv6").is_ok_and(|value| value == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_other_users_can_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(key(&path, true).unwrap_err().contains("mobile keygen"));
        PrivateKey::generate().unwrap().save_new(&path).unwrap();
        assert!(key(&path, true).unwrap().is_some());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        for root in [true, false] {
            assert!(key(&path, root).unwrap_err().contains("chmod 600"));
        }
    }
}
