//! `cargo xtask test`: all tests, or the part named.

use std::fs;
use std::num::NonZero;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use mobile_tests::BIN_DIR;

use crate::shell::{self, step};
use crate::{build, dist, fuzz, setup, vm};

/// Which tests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `unit` (all but the end-to-end cases), `fuzz` (each target for some seconds), `e2e`, `chaos [--seed N] [--events N] [--long] [--tunnel KEY=VALUE]`,
    /// `vm [6.1|6.12] [FILTER]` (some of those cases on other kernels, under qemu), `dist` (what is shipped), or a package such as `mobile-proto`;
    /// otherwise a filter.
    part: Option<String>,
    /// Given to the test programs: names to choose by, or their flags after `--`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    filters: Vec<String>,
}

/// Once more with what `[tunnel]` can turn on and off the other way round.
const OTHER_MODES: [&str; 6] =
    ["--tunnel", "queue=fifo", "--tunnel", "offload=off", "--tunnel", "compression=zstd"];

/// Sets up, builds and tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    let part = args.part.as_deref();
    if part == Some("fuzz") {
        // The folder of that name is no package of this workspace, and nothing there needs root.
        return fuzz::test();
    }
    let package = part.filter(|part| shell::root().join(part).join("Cargo.toml").is_file());
    if package.is_none() {
        // Now, rather than after minutes of building.
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

/// Every test that needs no lab: unit tests, the protocol's model tests, the documentation's examples.
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
        shell::cargo().args(["test", "--locked", "--package", "mobile-tests", "--lib", "--"]).args(filters),
    )
}

/// The end-to-end cases: real binaries, real kernel, real eBPF programs.
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

/// Debian packages of the binaries under test, in this version and in one that upgrades it; the folder they are in.
fn packages(binaries: &Path) -> Result<PathBuf> {
    let out = shell::target_dir()?.join("packages");
    for version in [env!("CARGO_PKG_VERSION"), concat!(env!("CARGO_PKG_VERSION"), "+next")] {
        dist::debian(binaries, "amd64", version, &out)?;
    }
    Ok(out)
}

/// Everything that happens to a laptop, at random, under flows whose bytes are checked. By itself: it measures nothing,
/// but it is a load for others.
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

/// The cases mostly wait for links and timers, so more of them than cores may run at once; too many, and their own
/// load shows in what they measure. Two for each core is where that began on 2 cores. The user's own choice stands.
fn test_threads() -> String {
    std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        (cores * 2).to_string()
    })
}

/// `cargo install --path home-relay --locked` works on a machine that has no bpf-linker: here it runs with one that
/// fails loudly when it is called. The dev profile, since what is tested is the graph of packages.
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
