//! The lab as a whole: who is connected to whom, and the end of it.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::binaries::program;
use crate::capture::Capture;
use crate::group::{self, ProcessGroup};
use crate::link::LinkEmulator;
use crate::ns::Ns;
use crate::services::Services;
use crate::topology;
use crate::uplink::{Uplink, UplinkName};

/// The fixed addresses of the lab's internet.
pub mod addr {
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The relay's public IPv4 address.
    pub const RELAY4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    /// The relay's public IPv6 address.
    pub const RELAY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
    /// The server's IPv4 address.
    pub const SERVER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    /// The server's IPv6 address.
    pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x52, 0, 0, 0, 0, 2);
}

/// How a lab is made.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// One-way delay of each uplink. None: the uplinks are plain wires, without an emulator that would take its share of the
    /// processors; they cannot be changed.
    pub delay: Option<Duration>,
    /// The congestion control of every namespace; `None` leaves the kernel's default.
    pub congestion_control: Option<String>,
    /// The folder of the programs under test, if not the one that [`crate::program`] finds.
    pub programs: Option<PathBuf>,
}

impl LabOptions {
    /// One-way delay of each uplink by default: 20 ms is the round trip to a relay in one's region.
    pub const DELAY: Duration = Duration::from_millis(10);

    /// The congestion control that most distributions have.
    pub const CONGESTION_CONTROL: &str = "cubic";
}

impl Default for LabOptions {
    fn default() -> Self {
        let congestion_control = Some(Self::CONGESTION_CONTROL.to_owned());
        Self { delay: Some(Self::DELAY), congestion_control, programs: None }
    }
}

/// The lab. See the crate's documentation for the picture.
pub struct Lab {
    // Programs end first, then links and services, then the files they used.
    group: Arc<ProcessGroup>,
    uplinks: [Uplink; 2],
    _services: Services,
    /// The mobile host.
    pub host: Ns,
    /// The relay's machine.
    pub relay: Ns,
    /// The correspondent host, with every service of [`crate::port`].
    pub server: Ns,
    /// The router between everyone, which drops what comes back another way than it would go.
    pub internet: Ns,
    /// The visited networks' routers: wlan0's, then eth0's.
    pub visited: [Ns; 2],
    name: String,
    programs: Option<PathBuf>,
    dir: TempDir,
    passed: Cell<bool>,
}

impl Lab {
    /// A lab with 20 ms of round trip on both uplinks, both up, and cubic everywhere.
    pub fn new() -> Result<Self> {
        Self::with(&LabOptions::default())
    }

    /// A lab made to order.
    ///
    /// A congestion control that the machine does not allow in namespaces is allowed: the one setting of
    /// the machine itself that the lab changes.
    pub fn with(options: &LabOptions) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        group::sweep()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}-{number}", group::PREFIX, std::process::id());
        let group = Arc::new(ProcessGroup::new(&name)?);
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir()?;
        // Unprivileged commands of the cases reach the agent's socket in there.
        set_mode(dir.path(), 0o755)?;
        let ns = |name| Ns::new(name, Arc::clone(&group));
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
        // Loose, as systemd sets it; with the strict setting no host can use two uplinks at a time.
        host.sysctl("net/ipv4/conf/all/rp_filter", "2")?;
        let uplinks = UplinkName::ALL.map(|name| -> Result<Uplink> {
            let visited = &visited[usize::from(name == UplinkName::Eth)];
            let (near, far) = ((&host, name.device()), (visited, "lan0"));
            let link = match options.delay {
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
            let uplink = Uplink::new(name, link, &host, visited);
            uplink.bring_up()?;
            Ok(uplink)
        });
        let [wlan, eth] = uplinks;
        let uplinks = [wlan?, eth?];
        let services = Services::start(&server)?;
        Ok(Self {
            group,
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

    /// One of the uplinks.
    #[must_use]
    pub fn uplink(&self, name: UplinkName) -> &Uplink {
        &self.uplinks[usize::from(name == UplinkName::Eth)]
    }

    /// wlan0.
    #[must_use]
    pub fn wlan(&self) -> &Uplink {
        self.uplink(UplinkName::Wlan)
    }

    /// eth0.
    #[must_use]
    pub fn eth(&self) -> &Uplink {
        self.uplink(UplinkName::Eth)
    }

    /// The path of a program under test.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        match &self.programs {
            Some(folder) => Ok(folder.join(name)),
            None => program(name),
        }
    }

    /// A directory for this lab's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Says that the case has passed: otherwise every log is shown when the lab is dropped.
    pub fn passed(&self) {
        self.passed.set(true);
    }

    /// A name no other lab has; it starts names of things outside the namespaces.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cgroup of every program of the lab.
    #[must_use]
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// Where the agents of this lab pin their programs: what this starts with.
    #[must_use]
    pub fn pin_dir(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    /// A firewall mark in the upper 16 bits that no other agent on the machine is likely to use.
    #[must_use]
    pub fn mark(&self, client: &str) -> u32 {
        // The name ends in process id and number: FNV-1a spreads both.
        let name = self.name.bytes().chain(client.bytes());
        let hash =
            name.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        ((hash % 0xffff) + 1) << 16
    }

    /// One more machine, without any link; its programs end with the lab.
    pub fn machine(&self, name: &'static str) -> Result<Ns> {
        Ns::new(name, Arc::clone(&self.group))
    }

    /// Joins two machines by a wire, up at both ends; each end is a machine and the name of its
    /// device.
    pub fn wire(&self, near: (&Ns, &str), far: (&Ns, &str)) -> Result<()> {
        topology::veth(near.0, near.1, far.0, far.1)
    }

    /// Captures what matches `filter` on a device of `ns`.
    pub fn capture(&self, ns: &Ns, device: &str, filter: &str) -> Result<Capture> {
        Capture::start(ns, device, filter, self.dir())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.passed.get() {
            self.show_logs();
        }
        self.group.kill();
        // Pins hold programs attached to the whole machine: they must not outlive a failed case.
        group::remove_pins(&self.pin_dir());
        group::remove_records(self.dir());
    }
}

impl Lab {
    fn show_logs(&self) {
        /// Enough for the story's end without drowning the failure itself.
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
