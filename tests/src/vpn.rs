//! A third-party VPN on the mobile host: WireGuard in user space, with its gateway on the server's
//! machine.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::Result;

use crate::addr;
use crate::lab::Lab;
use crate::process::Process;
use crate::topology;
use crate::uplink::Uplink;
use crate::wireguard::{Gateway, WireGuard};

/// The addresses inside the VPN: the gateway's and the host's.
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];

/// A VPN that is up at both ends, without routes into it, which the case sets.
pub struct Vpn {
    tunnel: WireGuard,
    device: String,
}

impl Vpn {
    /// Returns the name of the VPN's device on the host, which differs in each lab.
    #[must_use]
    pub fn device_of(lab: &Lab) -> String {
        lab.unique_device("vc")
    }

    /// Starts the VPN's gateway and its client. `client` makes a command that runs on the host the
    /// program and the arguments in its parameter.
    pub fn start(lab: &Lab, client: impl FnOnce(&[&str]) -> Command) -> Result<Self> {
        topology::masquerade(&lab.server, "vpn", INNER[1])?;
        let gateway = Gateway { ns: &lab.server, endpoint: addr::SERVER4 };
        let device = Self::device_of(lab);
        let devices = [lab.unique_device("vg"), device.clone()];
        Ok(Self { tunnel: WireGuard::start(lab, &gateway, &devices, INNER, client)?, device })
    }

    /// Starts the VPN with an ordinary (not mobile) process as its client.
    pub fn ordinary(lab: &Lab) -> Result<Self> {
        Self::start(lab, |argv| lab.host.command_line(argv))
    }

    /// Returns the name of the VPN's device on the host.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Returns the process id of the VPN's client on the host.
    #[must_use]
    pub fn client(&self) -> Option<i32> {
        self.tunnel.processes().last().map(Process::pid)
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
}
