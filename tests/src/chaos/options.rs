//! The command line of the chaos test.

use anyhow::{Context, Result, bail, ensure};

use super::script::EventKind;

/// The number of events in a short run of about a minute, enough for every kind to occur twice, or
/// once if it ends a program.
const SHORT: usize = 2 * EventKind::ALL.len();

/// The number of events in a long run of about an hour.
const LONG: usize = 3_000;

/// The least number of events, below which a run ends before the use of memory can be compared.
const FEWEST: usize = 10;

/// The options of one run of the chaos test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The seed of the random script.
    pub seed: u64,
    /// The number of events.
    pub events: usize,
    /// Settings of `[tunnel]` for both programs, as pairs of key and value; empty means the
    /// defaults.
    pub tunnel: Vec<(String, String)>,
}

impl Options {
    /// Parses `[--seed N] [--events N] [--long] [--tunnel KEY=VALUE]…`; without `--seed`, the seed
    /// is `random`.
    pub fn parse(mut args: impl Iterator<Item = String>, random: u64) -> Result<Self> {
        let mut options = Self { seed: random, events: SHORT, tunnel: Vec::new() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            let number = |text: String| -> Result<u64> {
                text.parse().with_context(|| format!("{arg} {text}: not a number"))
            };
            match arg.as_str() {
                "--seed" => options.seed = number(value()?)?,
                "--events" => options.events = usize::try_from(number(value()?)?)?,
                "--long" => options.events = LONG,
                "--tunnel" => {
                    let text = value()?;
                    let (key, value) = text.split_once('=').context("--tunnel needs KEY=VALUE")?;
                    options.tunnel.push((key.to_owned(), value.to_owned()));
                }
                other => {
                    bail!(
                        "unknown argument {other}; usage: [--seed N] [--events N] [--long] [--tunnel KEY=VALUE]…"
                    )
                }
            }
        }
        ensure!(options.events >= FEWEST, "{} events are too few: use at least {FEWEST}", options.events);
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(line.split_whitespace().map(str::to_owned), 42)
    }

    #[test]
    fn flags_override_the_defaults() {
        let usual = Options { seed: 42, events: SHORT, tunnel: Vec::new() };
        assert_eq!(parse("").unwrap(), usual);
        assert_eq!(parse("--long").unwrap(), Options { events: LONG, ..usual.clone() });
        assert_eq!(
            parse("--seed 7 --events 400").unwrap(),
            Options { seed: 7, events: 400, ..usual.clone() }
        );
        let tunnel = vec![("queue".to_owned(), "fifo".to_owned()), ("offload".to_owned(), "off".to_owned())];
        assert_eq!(parse("--tunnel queue=fifo --tunnel offload=off").unwrap(), Options { tunnel, ..usual });
    }

    #[test]
    fn invalid_arguments_are_refused() {
        for line in ["--seed", "--seed x", "--events 9", "--sead 7", "7", "--tunnel", "--tunnel fifo"] {
            parse(line).unwrap_err();
        }
    }
}
