//! WireGuard in user space by the program wireguard-go.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Change, Competitor, CompetitorKind, INNER, device, make_gateway, needs_tun, pids, use_tunnel};
use crate::addr;
use crate::lab::Lab;
use crate::ns::Ns;
use crate::process::Process;
use crate::wait::{PATIENCE, wait_for};

pub(super) const KIND: CompetitorKind = CompetitorKind {
    name: "wireguard-go",
    over_tcp: false,
    tools: &[("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools")],
    make: || Box::new(WireGuard { running: Vec::new(), sockets: Vec::new(), relay_key: String::new() }),
    unavailable_reason: needs_tun,
};

const PORT: u16 = 51820;

/// The directory of the sockets through which `wg` configures wireguard-go, one for each interface.
const SOCKETS: &str = "/var/run/wireguard";

struct WireGuard {
    /// The relay's process, then the host's.
    running: Vec<Process>,
    /// The control sockets of both wireguard-go processes, which killed processes leave behind.
    sockets: Vec<PathBuf>,
    relay_key: String,
}

impl Drop for WireGuard {
    fn drop(&mut self) {
        self.running.clear();
        for socket in &self.sockets {
            // The socket is missing if wireguard-go ended by itself.
            let _ = fs::remove_file(socket);
        }
    }
}

impl Competitor for WireGuard {
    fn start(&mut self, lab: &Lab) -> Result<()> {
        make_gateway(lab)?;
        let secrets = [lab.relay.run(&["wg", "genkey"])?, lab.relay.run(&["wg", "genkey"])?];
        let publics = [public(lab, &secrets[0])?, public(lab, &secrets[1])?];
        let relay = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\n",
            secrets[0].trim(),
            publics[1],
            INNER[1]
        );
        let host = format!(
            "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {}:{PORT}\n",
            secrets[1].trim(),
            publics[0],
            addr::RELAY4
        );
        self.bring_up(lab, &lab.relay, &device(lab, "wr"), &relay, 0)?;
        self.bring_up(lab, &lab.host, &device(lab, "wh"), &host, 1)?;
        let [relay_key, _] = publics;
        self.relay_key = relay_key;
        use_tunnel(lab, &device(lab, "wh"))
    }

    fn processes(&self) -> Option<[i32; 2]> {
        pids(&self.running)
    }

    /// Sets the relay's endpoint again, since wireguard-go otherwise keeps sending from the source
    /// address that it used last.
    fn hook(&mut self, lab: &Lab, _change: Change) -> Result<()> {
        let endpoint = format!("{}:{PORT}", addr::RELAY4);
        lab.host
            .run(&["wg", "set", &device(lab, "wh"), "peer", &self.relay_key, "endpoint", &endpoint])
            .map(drop)
    }
}

impl WireGuard {
    fn bring_up(&mut self, lab: &Lab, ns: &Ns, device: &str, config: &str, own: usize) -> Result<()> {
        self.sockets.push(Path::new(SOCKETS).join(format!("{device}.sock")));
        let mut command = ns.command("wireguard-go");
        command.args(["-f", device]).env("LOG_LEVEL", "error");
        let log = lab.dir().join(format!("wireguard-go-{}.log", ns.name()));
        let mut process = Process::start("wireguard-go", &mut command, &log)?;
        let file = lab.dir().join(format!("{device}.conf"));
        fs::write(&file, config)?;
        wait_for("wireguard-go's socket", PATIENCE, || {
            if let Some(status) = process.ended()? {
                return Ok(Some(Err(anyhow::anyhow!("wireguard-go ended: {status}: {}", process.output()))));
            }
            ns.run(&["wg", "setconf", device, &file.display().to_string()])?;
            Ok(Some(Ok(())))
        })??;
        self.running.push(process);
        ns.ip(&[
            &format!("address add {}/24 dev {device}", INNER[own]),
            &format!("link set {device} mtu 1420 up"),
        ])
    }
}

fn public(lab: &Lab, secret: &str) -> Result<String> {
    let mut command = lab.relay.command("wg");
    let done = crate::process::finish_within(command.arg("pubkey"), Some(secret.as_bytes()), PATIENCE)?;
    Ok(done.ok().context("wg pubkey")?.trim().to_owned())
}
