//! One run of the handover benchmark: starts a lab and an application, causes an event, and
//! measures the gap in the application's data.

use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use mobile_tests::competitors::CompetitorKind;
use mobile_tests::pulse::{Pulse, PulseReport, monotonic_ms};

use super::event::Event;
use super::machine_lock::MachineLock;
use super::subject::HandoverSubject;
use super::trigger::trigger;

/// The shortest gap in the application's data, in milliseconds, that cannot be an ordinary pause of
/// a connection with 20 ms of round trip.
const PAUSE_MS: f64 = 100.0;

/// The time in milliseconds for which the application's data must have arrived again before a run
/// ends.
///
/// The time is longer than TCP's shortest retransmission timeout of 0.2 s, so that a second gap
/// soon after the first counts too.
const SETTLED_MS: f64 = 500.0;

/// The interval at which the application is asked for its gaps: often enough to end a run in time,
/// seldom enough not to disturb it.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// The longest gap in milliseconds of each direction; infinite if no data arrived again.
pub(crate) type Gaps = Vec<f64>;

/// Causes the event in a new lab and returns the application's gaps. Gives up after `patience`
/// without data.
pub(crate) fn measure(
    event: Event,
    competitor: Option<&CompetitorKind>,
    patience: Duration,
    machine: &Mutex<()>,
) -> Result<Gaps> {
    let mut lock = MachineLock::take(machine);
    let mut subject = HandoverSubject::start(competitor, event)?;
    let mut pulses: Vec<Pulse> =
        event.modes().iter().map(|mode| subject.pulse(*mode)).collect::<Result<_>>()?;
    let since = trigger(event, &mut subject, &mut lock)?;
    let happened = monotonic_ms();
    let mut gaps = Vec::new();
    for pulse in &mut pulses {
        let condition = EndCondition { since, happened, patience_ms: patience.as_secs_f64() * 1e3 };
        let report = loop {
            let report = pulse.since(since)?;
            if condition.is_over(&report) {
                break report;
            }
            if report.now > happened + SETTLED_MS {
                // A gap that long waits for a timer, so other labs may be measured.
                lock.release();
            }
            sleep(REPORT_INTERVAL);
        };
        let gap = if event.outage().is_some() { report.longest_within } else { report.longest };
        gaps.push(if condition.is_dead(&report) || gap > condition.patience_ms {
            f64::INFINITY
        } else {
            gap
        });
    }
    subject.verify(event)?;
    subject.lab().passed();
    Ok(gaps)
}

struct EndCondition {
    since: f64,
    happened: f64,
    patience_ms: f64,
}

impl EndCondition {
    fn is_dead(&self, report: &PulseReport) -> bool {
        let silent_since = report.last.max(self.since);
        report.error.is_some() || report.now - silent_since > self.patience_ms
    }

    fn is_over(&self, report: &PulseReport) -> bool {
        let pauses = report.gaps.iter().filter(|gap| gap.length() >= PAUSE_MS);
        let flowing_since = pauses.map(|gap| gap.to).fold(self.happened, f64::max);
        self.is_dead(report) || (report.silence() < PAUSE_MS && report.now >= flowing_since + SETTLED_MS)
    }
}

#[cfg(test)]
mod tests {
    use mobile_tests::pulse::Recorder;

    use super::*;

    const CONDITION: EndCondition = EndCondition { since: 1_000.0, happened: 1_010.0, patience_ms: 3_000.0 };

    fn report(silences: &[(f64, f64)], now: f64) -> PulseReport {
        let mut recorder = Recorder::new(0.0);
        let mut at = 5.0;
        while at <= now {
            if !silences.iter().any(|(from, to)| (*from..*to).contains(&at)) {
                recorder.note(at);
            }
            at += 5.0;
        }
        recorder.report(CONDITION.since, now)
    }

    #[test]
    fn a_run_lasts_until_numbers_have_arrived_again_for_some_time() {
        let early = report(&[(1_000.0, 1_300.0)], 1_790.0);
        assert!(!CONDITION.is_over(&early), "{early:?}");
        let late = report(&[(1_000.0, 1_300.0)], 1_810.0);
        assert!(CONDITION.is_over(&late) && !CONDITION.is_dead(&late), "{late:?}");
        // A second gap starts the time anew.
        let again = report(&[(1_000.0, 1_300.0), (1_500.0, 1_700.0)], 1_810.0);
        assert!(!CONDITION.is_over(&again), "{again:?}");
    }

    #[test]
    fn a_silent_run_ends_only_after_the_patience_since_the_event() {
        let waiting = report(&[(900.0, 9_000.0)], 3_990.0);
        assert!(!CONDITION.is_over(&waiting));
        assert!(CONDITION.is_dead(&report(&[(900.0, 9_000.0)], 4_010.0)));
    }

    #[test]
    fn a_broken_connection_is_dead_at_once() {
        let mut recorder = Recorder::new(0.0);
        recorder.fail("connection reset".into());
        assert!(CONDITION.is_over(&recorder.report(1_000.0, 1_020.0)));
    }
}
