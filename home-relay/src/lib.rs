//! The home relay: the home end of the tunnel, on a host that is reachable from the Internet.
//!
//! The relay owns the home virtual device (a TUN device, `home0` by default), gives every
//! authorised client persistent addresses from its pools, and forwards the client's packets between
//! the Internet and the client's session. A session outlives its connections: the agent opens a new
//! path whenever the mobile host changes networks, and both ends resume from the last acknowledged
//! record.
//!
//! # Packet flow
//!
//! - From a client: a path (TLS 1.3 over TCP) delivers records to the session's driver,
//!   `server::client_io` checks each packet with `server::source_filter` (BCP 38, isolation,
//!   reach), and the packet goes to the home virtual device. The kernel forwards and masquerades
//!   it according to the nftables rules of `network::ruleset`.
//! - To a client: `server::demux` reads the home virtual device and puts each packet into the queue
//!   of the client that holds the destination address. The client's session sends the packet on its
//!   active path.
//!
//! # Connection set-up
//!
//! `server::listener` accepts a TCP connection, `server::limiter` decides whether its handshake may
//! begin, TLS authenticates the client by its raw public key, and `server::registry` hands the new
//! path to the client's session. A connection whose TLS handshake asks for enrolment goes to
//! `server::enroll` instead.
//!
//! # Modules
//!
//! - `cli`: the command line; `admin`: the messages with which commands reach a running relay.
//! - `server`: the `serve` command; `server::relay`: the state that admin commands act on.
//! - `network`: the device, addresses, forwarding and nftables rules in the kernel.
//! - `store`: the database of clients, invitations and port forwards; `pool`: address assignment.
//! - `config`: `relay.toml`; `reach`: the destinations that clients may reach.
//! - `check`: the `check` command; `footprint`: the kernel objects that the `cleanup` command
//!   removes.
//! - `status`: the state of the relay, as the `status` command shows it; `backup`: the document of
//!   the `backup` and `restore` commands.
//! - `metrics`: the Prometheus metrics; `confine`: the privileges that a serving relay keeps.
//!
//! The program is [`main`]. The crate is a library so that the fuzz targets can reach its parsers.
#![forbid(unsafe_code)]

mod admin;
mod announced;
mod backup;
mod check;
mod cli;
mod config;
mod confine;
mod footprint;
#[cfg(fuzzing)]
pub mod fuzzing;
mod metrics;
mod network;
mod pool;
mod reach;
mod server;
mod status;
mod store;

use std::process::ExitCode;

use clap::Parser as _;

/// Parses the command line and runs the command.
#[must_use]
pub fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            mobile_host::log::print_fatal(&format!("home-relay: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
