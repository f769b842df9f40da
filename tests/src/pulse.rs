//! Measures the gaps that a handover causes in a TCP connection: one end sends a number every few
//! milliseconds, and the application records when each arrives.
//!
//! All times are of CLOCK_MONOTONIC in milliseconds, so that processes of one machine can compare
//! them.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::addr;
use crate::line_process::LineProcess;
use crate::port;
use crate::wait::wait_for;

/// The interval at which numbers are sent over the measured connection.
pub const PULSE: Duration = Duration::from_millis(5);

/// The shortest gap, in milliseconds, that a report lists. With one number every 5 ms, three
/// numbers in a row are late, which rarely happens by chance.
const NOTABLE_MS: f64 = 15.0;

/// The time within which `labtool` must print a report, which it does even if nothing arrives from
/// the network.
const ANSWER: Duration = Duration::from_secs(5);

/// Returns the current time of CLOCK_MONOTONIC in milliseconds.
#[must_use]
pub fn monotonic_ms() -> f64 {
    // The call cannot fail for a clock that every Linux has.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0.0, |now| Duration::from(now).as_secs_f64() * 1e3)
}

/// The direction in which the numbers of a measurement travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PulseMode {
    /// The application sends the numbers and the server echoes them.
    Echo,
    /// The server sends the numbers.
    Down,
}

impl PulseMode {
    /// Returns the word for this mode in the arguments of `labtool pulse`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Down => "down",
        }
    }

    /// Returns the address of the server's service for this mode.
    #[must_use]
    pub fn server(self) -> SocketAddr {
        let port = match self {
            Self::Echo => port::ECHO,
            Self::Down => port::NUMBERS,
        };
        SocketAddr::from((addr::SERVER4, port))
    }
}

/// A time in which no number arrived over the measured connection; both ends in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gap {
    /// The time at which the last number before the gap arrived.
    pub from: f64,
    /// The time at which the first number after the gap arrived, or the current time if none has
    /// arrived yet.
    pub to: f64,
}

impl Gap {
    /// Returns the length of the gap in milliseconds.
    #[must_use]
    pub fn length(self) -> f64 {
        self.to - self.from
    }
}

/// The times at which the numbers arrived: eight bytes each, for measurements of a few minutes.
#[derive(Debug)]
pub struct Recorder {
    arrivals: Vec<f64>,
    error: Option<String>,
}

impl Recorder {
    /// Creates a recorder for a connection that was established at the time `now`.
    #[must_use]
    pub fn new(now: f64) -> Self {
        Self { arrivals: vec![now], error: None }
    }

    /// Records that the next number arrived at the time `at`.
    pub fn note(&mut self, at: f64) {
        self.arrivals.push(at);
    }

    /// Records the error with which the connection has failed; no further numbers can arrive.
    pub fn fail(&mut self, error: String) {
        self.error = Some(error);
    }

    /// Returns a report, made at the time `now`, on the gaps that ended after the time `since`.
    #[must_use]
    pub fn report(&self, since: f64, now: f64) -> PulseReport {
        let ends = self.arrivals.iter().copied().skip(1).chain([now]);
        let gaps = self.arrivals.iter().copied().zip(ends).map(|(from, to)| Gap { from, to });
        let gaps: Vec<Gap> = gaps.filter(|gap| gap.to > since).collect();
        let longest = |from: f64| gaps.iter().map(|gap| gap.to - gap.from.max(from)).fold(0.0, f64::max);
        PulseReport {
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

/// A report on the gaps between arriving numbers that ended after a given time, the argument
/// `since` of [`Recorder::report`], or that have not ended yet; times in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct PulseReport {
    /// The time at which the report was made.
    pub now: f64,
    /// The time at which the last number arrived.
    pub last: f64,
    /// The count of numbers that have arrived since the connection was established.
    pub numbers: u64,
    /// The length of the longest gap, including any part of it before the time `since` of
    /// [`Recorder::report`].
    pub longest: f64,
    /// The length of the longest gap if only its part after the time `since` of
    /// [`Recorder::report`] counts.
    pub longest_within: f64,
    /// The gaps of at least 15 ms that ended after the time `since` of [`Recorder::report`] or have
    /// not ended yet.
    pub gaps: Vec<Gap>,
    /// The error that ended the connection, if one did.
    pub error: Option<String>,
}

impl PulseReport {
    /// Returns the time from the last number's arrival to the report, in milliseconds.
    #[must_use]
    pub fn silence(&self) -> f64 {
        self.now - self.last
    }

    /// Returns the report as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let gaps: Vec<[f64; 2]> = self.gaps.iter().map(|gap| [gap.from, gap.to]).collect();
        json!({
            "now": self.now, "last": self.last, "numbers": self.numbers, "longest": self.longest,
            "longest_within": self.longest_within, "gaps": gaps, "error": self.error,
        })
    }

    /// Parses a line that holds a report as JSON.
    pub fn from_json(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line).with_context(|| format!("labtool printed {line:?}"))?;
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

/// A running `labtool pulse`, which measures the gaps in a connection to the server.
pub struct Pulse {
    talk: LineProcess,
}

impl Pulse {
    /// Starts `command`, which must run `labtool pulse …`, and waits until `numbers` numbers have
    /// arrived over its connection.
    pub fn start(command: &mut Command, numbers: u64) -> Result<Self> {
        let mut pulse = Self { talk: LineProcess::start(command)? };
        let first = pulse.talk.next_line()?;
        if first != "connected" {
            bail!("labtool pulse: {first}");
        }
        wait_for("the first numbers", crate::wait::PATIENCE, || {
            let report = pulse.since(0.0)?;
            if let Some(error) = report.error {
                return Ok(Some(Err(anyhow::anyhow!("{error}"))));
            }
            Ok((report.numbers >= numbers).then_some(Ok(())))
        })??;
        Ok(pulse)
    }

    /// Requests a report on the gaps that ended after the time `since`.
    pub fn since(&mut self, since: f64) -> Result<PulseReport> {
        self.talk.send_line(&since.to_string())?;
        PulseReport::from_json(&self.talk.next_line_within(ANSWER)?)
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
        let report = recorder(&[0.0, 100.0, 105.0, 130.0, 135.0]).report(110.0, 138.0);
        assert_eq!(report.gaps, [Gap { from: 105.0, to: 130.0 }]);
        assert_eq!((report.longest, report.longest_within), (25.0, 20.0));
        assert_eq!((report.numbers, report.silence()), (4, 3.0));
    }

    #[test]
    fn a_second_gap_after_the_return_counts_when_it_is_the_longer_one() {
        // The path is cut at 10 ms and back at 5000 ms: an old number arrives at once, the next
        // ones with the sender's retransmission timer.
        let report = recorder(&[5.0, 10.0, 5030.0, 5400.0, 5405.0]).report(5000.0, 5410.0);
        assert_eq!(report.longest_within, 370.0);
        assert_eq!(report.longest, 5020.0);
    }

    #[test]
    fn silence_is_a_gap_that_has_not_ended() {
        let report = recorder(&[0.0, 5.0]).report(6.0, 1005.0);
        assert_eq!(report.gaps, [Gap { from: 5.0, to: 1005.0 }]);
        assert_eq!((report.longest, report.longest_within), (1000.0, 999.0));
    }

    #[test]
    fn a_report_survives_the_round_trip_through_json() {
        let mut recorder = recorder(&[0.5, 30.25]);
        let report = recorder.report(0.0, 32.0);
        assert_eq!(PulseReport::from_json(&report.to_json().to_string()).unwrap(), report);
        recorder.fail("connection reset".into());
        let report = recorder.report(0.0, 32.0);
        assert_eq!(
            PulseReport::from_json(&report.to_json().to_string()).unwrap().error,
            Some("connection reset".into())
        );
        assert!(PulseReport::from_json("! connect: refused").is_err());
    }
}
