//! What is: read from the kernel, files and the network. What only root may see is `None` for others.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use mobile_io::control::{Client, ControlError};
use mobile_io::keys::{PrivateKey, PublicKey};
use mobile_io::netlink::{Family, InterfaceSnapshot, ListedRule, Netlink, RouteKind};
use mobile_io::{isolation, sysctl};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::reach::{self, Outcome};
use super::trial;
use crate::config::{Config, DEFAULT_PATH, RelayIdentity, Routing, globs};
use crate::control::protocol::{Answer, Request};
use crate::routing::claim::{self, Refusal};
use crate::routing::ingress;
use crate::routing::lease::Lease;
use crate::routing::networks;
use crate::selection::cgroup::{Cgroup2, MobileCgroup};
use crate::selection::deadline;
use crate::status::{self, Status};
use crate::uplinks::look::{self, Targets};
use crate::uplinks::policy::{self, Decision, Families, Uplink, Wishes};

/// Everything that is looked at.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whether root looks.
    pub(super) root: bool,
    /// The kernel's release.
    pub(super) kernel: String,
    /// The configuration's file, or what is wrong with it.
    pub(super) config: Result<PathBuf, String>,
    /// `[routing]`, or the defaults.
    pub(super) routing: Routing,
    /// What the daemon needs beside the defaults.
    pub(super) relay: Result<RelayIdentity, String>,
    /// This host's public key; `None`: a key that this user may not read, as it should be.
    pub(super) key: Result<Option<PublicKey>, String>,
    /// Where cgroup2 is mounted.
    pub(super) cgroup2: Result<PathBuf, String>,
    /// The BPF file system.
    pub(super) bpffs: Bpffs,
    /// Whether the programs load and attach.
    pub(super) programs: Option<Result<(), String>>,
    /// Whether a TUN can be opened.
    pub(super) tun: Option<Result<(), String>>,
    /// Whether nftables takes the ingress filter.
    pub(super) nftables: Option<Result<(), String>>,
    /// What the running agent says.
    pub(super) agent: Result<Option<Box<Status>>, String>,
    /// The addresses of the relay's name.
    pub(super) resolved: Option<Result<Vec<SocketAddr>, String>>,
    /// The links, and which can carry the tunnel.
    pub(super) links: Result<Links, String>,
    /// The claims that the relay pushed and this host refuses.
    pub(super) refused: Vec<status::Refusal>,
    /// The relay, over each usable uplink.
    pub(super) reached: Option<Vec<(String, Outcome)>>,
    /// Whether IPv6 is enabled.
    pub(super) ipv6: bool,
    /// Whether new connections of mobile processes go directly for want of a session, if it can be known.
    pub(super) open: Option<bool>,
    /// The resolvers of this host.
    pub(super) resolvers: Vec<IpAddr>,
}

/// Where pins go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bpffs {
    /// A BPF file system is there.
    Mounted,
    /// The kernel has it, and the agent mounts it.
    Mountable,
    /// `[bpf] pin_dir` is on another file system.
    Elsewhere,
    /// The kernel has none.
    Missing,
}

/// What netlink says.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Every link but our own.
    pub(super) uplinks: Vec<Uplink>,
    /// Which can carry the tunnel.
    pub(super) decision: Decision,
    /// The reverse path filter in force on each usable uplink that has IPv4.
    pub(super) rp_filter: Vec<(String, u32)>,
    /// Everybody's rules.
    pub(super) rules: Vec<ListedRule>,
    /// Where routes in our table lead that are not ours.
    pub(super) foreign_routes: Vec<(IpNet, String)>,
    /// The persistent addresses, as far as they are known.
    pub(super) persistent: Vec<IpAddr>,
    /// The addresses of other devices.
    pub(super) local: Vec<(String, IpNet)>,
}

/// Looks.
pub(super) async fn gather(path: Option<&Path>) -> Facts {
    let root = nix::unistd::geteuid().is_root();
    let loaded = Config::load(path);
    let file = path.unwrap_or(Path::new(DEFAULT_PATH)).to_owned();
    let (config, problem) = match loaded {
        Ok(config) => (config, Ok(file)),
        Err(error) => (Config::of_client(path).unwrap_or_default(), Err(crate::cli::story(&error))),
    };
    let relay = match &problem {
        Ok(_) => config.relay_identity().map_err(|error| error.to_string()),
        Err(_) => Err("it is not known".to_owned()),
    };
    let agent = ask_agent(&config);
    let resolved = match &relay {
        Ok(relay) => Some(reach::resolve(&relay.endpoint).await),
        Err(_) => None,
    };
    let families = families(resolved.as_ref());
    let (persistent, refused) = match (&agent, &relay) {
        (Ok(Some(status)), _) => (status.addresses.clone(), status.refused.clone()),
        // An ordinary user may not read it, and knows less.
        (_, Ok(relay)) if root => remembered(&config, relay, resolved.as_ref()).await,
        _ => (Vec::new(), Vec::new()),
    };
    let relay_addresses = match &resolved {
        Some(Ok(found)) => Targets::new(found),
        _ => Targets::new(&[]),
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
        config: problem,
        routing: config.routing.clone(),
        relay,
        key,
        cgroup2: cgroup2(&config),
        bpffs: bpffs(&config.bpf.pin_dir),
        programs: root.then(|| trial::try_programs(&config)),
        tun: root.then(isolation::try_tun),
        nftables: root.then(|| ingress::try_out().map_err(|error| error.to_string())),
        agent,
        resolved,
        links,
        refused,
        reached,
        ipv6: has_ipv6(),
        open: deadline::is_over(&config.bpf.pin_dir),
        resolvers: networks::resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
    }
}

impl Links {
    /// The usable uplinks, the best first.
    pub(super) fn usable(&self) -> impl Iterator<Item = &Uplink> {
        let named = |name: &String| self.uplinks.iter().find(|uplink| uplink.name == *name);
        self.decision.candidates.iter().filter_map(named)
    }
}

/// Returns the addresses of the last run, and which of them an agent that starts now would refuse.
async fn remembered(
    config: &Config,
    relay: &RelayIdentity,
    resolved: Option<&Result<Vec<SocketAddr>, String>>,
) -> (Vec<IpAddr>, Vec<status::Refusal>) {
    let Some(pushed) = Lease::new(&config.state.dir, &relay.public_key).load() else {
        return (Vec::new(), Vec::new());
    };
    let found = resolved.and_then(|resolved| resolved.as_ref().ok());
    let endpoint = found.into_iter().flatten().map(|address| address.ip().to_canonical()).collect();
    // A failure of netlink has a finding of its own.
    let host = match Netlink::new() {
        Ok(netlink) => networks::read(&netlink, &config.tunnel.device, endpoint).await.unwrap_or_default(),
        Err(_) => claim::HostNetworks::default(),
    };
    let verdict = claim::judge(&pushed, &config.tunnel.addresses, &host);
    (verdict.in_force.addresses(), verdict.refusals.iter().map(Refusal::told).collect())
}

fn families(resolved: Option<&Result<Vec<SocketAddr>, String>>) -> Families {
    match resolved {
        Some(Ok(found)) => Families {
            ipv4: found.iter().any(SocketAddr::is_ipv4),
            ipv6: found.iter().any(SocketAddr::is_ipv6),
        },
        // Not known: any will do.
        _ => Families { ipv4: true, ipv6: true },
    }
}

fn ask_agent(config: &Config) -> Result<Option<Box<Status>>, String> {
    match Client::connect(&config.control.socket) {
        Ok(mut agent) => match agent.call::<_, Answer>(&Request::Status) {
            Ok(Answer::Status(status)) => Ok(Some(status)),
            Ok(other) => Err(format!("it answers {other:?}")),
            Err(error) => Err(crate::cli::story(&error.into())),
        },
        Err(ControlError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(crate::cli::story(&error.into())),
    }
}

fn key(path: &Path, root: bool) -> Result<Option<PublicKey>, String> {
    match PrivateKey::load(path) {
        Ok(key) => Ok(Some(key.public())),
        // Ours to see is only that others may not read it.
        Err(_) if !root => match std::fs::metadata(path) {
            Ok(file) if file.permissions().mode() & 0o077 == 0 => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
            _ => Err(with_causes(PrivateKey::load(path).err())),
        },
        Err(error) => Err(with_causes(Some(error))),
    }
}

fn with_causes(error: Option<mobile_io::keys::KeyError>) -> String {
    error.map(|error| crate::cli::story(&error.into())).unwrap_or_default()
}

fn cgroup2(config: &Config) -> Result<PathBuf, String> {
    let path = config.cgroup.path.as_deref();
    // Also says whether the configured path could be ours.
    MobileCgroup::existing(path).map_err(|error| error.to_string())?;
    Ok(Cgroup2::find(path).map_err(|error| error.to_string())?.mount().to_owned())
}

fn bpffs(pin_dir: &Path) -> Bpffs {
    // What of it is there decides; a directory that this user may not look into counts as it is.
    let there = pin_dir.ancestors().find_map(|dir| statfs(dir).ok());
    if there.is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC) {
        return Bpffs::Mounted;
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    match known.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        false => Bpffs::Missing,
        true if pin_dir.starts_with("/sys/fs/bpf") => Bpffs::Mountable,
        true => Bpffs::Elsewhere,
    }
}

async fn links(
    config: &Config,
    families: Families,
    persistent: Vec<IpAddr>,
    relay: &Targets,
) -> Result<Links, String> {
    let netlink = Netlink::new().map_err(|error| error.to_string())?;
    let read = async {
        let (found, snapshot) = look::look(&netlink, &config.tunnel.device, relay).await?;
        let rules = netlink.all_rules().await?;
        let mut routes = Vec::new();
        for family in Family::ALL {
            routes.extend(netlink.routes(config.routing.table, family).await?);
        }
        Ok::<_, mobile_io::netlink::NetlinkError>((found, snapshot, rules, routes))
    };
    let (found, snapshot, rules, routes) = read.await.map_err(|error| error.to_string())?;
    let device = &config.tunnel.device;
    let uplinks: Vec<Uplink> = found.into_iter().map(|link| link.uplink).collect();
    let glob = |key: &str, patterns: &[String]| globs(key, patterns).map_err(|error| error.to_string());
    let decision = policy::decide(
        &uplinks,
        &Wishes {
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

/// The stricter of the device's setting and that for all is in force; 2, loose, counts as more than 1.
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
    fn a_key_that_others_can_read_is_a_fault_and_one_that_is_hidden_is_none() {
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
