//! mobile: keeps the connections of chosen processes alive while the links change.
//!
//! `cli` is what a person types, `daemon` starts and stops the agent, and between them lies `control`, the socket.
//! `processes` runs as a second process of the agent, the only one that looks into others.
//! The agent's work is in `selection` (the MOBILE attribute), `routing` (the MOBILE route), `uplinks` (what can carry
//! the tunnel) and `tunnel` (what does). `check` and `explain` only look.

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
