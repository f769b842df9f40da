//! WireGuard in user space: a wireguard-go process on the mobile host and one on a gateway.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::lab::Lab;
use crate::ns::Ns;
use crate::process::{Process, finish_within};
use crate::wait::{PATIENCE, wait_for};

const PORT: u16 = 51820;

/// The directory of the control sockets through which `wg` configures wireguard-go, one for each
/// device.
const SOCKETS: &str = "/var/run/wireguard";

/// The machine at which a WireGuard tunnel ends.
pub(crate) struct Gateway<'a> {
    pub(crate) ns: &'a Ns,
    /// The address at which the host reaches the gateway.
    pub(crate) endpoint: Ipv4Addr,
}

/// A WireGuard tunnel that is up at both ends, without routes into it.
pub(crate) struct WireGuard {
    /// The gateway's process, then the host's.
    running: Vec<Process>,
    /// The control sockets of both processes, which killed processes leave behind.
    sockets: Vec<PathBuf>,
    gateway_key: String,
}

impl WireGuard {
    /// Starts the gateway, then the host's end. Each array has the value for the gateway before the
    /// one for the host: the names of the devices, and the addresses `inner` in the tunnel.
    /// `client` returns the command that runs its argument, a program with arguments, on the host.
    pub(crate) fn start(
        lab: &Lab,
        gateway: &Gateway<'_>,
        devices: &[String; 2],
        inner: [Ipv4Addr; 2],
        client: impl FnOnce(&[&str]) -> Command,
    ) -> Result<Self> {
        let secrets = [gateway.ns.run(&["wg", "genkey"])?, gateway.ns.run(&["wg", "genkey"])?];
        let [gateway_key, host_key] =
            [public_key(gateway.ns, &secrets[0])?, public_key(gateway.ns, &secrets[1])?];
        let at_gateway = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n[Peer]\nPublicKey = {host_key}\nAllowedIPs = {}/32\n",
            secrets[0].trim(),
            inner[1]
        );
        let at_host = format!(
            "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {gateway_key}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {}:{PORT}\n",
            secrets[1].trim(),
            gateway.endpoint
        );
        let mut pair = Self { running: Vec::new(), sockets: Vec::new(), gateway_key };
        let mut command = gateway.ns.command("wireguard-go");
        command.args(["-f", &devices[0]]);
        pair.bring_up(lab, gateway.ns, (&devices[0], inner[0]), command, &at_gateway)?;
        let command = client(&["wireguard-go", "-f", &devices[1]]);
        pair.bring_up(lab, &lab.host, (&devices[1], inner[1]), command, &at_host)?;
        Ok(pair)
    }

    /// Returns the processes: the gateway's, then the host's.
    pub(crate) fn processes(&self) -> &[Process] {
        &self.running
    }

    /// Sets the gateway's endpoint at the host again, since wireguard-go otherwise keeps sending
    /// from the source address that it used last.
    pub(crate) fn renew_endpoint(&self, lab: &Lab, device: &str, gateway: &Gateway<'_>) -> Result<()> {
        let endpoint = format!("{}:{PORT}", gateway.endpoint);
        lab.host.run(&["wg", "set", device, "peer", &self.gateway_key, "endpoint", &endpoint]).map(drop)
    }

    /// Starts one end, whose device has the name and the address `own`, and configures it.
    fn bring_up(
        &mut self,
        lab: &Lab,
        ns: &Ns,
        own: (&str, Ipv4Addr),
        mut command: Command,
        config: &str,
    ) -> Result<()> {
        let (device, address) = own;
        self.sockets.push(Path::new(SOCKETS).join(format!("{device}.sock")));
        command.env("LOG_LEVEL", "error");
        let log = lab.dir().join(format!("wireguard-go-{}.txt", ns.name()));
        let mut process = Process::start("wireguard-go", &mut command, &log)?;
        let file = lab.dir().join(format!("{device}.conf"));
        fs::write(&file, config)?;
        wait_for("wireguard-go's socket", PATIENCE, || {
            if let Some(status) = process.ended()? {
                return Ok(Some(Err(anyhow!("wireguard-go ended: {status}: {}", process.output()))));
            }
            ns.run(&["wg", "setconf", device, &file.display().to_string()])?;
            Ok(Some(Ok(())))
        })??;
        self.running.push(process);
        ns.ip(&[&format!("address add {address}/24 dev {device}"), &format!("link set {device} mtu 1420 up")])
    }
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

/// Returns the public key of a private key, with the `wg` of `ns`.
fn public_key(ns: &Ns, secret: &str) -> Result<String> {
    let mut command = ns.command("wg");
    let done = finish_within(command.arg("pubkey"), Some(secret.as_bytes()), PATIENCE)?;
    Ok(done.ok().context("wg pubkey")?.trim().to_owned())
}
