//! Other ways to keep a connection across a switch, set up as their manuals say, to be measured beside ours.
//!
//! A tunnel of theirs ends where ours does, at the lab's relay, which masquerades for it; MPTCP needs no relay, but a
//! server that speaks it. Each gets the hook that a NetworkManager dispatcher would run when an uplink comes or goes,
//! without the time NetworkManager takes for that.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::binaries::program;
use crate::lab::{Lab, addr};
use crate::process::Process;
use crate::pulse::{Pulse, Way};
use crate::services::port;
use crate::talk::Talk;
use crate::uplink::UplinkName;
use crate::wait::{PATIENCE, wait_for};

mod direct;
mod mptcp;
mod openvpn;
mod tinc;
mod vtun;
mod wireguard;

/// What a network manager tells its dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// This uplink has its address and its default route.
    Up(UplinkName),
    /// This uplink is gone.
    Down(UplinkName),
}

/// One of them in one lab.
pub trait Peer {
    /// Starts it on the uplinks that are up, and waits until the server is reached through it.
    fn start(&mut self, lab: &Lab) -> Result<()>;

    /// What the dispatcher runs.
    fn hook(&mut self, _lab: &Lab, _change: Change) -> Result<()> {
        Ok(())
    }

    /// Its process at the relay and its process at the host, if it is a tunnel that runs; each may have children.
    fn processes(&self) -> Option<[i32; 2]> {
        None
    }

    /// An application that measures, connected.
    fn pulse(&self, lab: &Lab, way: Way, numbers: u64) -> Result<Pulse> {
        Pulse::start(&mut pulse_command(lab, way)?, numbers)
    }
}

/// What there is to know of one before it is started.
pub struct PeerKind {
    /// As tables name it.
    pub name: &'static str,
    /// Its packets go over TCP, as ours do.
    pub over_tcp: bool,
    /// The programs it needs, each with the Debian package that has it.
    pub tools: &'static [(&'static str, &'static str)],
    make: fn() -> Box<dyn Peer>,
    refusal: fn() -> Option<String>,
}

impl PeerKind {
    /// All, and a plain connection without any help first.
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

    /// A connection with nobody's help.
    pub const DIRECT: &'static Self = &direct::KIND;

    /// Those through which all bytes go, as through ours.
    pub const TUNNELS: &'static [Self] =
        &[openvpn::UDP, openvpn::TCP, wireguard::KIND, vtun::KIND, tinc::UDP, tinc::TCP];

    /// A new one.
    #[must_use]
    pub fn make(&self) -> Box<dyn Peer> {
        (self.make)()
    }

    /// Why it cannot run on this machine, if it cannot.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        (self.refusal)()
    }
}

/// Nothing but its programs is needed.
fn willing() -> Option<String> {
    None
}

/// A tunnel in user space needs the TUN driver.
fn needs_tun() -> Option<String> {
    (!Path::new("/dev/net/tun").exists()).then(|| "this kernel has no /dev/net/tun".to_owned())
}

fn pulse_command(lab: &Lab, way: Way) -> Result<Command> {
    let mut command = lab.host.command(program("labtool")?);
    command.args(["pulse", way.word(), "tcp", &way.server().to_string()]);
    Ok(command)
}

/// The pids of a tunnel's first two processes.
fn pids(running: &[Process]) -> Option<[i32; 2]> {
    let [relay, host] = running else { return None };
    Some([relay.pid(), host.pid()])
}

/// The inner addresses of every tunnel: the relay's and the host's.
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

/// A device name that no lab running at the same time uses: wireguard-go and vtun make sockets and locks of that name
/// outside the namespaces. The lab's name ends in a process id and a number.
fn device(lab: &Lab, prefix: &str) -> String {
    let rest = lab.name().trim_start_matches(|letter: char| !letter.is_ascii_digit());
    format!("{prefix}{}", rest.replace('-', "n"))
}

/// Makes the relay's machine forward for the tunnel, as home-relay does for ours.
fn make_gateway(lab: &Lab) -> Result<()> {
    lab.relay.sysctl("net/ipv4/ip_forward", "1")?;
    lab.relay.feed(
        &["nft", "-f", "-"],
        &format!(
            "table ip peer {{\n chain postrouting {{\n  type nat hook postrouting priority srcnat\n  \
             ip saddr {} oifname wan0 masquerade\n }}\n}}\n",
            INNER[1]
        ),
    )
}

/// Sends what is for the server through the tunnel's device, once it is there, and waits until the server sees the
/// relay instead of a NAT.
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

/// The address under which the server sees the host.
fn seen_address(lab: &Lab) -> Result<IpAddr> {
    let mut command = lab.host.command(program("labtool")?);
    let mut talk = Talk::start(command.args(["tcp", &format!("{}:{}", addr::SERVER4, port::WHOAMI)]))?;
    let connected = talk.hear()?;
    ensure!(connected.starts_with("connected"), "{connected}");
    let answer = talk.ask("who am I?")?;
    let Some((address, _port)) = answer.rsplit_once(':') else { bail!("whoami said {answer:?}") };
    Ok(address.parse()?)
}
