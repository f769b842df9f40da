//! The `home-relay` program; the library has the implementation.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    home_relay::main()
}
