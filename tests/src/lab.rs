//! The lab: creates the namespaces, links and services of a small internet, and removes them.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::binaries::program;
use crate::capture::Capture;
use crate::cgroup::{self, LabCgroup};
use crate::link::LinkEmulator;
use crate::ns::Ns;
use crate::services::Services;
use crate::topology;
use crate::uplink::{Uplink, UplinkName};

/// The options of a lab.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// The one-way delay of each uplink, or `None` for plain veth pairs.
    ///
    /// Plain veth pairs need no emulator threads, but cannot be slowed, blackholed or cut.
    pub delay: Option<Duration>,
    /// The congestion control of every namespace, or `None` for the kernel's default.
    pub congestion_control: Option<String>,
    /// The directory of the programs under test, or `None` to search as [`crate::program`] does.
    pub programs: Option<PathBuf>,
}

impl LabOptions {
    /// The default one-way delay of each uplink, which makes a round trip of 20 ms, as to a relay
    /// in the same region.
    pub const DELAY: Duration = Duration::from_millis(10);

    /// The default congestion control of every namespace, as most distributions set it.
    pub const CONGESTION_CONTROL: &str = "cubic";
}

impl Default for LabOptions {
    fn default() -> Self {
        let congestion_control = Some(Self::CONGESTION_CONTROL.to_owned());
        Self { delay: Some(Self::DELAY), congestion_control, programs: None }
    }
}

/// A small internet of network namespaces; the crate's documentation has a picture.
pub struct Lab {
    // Fields drop in this order: first programs, then links and services, then the files they used.
    cgroup: Arc<LabCgroup>,
    uplinks: [Uplink; 2],
    _services: Services,
    /// The mobile host with its two uplinks.
    pub host: Ns,
    /// The machine on which the relay runs.
    pub relay: Ns,
    /// The correspondent host, with every service of [`crate::port`].
    pub server: Ns,
    /// The router between all networks, which drops packets whose source address is not routed back
    /// to the interface they arrived on.
    pub internet: Ns,
    /// The routers of the visited networks: wlan0's, then eth0's.
    pub visited: [Ns; 2],
    name: String,
    programs: Option<PathBuf>,
    dir: TempDir,
    passed: Cell<bool>,
}

impl Lab {
    /// Creates a lab with both uplinks up, a round trip of 20 ms on each, and cubic as the
    /// congestion control of every namespace.
    pub fn new() -> Result<Self> {
        Self::with(&LabOptions::default())
    }

    /// Creates a lab with `options`.
    ///
    /// A congestion control that network namespaces may not use yet is added to
    /// `tcp_allowed_congestion_control`: the one setting of the real machine that the lab changes.
    pub fn with(options: &LabOptions) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        cgroup::sweep()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}-{number}", cgroup::PREFIX, std::process::id());
        let cgroup = Arc::new(LabCgroup::new(&name)?);
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir()?;
        // Unprivileged commands of the cases must reach the agent's socket in this directory.
        set_mode(dir.path(), 0o755)?;
        let ns = |name| Ns::new(name, Arc::clone(&cgroup));
        let (host, relay, server, internet) = (ns("host")?, ns("relay")?, ns("server")?, ns("internet")?);
        let visited = [ns("visit_a")?, ns("visit_b")?];
        if let Some(name) = &options.congestion_control {
            allow_congestion_control(name)?;
            for ns in [&host, &relay, &server, &internet, &visited[0], &visited[1]] {
                ns.sysctl("net/ipv4/tcp_congestion_control", name)?;
            }
        }
        topology::make_internet(&internet, &relay, &server)?;
        for (index, name) in UplinkName::ALL.into_iter().enumerate() {
            topology::make_visited(&internet, &visited[index], name)?;
        }
        // The loose setting, as systemd's default. With the strict one a host cannot use two
        // uplinks at a time.
        host.sysctl("net/ipv4/conf/all/rp_filter", "2")?;
        let uplinks = [
            add_uplink(&host, &visited[0], UplinkName::Wlan, options.delay)?,
            add_uplink(&host, &visited[1], UplinkName::Eth, options.delay)?,
        ];
        let services = Services::start(&server)?;
        Ok(Self {
            cgroup,
            uplinks,
            _services: services,
            host,
            relay,
            server,
            internet,
            visited,
            name,
            programs: options.programs.clone(),
            dir,
            passed: Cell::new(false),
        })
    }

    /// Returns one of the two uplinks.
    #[must_use]
    pub fn uplink(&self, name: UplinkName) -> &Uplink {
        &self.uplinks[usize::from(name == UplinkName::Eth)]
    }

    /// Returns the uplink wlan0.
    #[must_use]
    pub fn wlan(&self) -> &Uplink {
        self.uplink(UplinkName::Wlan)
    }

    /// Returns the uplink eth0.
    #[must_use]
    pub fn eth(&self) -> &Uplink {
        self.uplink(UplinkName::Eth)
    }

    /// Returns the path of a program under test.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        match &self.programs {
            Some(folder) => Ok(folder.join(name)),
            None => program(name),
        }
    }

    /// Returns the directory for this lab's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Marks the case as passed, so that dropping the lab does not print the end of every log.
    pub fn passed(&self) {
        self.passed.set(true);
    }

    /// Returns the lab's unique name, which prefixes the names of its objects outside the
    /// namespaces.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns a device name that no other running lab uses, made of `prefix`, the process id and
    /// the number in the lab's name.
    ///
    /// wireguard-go and vtun make sockets and locks of that name, which all namespaces share.
    pub(crate) fn unique_device(&self, prefix: &str) -> String {
        let rest = self.name.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        format!("{prefix}{}", rest.replace('-', "n"))
    }

    /// Returns the cgroup that contains every program of the lab.
    #[must_use]
    pub fn cgroup(&self) -> &LabCgroup {
        &self.cgroup
    }

    /// Returns the path prefix of the directories in which the lab's agents pin their eBPF
    /// programs.
    #[must_use]
    pub fn pin_dir(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    /// Returns a firewall mark in the upper 16 bits for the agent `client`, which no other agent on
    /// the machine is likely to use.
    #[must_use]
    pub fn mark(&self, client: &str) -> u32 {
        // The name ends in the process id and a number; FNV-1a spreads both over the bits.
        let name = self.name.bytes().chain(client.bytes());
        let hash =
            name.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        ((hash % 0xffff) + 1) << 16
    }

    /// Creates another machine without any link; its programs are killed with the lab.
    pub fn machine(&self, name: &'static str) -> Result<Ns> {
        Ns::new(name, Arc::clone(&self.cgroup))
    }

    /// Connects two machines by a veth pair, up at both ends. Each argument is a machine and the
    /// name of its device.
    pub fn wire(&self, near: (&Ns, &str), far: (&Ns, &str)) -> Result<()> {
        topology::veth(near.0, near.1, far.0, far.1)
    }

    /// Starts a capture of the packets on a device of `ns` that match `filter`.
    pub fn capture(&self, ns: &Ns, device: &str, filter: &str) -> Result<Capture> {
        Capture::start(ns, device, filter, self.dir())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.passed.get() {
            self.show_logs();
        }
        self.cgroup.kill();
        // A failed case must not leave pins, which keep programs attached to the whole machine.
        cgroup::remove_pins(&self.pin_dir());
        cgroup::remove_records(self.dir());
    }
}

impl Lab {
    fn show_logs(&self) {
        /// The number of lines to print of each log: enough to see its end without hiding the
        /// failure itself.
        const TAIL: usize = 60;
        let Ok(entries) = std::fs::read_dir(self.dir()) else { return };
        let mut logs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        logs.sort();
        for path in
            logs.iter().filter(|path| path.extension().is_some_and(|kind| kind == "log" || kind == "txt"))
        {
            let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {} ({} lines)", path.display(), lines.len());
            for line in &lines[lines.len().saturating_sub(TAIL)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// Connects the host to a visited network, over an emulated link with a one-way `delay` or, without
/// a delay, over a plain veth pair, and brings the uplink up.
fn add_uplink(host: &Ns, visited: &Ns, name: UplinkName, delay: Option<Duration>) -> Result<Uplink> {
    let (near, far) = ((host, name.device()), (visited, "lan0"));
    let link = match delay {
        Some(delay) => {
            let link = LinkEmulator::new(near, far)?;
            link.set_delay(delay);
            Some(link)
        }
        None => {
            topology::veth(near.0, near.1, far.0, far.1)?;
            None
        }
    };
    let [a, b, c] = name.private4();
    visited.ip(&[
        "link set lan0 up txqueuelen 10000",
        &format!("address add {a}.{b}.{c}.1/24 dev lan0"),
        &format!("address add {}1/64 dev lan0 nodad", name.prefix6()),
    ])?;
    host.ip(&[&format!("link set {} txqueuelen 10000", name.device())])?;
    let uplink = Uplink::new(name, link, host, visited);
    uplink.bring_up()?;
    Ok(uplink)
}

fn allow_congestion_control(name: &str) -> Result<()> {
    let path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let allowed = std::fs::read_to_string(path)?;
    if allowed.split_whitespace().any(|one| one == name) {
        return Ok(());
    }
    std::fs::write(path, format!("{} {name}", allowed.trim()))
        .with_context(|| format!("cannot allow {name} in {path}: does this kernel have it?"))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}
