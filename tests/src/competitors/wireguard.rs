//! WireGuard in user space by the program wireguard-go.

use anyhow::{Context, Result};

use super::{Change, Competitor, CompetitorKind, INNER, make_gateway, needs_tun, pids, use_tunnel};
use crate::addr;
use crate::lab::Lab;
use crate::wireguard::{Gateway, WireGuard};

pub(super) const KIND: CompetitorKind = CompetitorKind {
    name: "wireguard-go",
    over_tcp: false,
    tools: &[("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools")],
    make: || Box::new(WireGuardGo { tunnel: None }),
    unavailable_reason: needs_tun,
};

/// The competitor, with its tunnel to the relay's machine once it is started.
struct WireGuardGo {
    tunnel: Option<WireGuard>,
}

fn gateway(lab: &Lab) -> Gateway<'_> {
    Gateway { ns: &lab.relay, endpoint: addr::RELAY4 }
}

/// Returns the name of the tunnel's device on the host.
fn device(lab: &Lab) -> String {
    lab.unique_device("wh")
}

impl Competitor for WireGuardGo {
    fn start(&mut self, lab: &Lab) -> Result<()> {
        make_gateway(lab)?;
        let devices = [lab.unique_device("wr"), device(lab)];
        let client = |argv: &[&str]| lab.host.command_line(argv);
        self.tunnel = Some(WireGuard::start(lab, &gateway(lab), &devices, INNER, client)?);
        use_tunnel(lab, &device(lab))
    }

    fn processes(&self) -> Option<[i32; 2]> {
        pids(self.tunnel.as_ref()?.processes())
    }

    fn hook(&mut self, lab: &Lab, _change: Change) -> Result<()> {
        let tunnel = self.tunnel.as_ref().context("wireguard-go is not started")?;
        tunnel.renew_endpoint(lab, &device(lab), &gateway(lab))
    }
}
