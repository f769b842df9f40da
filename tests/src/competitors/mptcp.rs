//! The kernel's Multipath TCP between the application and an MPTCP server, with a subflow over each
//! uplink. The subflow over the uplink with the worse metric is a backup.

use std::fs;

use anyhow::{Result, ensure};
use socket2::Protocol;

use super::{Change, Competitor, CompetitorKind};
use crate::addr;
use crate::binaries::program;
use crate::lab::Lab;
use crate::pulse::{Pulse, PulseMode};
use crate::services::{TcpService, echo, numbers};
use crate::uplink::UplinkName;
use crate::wait::{PATIENCE, wait_for};

pub(super) const KIND: CompetitorKind = CompetitorKind {
    name: "MPTCP",
    over_tcp: true,
    tools: &[("ip", "iproute2"), ("ss", "iproute2")],
    make: || Box::new(Mptcp { services: Vec::new(), up: Vec::new() }),
    unavailable_reason,
};

/// The server's ports for echo and for the number sequence over MPTCP; ordinary TCP has other
/// ports.
const ECHO: u16 = 2007;
const NUMBERS: u16 = 2002;

struct Mptcp {
    services: Vec<TcpService>,
    /// The uplinks that are up and have an MPTCP endpoint.
    up: Vec<UplinkName>,
}

impl Competitor for Mptcp {
    fn start(&mut self, lab: &Lab) -> Result<()> {
        for ns in [&lab.host, &lab.server] {
            ns.sysctl("net/mptcp/enabled", "1")?;
            ns.run(&["ip", "mptcp", "limits", "set", "subflows", "2", "add_addr_accepted", "0"])?;
        }
        self.services = vec![
            TcpService::start_over(&lab.server, Protocol::MPTCP, ECHO, |stream, _| echo(&stream))?,
            TcpService::start_over(&lab.server, Protocol::MPTCP, NUMBERS, |stream, _| numbers(&stream))?,
        ];
        for name in UplinkName::ALL {
            if lab.uplink(name).has_carrier() {
                self.hook(lab, Change::Up(name))?;
            }
        }
        Ok(())
    }

    /// Adds or deletes the MPTCP endpoint (the local address for a subflow) of an uplink, and marks
    /// all endpoints but that of the best uplink as backups.
    fn hook(&mut self, lab: &Lab, change: Change) -> Result<()> {
        match change {
            Change::Up(name) => {
                let best = self.up.iter().all(|other| name.metric() < other.metric());
                let address = lab.uplink(name).address4().to_string();
                let mut add = vec![
                    "ip",
                    "mptcp",
                    "endpoint",
                    "add",
                    &address,
                    "dev",
                    name.device(),
                    "id",
                    id(name),
                    "subflow",
                ];
                if best {
                    for other in &self.up {
                        lab.host.run(&["ip", "mptcp", "endpoint", "change", "id", id(*other), "backup"])?;
                    }
                } else {
                    add.push("backup");
                }
                route_by_source(lab, name)?;
                lab.host.run(&add)?;
                self.up.push(name);
            }
            Change::Down(name) => {
                lab.host.run(&["ip", "mptcp", "endpoint", "delete", "id", id(name)])?;
                self.up.retain(|other| *other != name);
            }
        }
        Ok(())
    }

    fn pulse(&self, lab: &Lab, mode: PulseMode, numbers: u64) -> Result<Pulse> {
        let port = if mode == PulseMode::Echo { ECHO } else { NUMBERS };
        let mut command = lab.host.command(program("labtool")?);
        command.args(["pulse", mode.name(), "mptcp", &format!("{}:{port}", addr::SERVER4)]);
        let pulse = Pulse::start(&mut command, numbers)?;
        // Wait for both subflows: a connection that fell back to TCP would have only one for ever.
        wait_for("a subflow on each uplink", PATIENCE, || {
            let filter = ["ss", "-Htn", "state", "established", "dport", "=", &port.to_string()];
            let subflows = lab.host.run(&filter)?.lines().count();
            ensure!(subflows >= self.up.len(), "{subflows} subflows");
            Ok(Some(()))
        })?;
        Ok(pulse)
    }
}

/// Makes packets from the address of the uplink `name` leave over that uplink, as every MPTCP
/// manual requires.
///
/// The first subflow is not bound to a device, and would otherwise follow a better default route
/// with the wrong source address.
fn route_by_source(lab: &Lab, name: UplinkName) -> Result<()> {
    let (uplink, table) = (lab.uplink(name), id(name));
    let (address, device, gateway) = (uplink.address4(), uplink.device(), uplink.gateway4());
    // The rule outlives the link; the route is deleted with it.
    let rules = lab.host.run(&["ip", "-4", "rule"])?;
    if !rules.contains(&format!("from {address} lookup {table}")) {
        lab.host.ip(&[&format!("rule add from {address} lookup {table}")])?;
    }
    lab.host.ip(&[&format!("route replace default via {gateway} dev {device} table {table}")])
}

/// Returns the id of the uplink's MPTCP endpoint, which is also the number of its routing table.
fn id(name: UplinkName) -> &'static str {
    match name {
        UplinkName::Wlan => "101",
        UplinkName::Eth => "102",
    }
}

fn unavailable_reason() -> Option<String> {
    match fs::metadata("/proc/sys/net/mptcp/enabled") {
        Ok(_) => None,
        Err(_) => Some("this kernel has no MPTCP".to_owned()),
    }
}
