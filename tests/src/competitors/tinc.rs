//! tinc 1.0 as in its manual's example: RSA keys, default cipher and digest; over UDP, or with
//! `TCPOnly`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{Change, Competitor, CompetitorKind, INNER, make_gateway, needs_tun, pids, use_tunnel};
use crate::addr;
use crate::lab::Lab;
use crate::ns::Ns;
use crate::process::{Process, finish_within};
use crate::wait::{PATIENCE, wait_for};

pub(super) const UDP: CompetitorKind = CompetitorKind {
    name: "tinc",
    over_tcp: false,
    tools: &[("tincd", "tinc")],
    make: || Box::new(Tinc { tcp: false, running: Vec::new(), relay: PathBuf::new() }),
    unavailable_reason: needs_tun,
};

pub(super) const TCP: CompetitorKind = CompetitorKind {
    name: "tinc-tcp",
    over_tcp: true,
    make: || Box::new(Tinc { tcp: true, running: Vec::new(), relay: PathBuf::new() }),
    ..UDP
};

const DEVICE: &str = "tinc0";

struct Tinc {
    tcp: bool,
    /// The relay's process, then the host's.
    running: Vec<Process>,
    /// The host's file about the relay, `hosts/relay`; tinc reconnects if its modification time has
    /// changed.
    relay: PathBuf,
}

impl Competitor for Tinc {
    fn start(&mut self, lab: &Lab) -> Result<()> {
        make_gateway(lab)?;
        let sides = [("relay", &lab.relay, ""), ("laptop", &lab.host, "ConnectTo = relay\n")];
        let folders = sides.map(|(name, ..)| lab.dir().join(format!("tinc-{name}")));
        let mut keys = Vec::new();
        for ((name, ns, connect), folder) in sides.iter().zip(&folders) {
            let tcp = if self.tcp { "TCPOnly = yes\n" } else { "" };
            fs::create_dir_all(folder.join("hosts"))?;
            fs::write(
                folder.join("tinc.conf"),
                format!("Name = {name}\nDeviceType = tun\nInterface = {DEVICE}\n{tcp}{connect}"),
            )?;
            keys.push(make_key(ns, name, folder)?);
        }
        // The relay's subnet is the default route.
        let hosts = [
            ("relay", format!("Address = {}\nSubnet = 0.0.0.0/0\n{}", addr::RELAY4, keys[0])),
            ("laptop", format!("Subnet = {}/32\n{}", INNER[1], keys[1])),
        ];
        for folder in &folders {
            for (name, text) in &hosts {
                fs::write(folder.join("hosts").join(name), text)?;
            }
        }
        self.relay = folders[1].join("hosts/relay");
        for (index, ((name, ns, _), folder)) in sides.iter().zip(&folders).enumerate() {
            let mut command = ns.command("tincd");
            // tinc logs connections from debug level 1 on.
            command.args(["--no-detach", "--debug=1", "--config"]).arg(folder);
            command.arg("--pidfile").arg(folder.join("pid"));
            let log = lab.dir().join(format!("tinc-{name}.log"));
            let mut process = Process::start(&format!("tincd ({name})"), &mut command, &log)?;
            process.wait_output("Ready", PATIENCE)?;
            self.running.push(process);
            ns.ip(&[
                &format!("address add {}/24 dev {DEVICE}", INNER[index]),
                &format!("link set {DEVICE} up"),
            ])?;
        }
        self.running
            .last_mut()
            .context("the competitor was not started")?
            .wait_output("activated", PATIENCE)?;
        use_tunnel(lab, DEVICE)?;
        if self.tcp { Ok(()) } else { use_udp(lab) }
    }

    fn processes(&self) -> Option<[i32; 2]> {
        pids(&self.running)
    }

    /// Makes tinc reconnect: touches the host's file about the relay and sends SIGHUP, on which
    /// tinc drops peers whose files have changed.
    fn hook(&mut self, _lab: &Lab, _change: Change) -> Result<()> {
        fs::File::options().append(true).open(&self.relay)?.set_modified(SystemTime::now())?;
        self.running.last().context("the competitor was not started")?.signal(Signal::SIGHUP)
    }
}

/// Generates a key pair with tincd, and returns the text of the host file with the public key.
fn make_key(ns: &Ns, name: &str, folder: &Path) -> Result<String> {
    let mut command = ns.command("tincd");
    // Without a terminal tincd does not ask for file names.
    command.arg("--config").arg(folder).arg("--generate-keys=2048");
    finish_within(&mut command, None, PATIENCE)?.ok().context("tincd --generate-keys")?;
    let public = fs::read_to_string(folder.join("hosts").join(name))?;
    ensure!(public.contains("PUBLIC KEY"), "tincd made no public key for {name}");
    Ok(public)
}

/// Waits until tinc sends large packets over UDP, since it uses TCP until it has discovered the
/// path MTU.
fn use_udp(lab: &Lab) -> Result<()> {
    const PINGS: u64 = 20;
    let server = addr::SERVER4.to_string();
    let (count, size) = (PINGS.to_string(), "1200");
    let ping = ["ping", "-q", "-c", &count, "-i", "0.01", "-s", size, &server];
    wait_for("tinc to use UDP", PATIENCE, || {
        let before = datagrams_sent(&lab.host)?;
        lab.host.run(&ping)?;
        let sent = datagrams_sent(&lab.host)? - before;
        Ok((sent >= PINGS).then_some(()))
    })
}

/// Returns the number of UDP datagrams sent in the namespace, from `/proc/net/snmp`.
///
/// The second line that begins with `Udp:` has the values; the fourth is `OutDatagrams`.
fn datagrams_sent(ns: &Ns) -> Result<u64> {
    let output = ns.run(&["cat", "/proc/net/snmp"])?;
    let figures = output.lines().filter_map(|line| line.strip_prefix("Udp: ")).nth(1);
    let sent = figures.and_then(|figures| figures.split_whitespace().nth(3));
    sent.with_context(|| format!("no UDP counters in {output}"))?.parse().context("/proc/net/snmp")
}
