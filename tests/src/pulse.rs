//! A number every few milliseconds over TCP, and the time without one: what a handover looks like to an application.
//!
//! All times are of CLOCK_MONOTONIC, in milliseconds: processes of one machine can compare them.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::lab::addr;
use crate::services::port;
use crate::talk::Talk;
use crate::wait::wait_for;

/// Between two numbers.
pub const PULSE: Duration = Duration::from_millis(5);

/// A gap from this on is listed by itself: three numbers are late, which chance alone seldom makes.
const NOTABLE_MS: f64 = 15.0;

/// How long `labtool` may take to answer on a busy machine; it answers even when nothing comes from the network.
const ANSWER: Duration = Duration::from_secs(5);

/// The present time.
#[must_use]
pub fn monotonic_ms() -> f64 {
    // It cannot fail for a clock that every Linux has.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0.0, |now| Duration::from(now).as_secs_f64() * 1e3)
}

/// Which way the numbers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The application sends them, the server echoes them.
    Echo,
    /// The server sends them.
    Down,
}

impl Way {
    /// As `labtool` is told.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Down => "down",
        }
    }

    /// The service of the lab's server that it needs.
    #[must_use]
    pub fn server(self) -> SocketAddr {
        let port = match self {
            Self::Echo => port::ECHO,
            Self::Down => port::NUMBERS,
        };
        SocketAddr::from((addr::SERVER4, port))
    }
}

/// Without a number from the first time to the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gap {
    /// When the last number before it came.
    pub from: f64,
    /// When the first one after it came; or the present, when none has come yet.
    pub to: f64,
}

impl Gap {
    /// How long.
    #[must_use]
    pub fn length(self) -> f64 {
        self.to - self.from
    }
}

/// When each number came. Eight bytes for each, at most for the minutes that a measurement takes.
#[derive(Debug)]
pub struct Recorder {
    arrivals: Vec<f64>,
    error: Option<String>,
}

impl Recorder {
    /// Of a connection made at `now`.
    #[must_use]
    pub fn new(now: f64) -> Self {
        Self { arrivals: vec![now], error: None }
    }

    /// The next number came.
    pub fn note(&mut self, at: f64) {
        self.arrivals.push(at);
    }

    /// The connection broke, and no more numbers will come.
    pub fn fail(&mut self, error: String) {
        self.error = Some(error);
    }

    /// What is known at `now` of the time from `since` on.
    #[must_use]
    pub fn heard(&self, since: f64, now: f64) -> Heard {
        let ends = self.arrivals.iter().copied().skip(1).chain([now]);
        let gaps = self.arrivals.iter().copied().zip(ends).map(|(from, to)| Gap { from, to });
        let gaps: Vec<Gap> = gaps.filter(|gap| gap.to > since).collect();
        let longest = |from: f64| gaps.iter().map(|gap| gap.to - gap.from.max(from)).fold(0.0, f64::max);
        Heard {
            now,
            last: self.arrivals.last().copied().unwrap_or(now),
            numbers: self.arrivals.len() as u64 - 1,
            longest: longest(f64::MIN),
            longest_within: longest(since),
            gaps: gaps.iter().copied().filter(|gap| gap.length() >= NOTABLE_MS).collect(),
            error: self.error.clone(),
        }
    }
}

/// The answer to: what came since then?
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// When this was asked.
    pub now: f64,
    /// When the last number came.
    pub last: f64,
    /// How many came since the connection was made.
    pub numbers: u64,
    /// The longest time between two numbers of which the second came after the time asked about, or has not come yet.
    pub longest: f64,
    /// The same without what lies before the time asked about.
    pub longest_within: f64,
    /// The gaps that chance alone seldom makes, the present silence included.
    pub gaps: Vec<Gap>,
    /// Why nothing will come any more.
    pub error: Option<String>,
}

impl Heard {
    /// How long nothing has come.
    #[must_use]
    pub fn silence(&self) -> f64 {
        self.now - self.last
    }

    /// As one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let gaps: Vec<[f64; 2]> = self.gaps.iter().map(|gap| [gap.from, gap.to]).collect();
        json!({
            "now": self.now, "last": self.last, "numbers": self.numbers, "longest": self.longest,
            "longest_within": self.longest_within, "gaps": gaps, "error": self.error,
        })
    }

    /// From that line.
    pub fn from_json(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line).with_context(|| format!("labtool said {line:?}"))?;
        let field = |name: &str| value[name].as_f64().with_context(|| format!("{name} is missing in {line}"));
        let gaps = value["gaps"].as_array().with_context(|| format!("no gaps in {line}"))?;
        let gaps = gaps.iter().map(|gap| {
            let (from, to) = gap[0].as_f64().zip(gap[1].as_f64()).context("a gap without ends")?;
            Ok(Gap { from, to })
        });
        Ok(Self {
            now: field("now")?,
            last: field("last")?,
            numbers: value["numbers"].as_u64().context("no count of numbers")?,
            longest: field("longest")?,
            longest_within: field("longest_within")?,
            gaps: gaps.collect::<Result<_>>()?,
            error: value["error"].as_str().map(str::to_owned),
        })
    }
}

/// A running `labtool pulse`.
pub struct Pulse {
    talk: Talk,
}

impl Pulse {
    /// Starts `command`, which is `labtool pulse …`, and waits until `numbers` have come.
    pub fn start(command: &mut Command, numbers: u64) -> Result<Self> {
        let mut pulse = Self { talk: Talk::start(command)? };
        let first = pulse.talk.hear()?;
        if first != "connected" {
            bail!("labtool pulse: {first}");
        }
        wait_for("the first numbers", crate::wait::PATIENCE, || {
            let heard = pulse.since(0.0)?;
            if let Some(error) = heard.error {
                return Ok(Some(Err(anyhow::anyhow!("{error}"))));
            }
            Ok((heard.numbers >= numbers).then_some(Ok(())))
        })??;
        Ok(pulse)
    }

    /// What came since `since`.
    pub fn since(&mut self, since: f64) -> Result<Heard> {
        self.talk.say(&since.to_string())?;
        Heard::from_json(&self.talk.hear_within(ANSWER)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(arrivals: &[f64]) -> Recorder {
        let mut recorder = Recorder::new(arrivals[0]);
        arrivals[1..].iter().for_each(|at| recorder.note(*at));
        recorder
    }

    #[test]
    fn the_gap_around_an_event_counts_whole_and_one_before_it_not_at_all() {
        let heard = recorder(&[0.0, 100.0, 105.0, 130.0, 135.0]).heard(110.0, 138.0);
        assert_eq!(heard.gaps, [Gap { from: 105.0, to: 130.0 }]);
        assert_eq!((heard.longest, heard.longest_within), (25.0, 20.0));
        assert_eq!((heard.numbers, heard.silence()), (4, 3.0));
    }

    #[test]
    fn a_second_gap_after_the_return_counts_when_it_is_the_longer_one() {
        // Cut at 10, back at 5000: one old number at once, then the sender's own timer.
        let heard = recorder(&[5.0, 10.0, 5030.0, 5400.0, 5405.0]).heard(5000.0, 5410.0);
        assert_eq!(heard.longest_within, 370.0);
        assert_eq!(heard.longest, 5020.0);
    }

    #[test]
    fn silence_is_a_gap_that_has_not_ended() {
        let heard = recorder(&[0.0, 5.0]).heard(6.0, 1005.0);
        assert_eq!(heard.gaps, [Gap { from: 5.0, to: 1005.0 }]);
        assert_eq!((heard.longest, heard.longest_within), (1000.0, 999.0));
    }

    #[test]
    fn what_labtool_prints_is_what_is_read() {
        let mut recorder = recorder(&[0.5, 30.25]);
        let heard = recorder.heard(0.0, 32.0);
        assert_eq!(Heard::from_json(&heard.to_json().to_string()).unwrap(), heard);
        recorder.fail("connection reset".into());
        let heard = recorder.heard(0.0, 32.0);
        assert_eq!(
            Heard::from_json(&heard.to_json().to_string()).unwrap().error,
            Some("connection reset".into())
        );
        assert!(Heard::from_json("! connect: refused").is_err());
    }
}
