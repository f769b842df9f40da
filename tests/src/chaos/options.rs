//! What a run is asked for on the command line.

use anyhow::{Context, Result, bail, ensure};

use super::script::Kind;

/// Every kind of event about twice, those that end a program once: a minute or so.
const SHORT: usize = 2 * Kind::ALL.len();

/// An hour.
const LONG: usize = 3_000;

/// With fewer events it is over before memory can be compared.
const FEWEST: usize = 10;

/// What is played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// How many events.
    pub events: usize,
    /// Settings of `[tunnel]` at both ends, each a key and a value; without, the defaults.
    pub tunnel: Vec<(String, String)>,
}

impl Options {
    /// Reads `[--seed N] [--events N] [--long] [--tunnel KEY=VALUE]…`; without a seed, `random` is it.
    pub fn parse(mut args: impl Iterator<Item = String>, random: u64) -> Result<Self> {
        let mut options = Self { seed: random, events: SHORT, tunnel: Vec::new() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} wants a value"));
            let number = |text: String| -> Result<u64> {
                text.parse().with_context(|| format!("{arg} {text}: no number"))
            };
            match arg.as_str() {
                "--seed" => options.seed = number(value()?)?,
                "--events" => options.events = usize::try_from(number(value()?)?)?,
                "--long" => options.events = LONG,
                "--tunnel" => {
                    let text = value()?;
                    let (key, value) = text.split_once('=').context("--tunnel wants KEY=VALUE")?;
                    options.tunnel.push((key.to_owned(), value.to_owned()));
                }
                other => {
                    bail!("unknown {other}; usage: [--seed N] [--events N] [--long] [--tunnel KEY=VALUE]…")
                }
            }
        }
        ensure!(options.events >= FEWEST, "{} events are too few: at least {FEWEST}", options.events);
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
    fn flags_say_what_is_played_and_the_rest_is_usual() {
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
    fn what_cannot_be_meant_is_refused() {
        for line in ["--seed", "--seed x", "--events 9", "--sead 7", "7", "--tunnel", "--tunnel fifo"] {
            parse(line).unwrap_err();
        }
    }
}
