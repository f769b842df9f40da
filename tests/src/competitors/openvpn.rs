//! OpenVPN over UDP and over TCP: TLS with pinned certificate fingerprints and OpenVPN's default
//! cipher.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::{Change, Competitor, CompetitorKind, INNER, make_gateway, needs_tun, pids, use_tunnel};
use crate::addr;
use crate::lab::Lab;
use crate::process::Process;
use crate::uplink::UplinkName;
use crate::wait::PATIENCE;

pub(super) const UDP: CompetitorKind = CompetitorKind {
    name: "openvpn-udp",
    over_tcp: false,
    tools: &[("openvpn", "openvpn"), ("openssl", "openssl")],
    make: || Box::new(OpenVpn { tcp: false, current: None, running: Vec::new() }),
    unavailable_reason: needs_tun,
};

pub(super) const TCP: CompetitorKind = CompetitorKind {
    name: "openvpn-tcp",
    over_tcp: true,
    make: || Box::new(OpenVpn { tcp: true, current: None, running: Vec::new() }),
    ..UDP
};

const DEVICE: &str = "vpn0";
const PORT: &str = "1194";

struct OpenVpn {
    tcp: bool,
    /// The uplink that carries the client's TCP connection, or `None` if none does.
    current: Option<UplinkName>,
    /// The server's process, then the client's.
    running: Vec<Process>,
}

impl Competitor for OpenVpn {
    fn start(&mut self, lab: &Lab) -> Result<()> {
        make_gateway(lab)?;
        let (server, client) = (Identity::make(lab, "relay")?, Identity::make(lab, "laptop")?);
        let clients = lab.dir().join("openvpn-clients");
        fs::create_dir(&clients)?;
        // The client keeps its address across reconnections, as a careful administrator would
        // configure it.
        fs::write(clients.join("laptop"), format!("ifconfig-push {} 255.255.255.0\n", INNER[1]))?;
        let (ours, theirs) = if self.tcp { ("tcp-server", "tcp-client") } else { ("udp", "udp") };
        let mut command = lab.relay.command("openvpn");
        command
            .args(["--mode", "server", "--tls-server", "--dh", "none", "--proto", ours, "--port", PORT])
            .args(["--dev", DEVICE, "--dev-type", "tun", "--topology", "subnet"])
            .args(["--ifconfig", &INNER[0].to_string(), "255.255.255.0", "--push", "topology subnet"])
            .args(["--keepalive", "10", "60"])
            .arg("--client-config-dir")
            .arg(&clients);
        if !self.tcp {
            command.arg("--float");
        }
        server.add_to(&mut command, &client);
        let log = lab.dir().join("openvpn-server.log");
        let mut process = Process::start("openvpn (server)", &mut command, &log)?;
        process.wait_output("Initialization Sequence Completed", PATIENCE)?;
        self.running.push(process);

        let mut command = lab.host.command("openvpn");
        command
            .args(["--client", "--proto", theirs, "--remote", &addr::RELAY4.to_string(), PORT, "--nobind"])
            .args(["--dev", DEVICE, "--dev-type", "tun", "--persist-tun", "--persist-key"])
            // One second is the least that OpenVPN accepts; by default the delay doubles.
            .args(["--connect-retry", "1", "1"]);
        client.add_to(&mut command, &server);
        let log = lab.dir().join("openvpn-client.log");
        let mut process = Process::start("openvpn (client)", &mut command, &log)?;
        process.wait_output("Initialization Sequence Completed", PATIENCE)?;
        self.running.push(process);
        use_tunnel(lab, DEVICE)?;
        self.current = UplinkName::ALL.into_iter().rfind(|name| lab.uplink(*name).has_carrier());
        Ok(())
    }

    fn processes(&self) -> Option<[i32; 2]> {
        pids(&self.running)
    }

    /// Makes an OpenVPN client over TCP reconnect with SIGUSR1, unless an uplink went down that
    /// does not carry its connection. Does nothing over UDP, where packets follow the route.
    fn hook(&mut self, _lab: &Lab, change: Change) -> Result<()> {
        if !self.tcp {
            return Ok(());
        }
        let next = match change {
            Change::Up(name) => Some(name),
            Change::Down(name) if self.current == Some(name) => {
                UplinkName::ALL.into_iter().find(|other| *other != name)
            }
            Change::Down(_) => return Ok(()),
        };
        self.current = next;
        self.running.last().context("the competitor was not started")?.signal(Signal::SIGUSR1)
    }
}

/// A private key and a self-signed certificate.
struct Identity {
    key: PathBuf,
    certificate: PathBuf,
    fingerprint: String,
}

impl Identity {
    fn make(lab: &Lab, name: &str) -> Result<Self> {
        let key = lab.dir().join(format!("{name}.key"));
        let certificate = lab.dir().join(format!("{name}.crt"));
        let text = |path: &PathBuf| path.display().to_string();
        let subject = format!("/CN={name}");
        lab.host.run(&[
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            &subject,
            "-keyout",
            &text(&key),
            "-out",
            &text(&certificate),
        ])?;
        let output = lab.host.run(&[
            "openssl",
            "x509",
            "-in",
            &text(&certificate),
            "-noout",
            "-fingerprint",
            "-sha256",
        ])?;
        let fingerprint = output.trim().rsplit('=').next().unwrap_or_default().to_owned();
        Ok(Self { key, certificate, fingerprint })
    }

    fn add_to(&self, command: &mut std::process::Command, other: &Self) {
        command.arg("--key").arg(&self.key).arg("--cert").arg(&self.certificate);
        command.args(["--peer-fingerprint", &other.fingerprint]);
    }
}
