//! Development tasks: `cargo xtask help` lists them.

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
    /// Installs the tools that building and testing need: bpf-linker and, on Debian as root,
    /// packages
    Setup,
    /// Builds `mobile` (with its eBPF programs), `home-relay` and `libmobile.so`
    Build(build::Args),
    /// Checks formatting, clippy, documentation and, if cargo-deny is installed, dependencies;
    /// warnings are errors
    Lint(lint::Args),
    /// Generates man pages and shell completions of both programs in target/gen, and
    /// docs/use/metrics.md, and docs/messages.txt
    Gen,
    /// Builds installable packages and archives in target/dist
    Dist(dist::Args),
    /// Shows a telnet session that survives the loss of the interface it was started on
    Demo,
    /// Runs all tests or a part of them: `test unit`, `test e2e handover`, `test mobile-proto`
    Test(test::Args),
    /// Runs fuzz targets: `fuzz frame --seconds 600`
    Fuzz(fuzz::Args),
    /// Runs a benchmark in the lab, a network of namespaces on this machine
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build(args) => setup::run().and_then(|()| build::verb(&args)),
        Verb::Lint(args) => setup::linker().and_then(|()| lint::run(&args)),
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
