//! home-relay: the home virtual device, on a router reachable from the Internet. Its program is [`main`]; a library, so
//! that the fuzz targets reach its parsers.
#![forbid(unsafe_code)]

mod admin;
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
mod store;

use std::process::ExitCode;

use clap::Parser as _;

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            mobile_io::log::print_fatal(&format!("home-relay: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
