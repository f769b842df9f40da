//! `cargo xtask test`: runs all tests, or the named part.

use std::fs;
use std::num::NonZero;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use mobile_tests::BIN_DIR;

use crate::shell::{self, step};
use crate::{build, dist, fuzz, setup, vm};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs only this part: `unit` (all but the end-to-end cases), `fuzz` (each target for 10 s),
    /// `e2e`, `chaos [--seed N] [--events N] [--long] [--tunnel KEY=VALUE]`, `vm [6.1|6.12]
    /// [FILTER]` (some end-to-end cases on other kernels, under qemu), `dist` (the shipped files),
    /// or a package such as `mobile-proto`. Any other word is a filter for unit tests and
    /// end-to-end cases
    part: Option<String>,
    /// Passes these to the test programs: test name filters, or flags after `--`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    filters: Vec<String>,
}

/// Flags of a second chaos run, in which all settings of `[tunnel]` have their other value.
const OTHER_MODES: [&str; 6] =
    ["--tunnel", "queue=fifo", "--tunnel", "offload=off", "--tunnel", "compression=zstd"];

/// Sets up, builds and runs the tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    let part = args.part.as_deref();
    if part == Some("fuzz") {
        // `fuzz/` is not a package of this workspace, and its tests do not need root.
        return fuzz::test();
    }
    let package = part.filter(|part| is_package(part));
    if package.is_none() {
        // Check for root before minutes of building.
        shell::require_root()?;
    }
    setup::run()?;
    if let Some(package) = package {
        let package = if package == "tests" { "mobile-tests" } else { package };
        return shell::run(
            shell::cargo().args(["test", "--locked", "--package", package, "--"]).args(&args.filters),
        );
    }
    match part {
        None => {
            unit(&[])?;
            relay_alone()?;
            fuzz::test()?;
            end_to_end(&[])?;
            vm::run(&[])?;
            chaos(&[])?;
            chaos(&OTHER_MODES.map(str::to_owned))
        }
        Some("unit") => unit(&args.filters),
        Some("e2e") => end_to_end(&args.filters),
        Some("chaos") => chaos(&args.filters),
        Some("vm") => vm::run(&args.filters),
        Some("dist") => dist::verify::run(),
        Some(filter) => {
            let filters: Vec<String> = std::iter::once(filter)
                .chain(args.filters.iter().map(String::as_str))
                .map(str::to_owned)
                .collect();
            unit(&filters)?;
            end_to_end(&filters)
        }
    }
}

/// Returns whether the workspace has a package in a folder of this name.
fn is_package(name: &str) -> bool {
    ["", "crates"].iter().any(|dir| shell::root().join(dir).join(name).join("Cargo.toml").is_file())
}

/// Runs every test that needs no lab: unit tests, the protocol's model tests and doc tests.
fn unit(filters: &[String]) -> Result<()> {
    step("tests of each crate");
    shell::run(
        shell::cargo()
            .args([
                "test",
                "--locked",
                "--workspace",
                "--exclude",
                "mobile-tests",
                "--exclude",
                "mobile-ebpf",
                "--",
            ])
            .args(filters),
    )?;
    shell::run(
        shell::cargo()
            .args(["test", "--locked", "--package", "mobile-tests", "--lib", "--bins", "--"])
            .args(filters),
    )
}

/// Runs the end-to-end cases: real binaries, real kernel, real eBPF programs.
fn end_to_end(filters: &[String]) -> Result<()> {
    let binaries = build::run(false)?;
    let packages = packages(&binaries)?;
    step("end-to-end cases");
    shell::run(
        shell::cargo()
            .args(["test", "--locked", "--package", "mobile-tests", "--test", "e2e", "--"])
            .args(filters)
            .env(BIN_DIR, binaries)
            .env("MOBILE_PACKAGES", packages)
            .env("RUST_TEST_THREADS", test_threads()),
    )
}

/// Builds Debian packages of the programs under test, in this version and in one that upgrades it.
/// Returns the packages' folder.
fn packages(binaries: &Path) -> Result<PathBuf> {
    let out = shell::target_dir()?.join("packages");
    for version in [env!("CARGO_PKG_VERSION"), concat!(env!("CARGO_PKG_VERSION"), "+next")] {
        dist::debian(binaries, "amd64", version, &out)?;
    }
    Ok(out)
}

/// Runs the chaos test: random network events during transfers whose bytes are checked.
///
/// The chaos test runs alone, because its load would disturb other tests.
fn chaos(flags: &[String]) -> Result<()> {
    let binaries = build::run(false)?;
    step("chaos");
    shell::run(
        shell::cargo()
            .args(["test", "--locked", "--quiet", "--package", "mobile-tests", "--test", "chaos", "--"])
            .args(flags)
            .env(BIN_DIR, binaries),
    )
}

/// Returns the number of end-to-end cases to run in parallel: two for each core, unless the user
/// has set RUST_TEST_THREADS.
///
/// The cases mostly wait for links and timers. On 2 cores, more than two cases for each core
/// disturbed each other's measurements.
fn test_threads() -> String {
    std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        (cores * 2).to_string()
    })
}

/// Checks that `cargo install --path home-relay --locked` works without a bpf-linker: the one in
/// PATH fails when called.
///
/// The dev profile is enough, because the check concerns only the graph of packages.
fn relay_alone() -> Result<()> {
    step("home-relay installs without a bpf-linker");
    let root = shell::target_dir()?.join("relay-alone");
    let traps = root.join("traps");
    fs::create_dir_all(&traps).with_context(|| format!("cannot create {}", traps.display()))?;
    let trap = traps.join("bpf-linker");
    fs::write(&trap, "#!/bin/sh\necho 'home-relay must build without bpf-linker' >&2\nexit 1\n")
        .and_then(|()| fs::set_permissions(&trap, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", trap.display()))?;
    let old = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(traps).chain(std::env::split_paths(&old)))
        .context("PATH cannot be extended")?;
    shell::run(
        shell::cargo()
            .args([
                "install",
                "--debug",
                "--path",
                "home-relay",
                "--locked",
                "--force",
                "--no-track",
                "--quiet",
            ])
            .arg("--root")
            .arg(&root)
            .env("PATH", path),
    )?;
    let version = shell::output(Command::new(root.join("bin/home-relay")).arg("--version"))?;
    step(&format!("{version}, installed alone"));
    Ok(())
}
