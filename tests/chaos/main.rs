//! The chaos test: `[--seed N] [--events N] [--long] [--tunnel KEY=VALUE]…`; see
//! `mobile_tests::chaos`.

use std::process::ExitCode;

use mobile_tests::chaos::{Options, run};

fn main() -> ExitCode {
    // 32 bits keep the seed short enough to type.
    let random = u64::from(rand::random::<u32>());
    match Options::parse(std::env::args().skip(1), random).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}
