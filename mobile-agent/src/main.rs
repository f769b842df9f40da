//! `mobile`: keeps the connections of chosen processes alive while the host changes networks.
//!
//! - `cli` is the command line, `daemon` starts and stops the agent, and `control` is the socket
//!   between the two.
//! - `selection` gives processes the MOBILE attribute, and `routing` maintains the MOBILE route.
//! - `uplinks` watches the links that can carry the tunnel, and `tunnel` keeps the session on the
//!   best one.
//! - `processes` runs as a second process of the agent, the only one that inspects other processes.
//! - `check` and `explain` read the state of the host without changing it.
//! - `config` is the configuration file, `status` and `metrics` are what the agent reports, and
//!   `footprint` is what `cleanup` reads about an agent that has ended.

mod check;
mod cli;
mod config;
mod control;
mod daemon;
mod explain;
mod footprint;
mod metrics;
mod processes;
mod routing;
mod selection;
mod status;
mod tunnel;
mod uplinks;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
