//! `cargo xtask fuzz`: runs libFuzzer on the targets in `fuzz/`, with AddressSanitizer.
//!
//! The pinned stable compiler has coverage and sanitizers behind `RUSTC_BOOTSTRAP`, so cargo alone
//! builds the targets, without another toolchain or tool. `fuzz/` has the layout of cargo-fuzz,
//! which also works.

mod corpus;
mod target;

use std::collections::VecDeque;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Tool};
use crate::shell::{self, step};
use target::Target;

/// The programs that fuzzing needs: a C++ compiler, because libFuzzer is written in C++.
const TOOLS: &[Tool] = &[Tool { program: "c++", package: "g++" }];

/// The seconds for which `cargo xtask test` fuzzes each target: enough to run the whole corpus and
/// somewhat beyond.
const TEST_SECONDS: u64 = 10;

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fuzzes only this target, a file of fuzz/fuzz_targets without its extension. By default all
    /// targets run one after another
    target: Option<String>,
    /// Fuzzes each target for this many seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Runs only this input, such as a file that a crash left, and prints the outcome
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "seconds")]
    input: Option<PathBuf>,
    /// Rewrites the committed corpus with the inputs that add coverage, chosen from the encoders'
    /// messages, the corpus and all inputs found on this machine
    #[arg(long, conflicts_with_all = ["seconds", "input"])]
    minimise: bool,
}

/// Builds the fuzz targets and fuzzes them, runs one input, or minimises the corpus.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::install(TOOLS)?;
    let targets = build(args.target.as_deref())?;
    for target in &targets {
        if let Some(input) = &args.input {
            target.reproduce(input)?;
        } else if args.minimise {
            corpus::minimise(target)?;
        } else {
            step(&format!("fuzzing {} for {} s", target.name, args.seconds));
            let found = target.work_dir("found")?;
            println!("{}", target.fuzz(&found, args.seconds)?);
        }
    }
    Ok(())
}

/// Fuzzes every target for [`TEST_SECONDS`] from the committed corpus alone, in parallel on all
/// cores.
pub(crate) fn test() -> Result<()> {
    setup::install(TOOLS)?;
    let targets = build(None)?;
    step(&format!("fuzzing {} targets for {TEST_SECONDS} s each", targets.len()));
    let (total, queue) = (targets.len(), Mutex::new(VecDeque::from(targets)));
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some(target) = next(&queue) {
                    match target.fresh_dir("test").and_then(|found| target.fuzz(&found, TEST_SECONDS)) {
                        Ok(outcome) => println!("{outcome}"),
                        Err(error) => {
                            eprintln!("{error:#}");
                            failed.lock().unwrap_or_else(PoisonError::into_inner).push(target.name);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("{} of {total} fuzz targets failed: {}", failed.len(), failed.join(", "));
    }
    Ok(())
}

fn next(queue: &Mutex<VecDeque<Target>>) -> Option<Target> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// Builds the fuzz target with the name `only`, or all targets if it is `None`.
fn build(only: Option<&str>) -> Result<Vec<Target>> {
    let all = target::names()?;
    let names: Vec<String> = match only {
        None => all,
        Some(name) if all.iter().any(|known| known == name) => vec![name.to_owned()],
        Some(name) => bail!("there is no fuzz target {name}; the targets are {}", all.join(", ")),
    };
    step("building the fuzz targets");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = shell::target_dir()?.join("fuzz");
    let mut cargo = shell::cargo();
    cargo.args(["build", "--release", "--locked", "--quiet", "--manifest-path", "fuzz/Cargo.toml"]);
    // Naming the target, even though it is the host, keeps coverage out of build scripts and
    // macros.
    cargo.args(["--target", &triple, "--target-dir"]).arg(&folder);
    cargo.args(names.iter().flat_map(|name| ["--bin", name]));
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", RUSTFLAGS);
    shell::run(&mut cargo).context("cannot build the fuzz targets")?;
    let binaries = folder.join(triple).join("release");
    Ok(names.into_iter().map(|name| Target { binary: binaries.join(&name), name }).collect())
}

/// The compiler flags that cargo-fuzz sets.
const RUSTFLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
