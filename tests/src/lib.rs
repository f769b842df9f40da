//! The lab: a mobile host with two uplinks behind two different NATs, an internet, a relay and a
//! server, each in a network namespace of its own on this machine.
//!
//! Nothing in the lab has a name outside it: the namespaces are anonymous, the links between the host
//! and its visited networks are carried by threads of this process ([`LinkEmulator`], unless
//! [`LabOptions`] asks for plain wires), and every program runs in one cgroup. Dropping the [`Lab`] ends
//! it all, and so does killing the process.
//!
//! ```text
//!            wlan0 ─(emulator)─ visit_a (NAT) ─┐              ┌─ relay
//!   host                                       ├─ internet ───┤
//!            eth0  ─(emulator)─ visit_b (NAT) ─┘              └─ server
//! ```

mod binaries;
mod capture;
pub mod chaos;
pub mod crowd;
pub mod datagrams;
pub mod dns;
mod forge;
mod group;
pub mod guide;
pub mod http;
mod lab;
mod link;
mod machine;
pub mod matrix;
mod ns;
pub mod paces;
pub mod peers;
mod portal;
mod postgres;
mod process;
mod product;
mod pty;
pub mod pulse;
mod relay_name;
pub mod root_programs;
mod services;
mod storm;
mod talk;
mod tap;
mod testbed;
mod tether;
mod topology;
mod uplink;
mod vm;
mod vpn;
mod wait;

pub use binaries::{BIN_DIR, program};
pub use capture::Capture;
pub use forge::{Forger, Numbers, Sniffer};
pub use group::ProcessGroup;
pub use lab::{Lab, LabOptions, addr};
pub use link::{Blackhole, Direction, LinkCounters, LinkEmulator};
pub use machine::Machine;
pub use ns::Ns;
pub use portal::Portal;
pub use postgres::Postgres;
pub use process::{Finished, Process, finish_within};
pub use product::{Agent, METRICS, RELAY_PORT, Relay};
pub use pty::Terminal;
pub use relay_name::{RelayName, RelayPlace};
pub use services::{Services, TcpService, UdpService, port};
pub use storm::{many_routes, netlink_storm, route_storm};
pub use talk::Talk;
pub use testbed::Testbed;
pub use tether::Tether;
pub use uplink::{Family, Uplink, UplinkName};
pub use vm::{VM_ENDED, VM_STARTED, run as vm};
pub use vpn::Vpn;
pub use wait::{PATIENCE, until, wait_for};
