//! `mobile`: keeps the connections of chosen processes alive while the host changes networks.
//!
//! - `cli` is the command line, `daemon` starts and stops the agent, and `control` is the socket
//!   between the two.
//! - `agent` answers the requests of `control` and `metrics`.
//! - `selection` gives processes the MOBILE attribute, and `routing` maintains the MOBILE route.
//! - `uplinks` watches the links that can carry the tunnel, and `tunnel` keeps the session on the
//!   best one.
//! - `processes` runs as a second process of the agent, the only one that inspects other processes.
//! - `check` and `explain` read the state of the host without changing it.
//! - `config` is the configuration file, `status` is what the agent reports, `protocol` defines the
//!   requests and replies of the control socket, and `declared_metrics` names the metrics.
//! - `claims` keeps agents on one machine from using the same kernel objects and paths.
//! - `publish` passes state on between tasks.
//! - `cleanup` removes the kernel objects of an agent, and `footprint` names those of an agent that
//!   has ended.
//!
//! A module imports only from those before it: config, status, protocol, `declared_metrics`,
//! publish <- selection, uplinks <- processes, routing <- tunnel <- footprint <- claims <- agent,
//! check, cleanup, explain <- control, metrics <- daemon <- cli.

mod agent;
mod check;
mod claims;
mod cleanup;
mod cli;
mod config;
mod control;
mod daemon;
mod declared_metrics;
mod explain;
mod footprint;
mod metrics;
mod processes;
mod protocol;
mod publish;
mod routing;
mod selection;
mod status;
mod tunnel;
mod uplinks;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
