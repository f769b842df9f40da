//! VTun over TCP without encryption, the oldest of the competing tunnels.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::{Change, Competitor, CompetitorKind, INNER, make_gateway, needs_tun, pids, use_tunnel};
use crate::addr;
use crate::lab::Lab;
use crate::process::Process;
use crate::wait::{PATIENCE, wait_for};

pub(super) const KIND: CompetitorKind = CompetitorKind {
    name: "vtun",
    over_tcp: true,
    tools: &[("vtund", "vtun")],
    make: || Box::new(Vtun { running: Vec::new(), lock: None }),
    unavailable_reason: needs_tun,
};

const PORT: u16 = 5000;

/// The directory in which vtund locks a session by its name; Debian creates it at boot.
const LOCKS: &str = "/var/lock/vtund";

struct Vtun {
    /// The server's process, then the client's.
    running: Vec<Process>,
    /// The file with which the server locks the session, and which a killed server leaves behind.
    lock: Option<PathBuf>,
}

impl Drop for Vtun {
    fn drop(&mut self) {
        self.running.clear();
        if let Some(lock) = &self.lock {
            // The lock is missing if no session was ever opened.
            let _ = fs::remove_file(lock);
        }
    }
}

impl Competitor for Vtun {
    fn start(&mut self, lab: &Lab) -> Result<()> {
        make_gateway(lab)?;
        fs::create_dir_all(LOCKS)?;
        let session = lab.unique_device("vt");
        self.lock = Some(Path::new(LOCKS).join(&session));
        for (side, own, other, keep) in [("server", 0, 1, ""), ("client", 1, 0, "persist keep;")] {
            let options = if side == "server" { "" } else { "timeout 1;" };
            let config = format!(
                "options {{ port {PORT}; ip /sbin/ip; {options} }}\n\
                 {session} {{ passwd lab; type tun; proto tcp; compress no; encrypt no; keepalive 10:3; stat no; \
                 multi killold; device {session}; {keep}\n \
                 up {{\n ip \"link set %% up\";\n ip \"address replace {}/32 peer {} dev %%\";\n }};\n}}\n",
                INNER[own], INNER[other]
            );
            fs::write(lab.dir().join(format!("vtund-{side}.conf")), config)?;
        }
        let mut command = lab.relay.command("vtund");
        command.args(["-s", "-n", "-P", &PORT.to_string(), "-f"]).arg(lab.dir().join("vtund-server.conf"));
        let log = lab.dir().join("vtund-server.log");
        self.running.push(Process::start("vtund (server)", &mut command, &log)?);
        lab.relay.wait_listening(PORT)?;
        let mut command = lab.host.command("vtund");
        command.args(["-n", "-P", &PORT.to_string(), "-f"]).arg(lab.dir().join("vtund-client.conf"));
        command.args([session.as_str(), &addr::RELAY4.to_string()]);
        let log = lab.dir().join("vtund-client.log");
        self.running.push(Process::start("vtund (client)", &mut command, &log)?);
        wait_for("vtun's device", PATIENCE, || {
            Ok(lab.host.run(&["ip", "link", "show", "dev", &session]).ok())
        })?;
        use_tunnel(lab, &session)
    }

    fn processes(&self) -> Option<[i32; 2]> {
        pids(&self.running)
    }

    /// Makes the VTun client reconnect with SIGHUP.
    fn hook(&mut self, _lab: &Lab, _change: Change) -> Result<()> {
        self.running.last().context("the competitor was not started")?.signal(Signal::SIGHUP)
    }
}
