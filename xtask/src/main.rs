//! Set up, demonstrate, test and measure: `cargo xtask help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod debian;
mod demo;
mod dist;
mod fuzz;
mod r#gen;
mod lint;
mod musl;
mod setup;
mod shell;
mod test;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, demonstrate, test and measure")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Installs what building and testing need: bpf-linker, and on Debian as root the packages.
    Setup,
    /// Builds `mobile` (with its eBPF programs) and `home-relay`.
    Build(build::Args),
    /// Formatting, clippy, documentation, and cargo-deny where it is installed; warnings are errors.
    Lint,
    /// Makes man pages and shell completions of both programs, in target/gen, and docs/metrics.md.
    Gen,
    /// Builds packages for installing, in target/dist.
    Dist(dist::Args),
    /// A telnet session outlives the loss of the interface it was started on.
    Demo,
    /// All tests, or a part of them: `test unit`, `test e2e handover`, `test mobile-proto`.
    Test(test::Args),
    /// Runs fuzz targets: `fuzz frame --seconds 600`.
    Fuzz(fuzz::Args),
    /// Measures, in the lab.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build(args) => setup::run().and_then(|()| build::verb(&args)),
        Verb::Lint => setup::linker().and_then(|()| lint::run()),
        Verb::Gen => r#gen::run(),
        Verb::Dist(args) => setup::run().and_then(|()| dist::run(&args)),
        Verb::Demo => demo::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
