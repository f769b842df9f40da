//! Causes the events of the handover benchmark in a lab.

use std::time::Duration;

use anyhow::Result;
use mobile_tests::competitors::Change;
use mobile_tests::pulse::monotonic_ms;
use mobile_tests::{Blackhole, UplinkName};

use super::event::Event;
use super::machine_lock::MachineLock;
use super::subject::HandoverSubject;

/// The time in which both uplinks are up before the old one goes down, as when walking away from an
/// access point.
const OVERLAP: Duration = Duration::from_secs(1);

/// Causes an event, and returns the time from which gaps count, in milliseconds of the monotonic
/// clock.
pub(crate) fn trigger(
    event: Event,
    subject: &mut HandoverSubject,
    lock: &mut MachineLock<'_>,
) -> Result<f64> {
    if let Some(length) = event.outage() {
        return return_after(length, subject, lock);
    }
    let since = monotonic_ms();
    match event {
        Event::Use => subject.use_uplink(UplinkName::Wlan)?,
        Event::Better => {
            subject.lab().eth().bring_up()?;
            subject.hook(Change::Up(UplinkName::Eth))?;
            std::thread::sleep(OVERLAP);
            subject.lab().wlan().take_down()?;
            subject.hook(Change::Down(UplinkName::Wlan))?;
        }
        Event::LinkDown | Event::LinkDownCold => {
            subject.lab().eth().take_down()?;
            subject.hook(Change::Down(UplinkName::Eth))?;
        }
        // No hook runs, since no program is told.
        Event::Blackhole => subject.lab().eth().link().set_blackhole(Blackhole::Both),
        Event::KillAgent => subject.restart_agent()?,
        Event::KillRelay => subject.restart_relay()?,
        Event::Outage1 | Event::Outage10 | Event::Outage60 => unreachable!("handled above"),
    }
    Ok(since)
}

/// Takes all uplinks down for `length`, brings one up again, and returns the time from which the
/// gap counts: just before the command that sets the default route, so that the gap includes it.
fn return_after(length: Duration, subject: &mut HandoverSubject, lock: &mut MachineLock<'_>) -> Result<f64> {
    for name in UplinkName::ALL {
        subject.lab().uplink(name).take_down()?;
        subject.hook(Change::Down(name))?;
    }
    lock.sleep_released(length);
    let eth = subject.lab().eth();
    eth.bring_up_without_route()?;
    let since = monotonic_ms();
    eth.set_routes()?;
    subject.hook(Change::Up(UplinkName::Eth))?;
    Ok(since)
}
