//! The chaos test: `[--seed N] [--events N] [--long]`. See `mobile_tests::chaos`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mobile_tests::chaos::{Kind, Options, run};

/// Every kind of event about twice, those that end a program once: a minute or so.
const SHORT: usize = 2 * Kind::ALL.len();

/// An hour.
const LONG: usize = 3_000;

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { seed: u64::from(rand::random::<u32>()), events: SHORT };
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64> {
            let text = args.next().with_context(|| format!("{arg} wants a number"))?;
            text.parse().with_context(|| format!("{arg} {text}: no number"))
        };
        match arg.as_str() {
            "--seed" => options.seed = number()?,
            "--events" => options.events = usize::try_from(number()?)?,
            "--long" => options.events = LONG,
            other => bail!("unknown {other}; usage: [--seed N] [--events N] [--long]"),
        }
    }
    Ok(options)
}
