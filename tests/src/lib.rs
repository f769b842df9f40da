//! The lab: a small internet of network namespaces on one machine, in which end-to-end cases run
//! both programs on the real kernel.
//!
//! ```text
//!            wlan0 ─(emulator)─ visit_a (NAT) ─┐              ┌─ relay
//!   host                                       ├─ internet ───┤
//!            eth0  ─(emulator)─ visit_b (NAT) ─┘              └─ server
//! ```
//!
//! A [`Lab`] consists of
//!
//! - the mobile *host* with two uplinks, each in a *visited network* behind a NAT of its own;
//! - *internet*, a router that drops packets with a source address of another interface;
//! - the *relay*'s machine, and the *server* with the services of [`port`].
//!
//! Every machine is an anonymous network namespace ([`Ns`]). Threads of the test process carry the
//! frames between the host and the visited networks ([`LinkEmulator`]), so that a case can delay,
//! limit, lose, blackhole or cut them. With [`LabOptions::delay`] set to `None` the uplinks are
//! plain veth pairs instead.
//!
//! # A case
//!
//! A [`Testbed`] is a lab in which `home-relay` and `mobile` are installed, started and connected.
//! This case proves that an echo session survives the loss of its uplink:
//!
//! ```no_run
//! use mobile_tests::{Testbed, UplinkName, addr, port};
//!
//! fn an_echo_session_survives_the_loss_of_its_uplink() -> anyhow::Result<()> {
//!     let bed = Testbed::new()?;
//!     let server = format!("{}:{}", addr::SERVER4, port::ECHO);
//!     let mut session = bed.mobile_labtool(&["tcp", &server])?;
//!     assert!(session.next_line()?.starts_with("connected"));
//!     bed.lab.eth().cut()?;
//!     bed.agent.wait_active(UplinkName::Wlan)?;
//!     assert_eq!(session.request("hello")?, "hello");
//!     bed.finish()
//! }
//! ```
//!
//! [`Testbed::finish`] stops both programs, checks that they have removed all kernel objects they
//! made, and fails if their logs have a warning that the case did not declare with
//! [`Testbed::expect_warning`]. A lab that is dropped without it prints the end of every log.
//!
//! # What is removed
//!
//! Dropping the lab kills every process in its cgroup ([`LabCgroup`]), stops the links and
//! services, and removes the pinned eBPF programs, the files that list kernel objects and the lab's
//! directory. The namespaces are anonymous and end with their last process. The same happens when
//! the test process is killed, except for the cgroup, the pins and the directory: the next lab
//! removes those of any process that has ended. One setting of the machine itself may change: a
//! congestion control may be added to `tcp_allowed_congestion_control`.
//!
//! # Where to find what
//!
//! | to do | use |
//! | --- | --- |
//! | change an uplink as a network manager or a user would | [`Uplink`] |
//! | change delay, rate or loss of a link, or blackhole it | [`LinkEmulator`] |
//! | run a program in a namespace | [`Ns::run`], [`Process`], [`LineProcess`], [`Terminal`] |
//! | configure, start, kill or query the programs | [`Agent`], [`Relay`] |
//! | see what passes a device | [`Capture`], [`matrix::EgressWatch`] |
//! | boot systemd and install packages | [`BootedMachine`] |
//! | put many clients or a flood at a relay | [`crowd`] |
//! | compare with other tunnels | [`competitors`] |
//! | play random events under checked flows | [`chaos`] |

pub mod addr;
mod binaries;
mod booted_machine;
pub mod call_timing;
mod captive_portal;
mod capture;
mod cgroup;
pub mod chaos;
pub mod competitors;
pub mod crowd;
pub mod datagrams;
pub mod dns;
mod forge;
pub mod guide;
pub mod http;
mod lab;
mod line_process;
mod link;
pub mod matrix;
mod mount_namespace;
mod ns;
pub mod port;
mod postgres;
mod process;
mod product;
mod pty;
pub mod pulse;
mod relay_name;
pub mod root_programs;
mod services;
mod storm;
mod tap;
mod testbed;
mod tether;
mod topology;
mod uplink;
mod vm;
mod vpn;
mod wait;
mod wireguard;

pub use binaries::{BIN_DIR, program};
pub use booted_machine::BootedMachine;
pub use captive_portal::CaptivePortal;
pub use capture::Capture;
pub use cgroup::LabCgroup;
pub use forge::{Forger, Sniffer, TcpNumbers};
pub use lab::{Lab, LabOptions};
pub use line_process::LineProcess;
pub use link::{Blackhole, Direction, LinkCounters, LinkEmulator};
pub use mount_namespace::in_mount_namespace;
pub use ns::Ns;
pub use postgres::Postgres;
pub use process::{CommandOutput, Process, finish_within};
pub use product::{Agent, METRICS, RELAY_PORT, Relay};
pub use pty::Terminal;
pub use relay_name::{RelayLocation, RelayName};
pub use services::{Services, TcpService, UdpService};
pub use storm::{many_routes, netlink_storm, route_storm};
pub use testbed::Testbed;
pub use tether::Tether;
pub use uplink::{Family, Uplink, UplinkName};
pub use vm::{VM_ENDED, VM_STARTED, run as vm};
pub use vpn::Vpn;
pub use wait::{PATIENCE, until, wait_for};
