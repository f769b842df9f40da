//! `cargo xtask bench idle`: the traffic and the processor time of an unused tunnel.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mobile_tests::{Capture, RELAY_PORT, Testbed, Tether, addr};
use serde_json::Value;

use super::cpu_usage::CpuUsage;
use super::machine;
use crate::shell::step;

/// Arguments of `cargo xtask bench idle`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measures for this many minutes; the tables are per minute
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
}

/// The time after which all effects of a start (standby path, window updates, first probes) are
/// over.
const SETTLE: Duration = Duration::from_secs(10);

/// The route metric of the third uplink, worse than that of the others.
const METRIC: u32 = 700;

/// The devices of the uplinks: one carries the tunnel, the others have standby paths.
const UPLINKS: [&str; 3] = ["eth0", "wlan0", Tether::DEVICE];

/// Measures a connected agent with two standby paths and no mobile process.
pub(crate) fn run(args: &Args) -> Result<()> {
    let bed = Testbed::new()?;
    let tether = Tether::plug_in(&bed.lab, METRIC)?;
    sleep(SETTLE);
    let (lab, agent, relay) = (&bed.lab, &bed.agent, &bed.relay);
    let processes = [("mobile agent", agent.pid()), ("home-relay serve", relay.pid())];
    let states = states(&bed)?;
    let filter = format!("tcp port {RELAY_PORT}");
    let captures: Vec<Capture> =
        UPLINKS.iter().map(|device| lab.capture(&lab.host, device, &filter)).collect::<Result<_>>()?;
    let efforts = || -> Result<Vec<CpuUsage>> {
        processes.iter().map(|(name, pid)| CpuUsage::of(pid.with_context(|| format!("no {name}"))?)).collect()
    };
    step(&format!("watching an idle agent for {} min", args.minutes));
    let before = efforts()?;
    sleep(Duration::from_secs(60) * args.minutes);
    let after = efforts()?;
    let minutes = f64::from(args.minutes);

    println!("| uplink | state | packets sent per minute | received |\n| --- | --- | --- | --- |");
    for ((device, capture), state) in UPLINKS.iter().zip(captures).zip(states) {
        let (sent, received) = count(&capture.stop()?);
        println!("| {device} | {state} | {:.1} | {:.1} |", sent as f64 / minutes, received as f64 / minutes);
    }
    println!("\n| process | wake-ups per minute | CPU ms per minute |\n| --- | --- | --- |");
    for ((name, _), (before, after)) in processes.iter().zip(before.iter().zip(&after)) {
        println!(
            "| {name} | {:.1} | {:.2} |",
            (after.switches - before.switches) as f64 / minutes,
            (after.nanoseconds - before.nanoseconds) as f64 / 1e6 / minutes
        );
    }
    println!("\n{}; {} min", machine::describe(), args.minutes);
    drop(tether);
    bed.finish()
}

/// Returns the state of each uplink according to `mobile uplinks`.
fn states(bed: &Testbed) -> Result<Vec<String>> {
    let output: Value = serde_json::from_str(&bed.agent.cli(&["uplinks", "--json"])?.ok()?)?;
    let list = output["uplinks"].as_array().context("`uplinks` has no list")?;
    UPLINKS
        .iter()
        .map(|device| {
            let one = list.iter().find(|one| one["name"] == *device);
            let state = one.and_then(|one| one["state"].as_str());
            Ok(state.with_context(|| format!("`uplinks` does not know {device}"))?.to_owned())
        })
        .collect()
}

/// Returns how many of tcpdump's packets go to the relay, and how many are others.
fn count(packets: &[String]) -> (usize, usize) {
    let to_relay = format!(" > {}.{RELAY_PORT}: ", addr::RELAY4);
    let sent = packets.iter().filter(|line| line.contains(&to_relay)).count();
    (sent, packets.len() - sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_counted_by_direction() {
        let lines = [
            "12:00:00.1 IP 10.22.0.2.40000 > 198.51.100.2.443: Flags [.], ack 1, length 0",
            "12:00:00.2 IP 198.51.100.2.443 > 10.22.0.2.40000: Flags [.], ack 1, length 0",
            "12:00:00.3 IP 198.51.100.2.443 > 10.22.0.2.4430: Flags [.], ack 1, length 0",
        ]
        .map(str::to_owned);
        assert_eq!(count(&lines), (1, 2));
    }
}
