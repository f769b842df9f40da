//! `cargo xtask lint`: checks of the sources that do not run the programs. Every warning is an
//! error.

mod bounds;
mod imports;
pub(crate) mod messages;
mod packet_path;
mod sizes;
mod sources;
mod words;

use std::process::Command;

use anyhow::Result;

use crate::shell::{self, step};

/// Options of `cargo xtask lint`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the counts of words, wide lines and poor beginnings in comments and documents, and
    /// check nothing else
    #[arg(long)]
    pub(crate) words: bool,

    /// Print which modules of each crate import which, and check nothing else
    #[arg(long, conflicts_with = "words")]
    pub(crate) imports: bool,

    /// Check imports and sizes, and nothing else
    #[arg(long, conflicts_with_all = ["words", "imports"])]
    pub(crate) structure: bool,
}

/// Runs the checks, the quickest first.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.words {
        return words::report();
    }
    if args.imports {
        print!("{}", imports::list()?);
        return Ok(());
    }
    if args.structure {
        imports::check()?;
        return sizes::check();
    }
    step("formatting");
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    step("words");
    words::check()?;
    words::check_messages()?;
    step("imports, sizes and the path of a packet");
    imports::check()?;
    sizes::check()?;
    packet_path::check()?;
    step("clippy");
    shell::run(
        shell::cargo()
            .args(["clippy", "--workspace", "--all-targets", "--locked", "--quiet"])
            .args(["--", "--deny", "warnings"]),
    )?;
    fuzz_targets()?;
    step("documentation");
    shell::run(shell::cargo().env("RUSTDOCFLAGS", "-D warnings").args([
        "doc",
        "--workspace",
        "--no-deps",
        "--locked",
        "--quiet",
        "--document-private-items",
    ]))?;
    dependencies()
}

/// Checks the formatting of the fuzz targets and runs clippy on them: they are a workspace of their
/// own, which the other checks leave out.
fn fuzz_targets() -> Result<()> {
    step("fuzz targets: formatting, clippy");
    let manifest = ["--manifest-path", "fuzz/Cargo.toml"];
    shell::run(shell::cargo().args(["fmt", "--check"]).args(manifest))?;
    shell::run(
        shell::cargo()
            .args(["clippy", "--locked", "--quiet"])
            .args(manifest)
            .arg("--target-dir")
            .arg(shell::target_dir()?.join("fuzz"))
            .args(["--", "--deny", "warnings"])
            .env("RUSTFLAGS", "--cfg fuzzing"),
    )
}

/// Checks the licences, sources and advisories of all dependencies with cargo-deny, if it is
/// installed. `setup` does not install cargo-deny, because building it takes longer than the whole
/// workspace.
fn dependencies() -> Result<()> {
    if shell::find("cargo-deny").is_none() {
        step("dependencies: skipped, cargo-deny is not installed (`cargo install cargo-deny --locked`)");
        return Ok(());
    }
    step("dependencies: licences, bans, sources");
    for manifest in MANIFESTS {
        shell::run(deny(manifest).args(["licenses", "bans", "sources"]))?;
    }
    // The advisory database is fetched from its home; a machine without a way there still lints the
    // rest.
    if shell::output(shell::cargo().args(["deny", "fetch", "db"])).is_err() {
        step("dependencies: advisories skipped, the advisory database cannot be reached");
        return Ok(());
    }
    step("dependencies: advisories");
    for manifest in MANIFESTS {
        shell::run(deny(manifest).arg("advisories"))?;
    }
    Ok(())
}

/// The manifests whose dependencies are checked: the workspace's and the fuzz targets'.
const MANIFESTS: [&str; 2] = ["./Cargo.toml", "./fuzz/Cargo.toml"];

fn deny(manifest: &str) -> Command {
    let mut command = shell::cargo();
    command.args(["deny", "--manifest-path", manifest, "--locked", "check", "--config", "deny.toml"]);
    command
}
