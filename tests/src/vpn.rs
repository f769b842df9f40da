//! A third-party VPN on the mobile host: WireGuard in user space, with its gateway on the server's
//! machine.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::addr;
use crate::lab::Lab;
use crate::ns::Ns;
use crate::process::{Process, finish_within};
use crate::uplink::Uplink;
use crate::wait::{PATIENCE, wait_for};

const PORT: u16 = 51820;

/// The addresses inside the VPN: the gateway's and the host's.
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];

/// The directory of the control sockets through which `wg` configures wireguard-go, one for each
/// device.
const SOCKETS: &str = "/var/run/wireguard";

/// A VPN that is up at both ends, without routes into it, which the case sets.
pub struct Vpn {
    /// The gateway's process, then the client's.
    running: Vec<Process>,
    sockets: Vec<PathBuf>,
    device: String,
}

impl Vpn {
    /// Returns the name of the VPN's device on the host.
    ///
    /// The name differs in each lab, because wireguard-go makes a socket of that name, which all
    /// namespaces share.
    #[must_use]
    pub fn device_of(lab: &Lab) -> String {
        name(lab, "vc")
    }

    /// Starts the VPN's gateway and its client. `client` makes a command that runs on the host the
    /// program and the arguments in its parameter.
    pub fn start(lab: &Lab, client: impl FnOnce(&[&str]) -> Command) -> Result<Self> {
        lab.server.sysctl("net/ipv4/ip_forward", "1")?;
        lab.server.feed(
            &["nft", "-f", "-"],
            &format!(
                "table ip vpn {{\n chain postrouting {{\n  type nat hook postrouting priority srcnat\n  \
                 ip saddr {} oifname wan0 masquerade\n }}\n}}\n",
                INNER[1]
            ),
        )?;
        let secrets = [lab.server.run(&["wg", "genkey"])?, lab.server.run(&["wg", "genkey"])?];
        let publics = [public(lab, &secrets[0])?, public(lab, &secrets[1])?];
        let gateway = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\n",
            secrets[0].trim(),
            publics[1],
            INNER[1]
        );
        let host = format!(
            "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {}:{PORT}\n",
            secrets[1].trim(),
            publics[0],
            addr::SERVER4
        );
        let mut vpn = Self { running: Vec::new(), sockets: Vec::new(), device: Self::device_of(lab) };
        let device = name(lab, "vg");
        let mut command = lab.server.command("wireguard-go");
        command.args(["-f", &device]);
        vpn.bring_up(lab, &lab.server, &device, command, &gateway, 0)?;
        let device = vpn.device.clone();
        vpn.bring_up(lab, &lab.host, &device, client(&["wireguard-go", "-f", &device]), &host, 1)?;
        Ok(vpn)
    }

    /// Starts the VPN with an ordinary (not mobile) process as its client.
    pub fn ordinary(lab: &Lab) -> Result<Self> {
        Self::start(lab, |argv| {
            let mut command = lab.host.command(argv[0]);
            command.args(&argv[1..]);
            command
        })
    }

    /// Returns the name of the VPN's device on the host.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Returns the process id of the VPN's client on the host.
    #[must_use]
    pub fn client(&self) -> Option<i32> {
        self.running.last().map(Process::pid)
    }

    /// Routes the VPN's own outer packets over `uplink`, as every VPN client does that replaces the
    /// default route.
    pub fn pin(&self, lab: &Lab, uplink: &Uplink) -> Result<()> {
        lab.host.ip(&[&format!(
            "route replace {}/32 via {} dev {}",
            addr::SERVER4,
            uplink.gateway4(),
            uplink.device()
        )])
    }

    fn bring_up(
        &mut self,
        lab: &Lab,
        ns: &Ns,
        device: &str,
        mut command: Command,
        config: &str,
        own: usize,
    ) -> Result<()> {
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
        ns.ip(&[
            &format!("address add {}/24 dev {device}", INNER[own]),
            &format!("link set {device} mtu 1420 up"),
        ])
    }
}

impl Drop for Vpn {
    fn drop(&mut self) {
        self.running.clear();
        for socket in &self.sockets {
            // The socket is missing if wireguard-go ended by itself.
            let _ = fs::remove_file(socket);
        }
    }
}

/// Returns a device name made of `prefix`, the process id and the number at the end of the lab's
/// name.
fn name(lab: &Lab, prefix: &str) -> String {
    let rest = lab.name().trim_start_matches(|letter: char| !letter.is_ascii_digit());
    format!("{prefix}{}", rest.replace('-', "n"))
}

fn public(lab: &Lab, secret: &str) -> Result<String> {
    let mut command = lab.server.command("wg");
    let done = finish_within(command.arg("pubkey"), Some(secret.as_bytes()), PATIENCE)?;
    Ok(done.ok().context("wg pubkey")?.trim().to_owned())
}
