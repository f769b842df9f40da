//! The client's end of one TCP flow of the chaos test, run as a mobile process; see
//! `mobile_tests::chaos`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match mobile_tests::chaos::client(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("! {error:#}");
            ExitCode::FAILURE
        }
    }
}
