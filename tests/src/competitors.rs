//! Other means to keep a connection across a handover, set up as their manuals say, for comparison
//! in benchmarks.
//!
//! Competing tunnels end at the lab's relay machine, which masquerades for them. MPTCP needs no
//! relay but a server that supports it. Each competitor gets the hook that a NetworkManager
//! dispatcher would run when an uplink comes or goes, without the time that NetworkManager takes.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::addr;
use crate::binaries::program;
use crate::lab::Lab;
use crate::line_process::LineProcess;
use crate::port;
use crate::process::Process;
use crate::pulse::{Pulse, PulseMode};
use crate::topology;
use crate::uplink::UplinkName;
use crate::wait::{PATIENCE, wait_for};

mod direct;
mod mptcp;
mod openvpn;
mod tinc;
mod vtun;
mod wireguard;

/// A change of an uplink that a network manager reports to its dispatcher scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The uplink has its address and its default route.
    Up(UplinkName),
    /// The uplink was taken down.
    Down(UplinkName),
}

/// A means to keep connections across a handover that is compared with `mobile`, in one lab.
pub trait Competitor {
    /// Starts the competitor on the uplinks that are up, and waits until the server can be reached
    /// through it.
    fn start(&mut self, lab: &Lab) -> Result<()>;

    /// Reacts to a change of an uplink as the competitor's dispatcher script would.
    fn hook(&mut self, _lab: &Lab, _change: Change) -> Result<()> {
        Ok(())
    }

    /// Returns the ids of the tunnel's processes, at the relay and at the host, or `None` for a
    /// competitor without a tunnel. Both processes may have children.
    fn processes(&self) -> Option<[i32; 2]> {
        None
    }

    /// Starts an application whose connection the competitor carries and that measures the gaps in
    /// it. Returns once `numbers` numbers have arrived.
    fn pulse(&self, lab: &Lab, mode: PulseMode, numbers: u64) -> Result<Pulse> {
        Pulse::start(&mut pulse_command(lab, mode)?, numbers)
    }
}

/// The static properties of a competitor.
pub struct CompetitorKind {
    /// The competitor's name in tables.
    pub name: &'static str,
    /// Whether the competitor carries packets over TCP.
    pub over_tcp: bool,
    /// The required programs, each with the Debian package that has it.
    pub tools: &'static [(&'static str, &'static str)],
    make: fn() -> Box<dyn Competitor>,
    unavailable_reason: fn() -> Option<String>,
}

impl CompetitorKind {
    /// Every competitor, beginning with a plain connection.
    pub const ALL: &'static [Self] = &[
        direct::KIND,
        mptcp::KIND,
        openvpn::UDP,
        openvpn::TCP,
        wireguard::KIND,
        vtun::KIND,
        tinc::UDP,
        tinc::TCP,
    ];

    /// A plain connection, which nothing keeps alive across a handover.
    pub const DIRECT: &'static Self = &direct::KIND;

    /// The competitors that tunnel all packets of the host.
    pub const TUNNELS: &'static [Self] =
        &[openvpn::UDP, openvpn::TCP, wireguard::KIND, vtun::KIND, tinc::UDP, tinc::TCP];

    /// Creates a competitor that is not started yet.
    #[must_use]
    pub fn make(&self) -> Box<dyn Competitor> {
        (self.make)()
    }

    /// Returns why the competitor cannot run on this machine, or `None` if it can.
    #[must_use]
    pub fn unavailable_reason(&self) -> Option<String> {
        (self.unavailable_reason)()
    }
}

/// Returns `None`, for competitors that need nothing but their required programs.
fn no_requirements() -> Option<String> {
    None
}

/// Returns the reason if tunnels in user space cannot run here because the kernel has no TUN
/// driver, else `None`.
fn needs_tun() -> Option<String> {
    (!Path::new("/dev/net/tun").exists()).then(|| "this kernel has no /dev/net/tun".to_owned())
}

fn pulse_command(lab: &Lab, mode: PulseMode) -> Result<Command> {
    let mut command = lab.host.command(program("labtool")?);
    command.args(["pulse", mode.name(), "tcp", &mode.server().to_string()]);
    Ok(command)
}

/// Returns the ids of a tunnel's two processes, at the relay and at the host, or `None` if they do
/// not run.
fn pids(running: &[Process]) -> Option<[i32; 2]> {
    let [relay, host] = running else { return None };
    Some([relay.pid(), host.pid()])
}

/// The addresses inside every tunnel: the relay's and the host's.
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

/// Makes the relay's machine forward and masquerade the tunnel's packets, as home-relay does for
/// its own.
fn make_gateway(lab: &Lab) -> Result<()> {
    topology::masquerade(&lab.relay, "peer", INNER[1])
}

/// Waits until the tunnel's device has its address, adds the route to the server over the device,
/// and waits until the server sees the relay's address as the source.
fn use_tunnel(lab: &Lab, device: &str) -> Result<()> {
    wait_for(&format!("{device} with its address"), PATIENCE, || {
        let addresses = lab.host.run(&["ip", "-o", "-4", "address", "show", "dev", device, "up"])?;
        Ok(addresses.contains(&INNER[1].to_string()).then_some(()))
    })?;
    lab.host.ip(&[&format!("route replace {}/32 dev {device}", addr::SERVER4)])?;
    wait_for(&format!("the server to see the relay through {device}"), PATIENCE, || {
        let seen = seen_address(lab)?;
        ensure!(seen == IpAddr::V4(addr::RELAY4), "the server sees {seen}");
        Ok(Some(()))
    })
}

/// Connects to the server as an ordinary process and returns the source address that the server
/// sees.
fn seen_address(lab: &Lab) -> Result<IpAddr> {
    let mut command = lab.host.command(program("labtool")?);
    let mut talk = LineProcess::start(command.args(["tcp", &format!("{}:{}", addr::SERVER4, port::WHOAMI)]))?;
    let connected = talk.next_line()?;
    ensure!(connected.starts_with("connected"), "{connected}");
    let answer = talk.request("who am I?")?;
    let Some((address, _port)) = answer.rsplit_once(':') else { bail!("whoami answered {answer:?}") };
    Ok(address.parse()?)
}
